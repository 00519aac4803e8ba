"""ctnetlink messages → `ct_layout.ENTRY` records, many at once.

Messages of one kind and length nearly always have the same attributes at the same places. The
first of them is walked, and what was found is kept as a template; of the others only the
attribute headers are compared with it, and then their values are copied, all in numpy.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tracer.ct_layout import ENTRY, Event
from tracer.netfilter.ct_places import ENTRY_PLACES, EXPECT_PLACES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tracer.netfilter.ct_places import Path

HEADER = np.dtype(
    [("length", "u4"), ("kind", "u2"), ("flags", "u2"), ("sequence", "u4"), ("portid", "u4")]
)
"""struct nlmsghdr."""
BODY = HEADER.itemsize + 4
"""Where attributes begin: behind struct nfgenmsg."""
FAMILY_AT = HEADER.itemsize
NLM_F_MULTI, NLM_F_CREATE = 0x2, 0x400
NLA_TYPE_MASK, NLA_F_NESTED = 0x3FFF, 0x8000
CT_NEW, CT_DELETE = 0x100, 0x102
EXP_NEW, EXP_DELETE = 0x200, 0x202
PLACES = {CT_NEW: ENTRY_PLACES, CT_DELETE: ENTRY_PLACES, EXP_NEW: EXPECT_PLACES,
          EXP_DELETE: EXPECT_PLACES}  # fmt: skip
EVENTS = {CT_NEW: Event.UPDATE, CT_DELETE: Event.DESTROY, EXP_NEW: Event.EXPECT_NEW,
          EXP_DELETE: Event.EXPECT_DESTROY}  # fmt: skip
MAX_TEMPLATES = 512
_MAPPED = bytes(10) + b"\xff\xff"
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Template:
    """How the bytes of messages of one shape become a record."""

    headers_at: NDArray[np.intp]
    headers: NDArray[np.uint8]
    """The attribute headers that every message of this shape has, and where."""
    source: NDArray[np.intp]
    target: NDArray[np.intp]
    """Byte of the message → byte of the record."""
    base: NDArray[np.uint8]
    """A record with what all of them have in common."""


@dataclass(slots=True)
class Decoder:
    """Decodes; remembers the shapes it has seen."""

    _templates: dict[tuple[int, int], list[Template]] = field(default_factory=dict)
    _count: int = 0

    def decode(self, data: NDArray[np.uint8], starts: NDArray[np.intp]) -> NDArray[np.void]:
        """Return (n,) ENTRY for the messages that begin at `starts` in `data`, in their order.

        Messages of other kinds are left out, so n may be less than len(starts). `time_ns` and
        `netns` are the caller's to fill.
        """
        headers = _headers(data, starts)
        known = np.isin(headers["kind"], list(PLACES)) & (headers["length"] >= BODY)
        known &= starts + headers["length"] <= len(data)
        starts, headers = starts[known], headers[known]
        records = np.zeros(len(starts), ENTRY)
        shapes = headers["kind"].astype(np.uint64) << np.uint64(32) | headers["length"]
        for shape in np.unique(shapes).tolist():
            rows = np.flatnonzero(shapes == shape)
            self._fill(records, rows, data, starts, (shape >> 32, shape & 0xFFFFFFFF))
        records["portid"] = headers["portid"]
        is_new = (records["event"] == Event.UPDATE) & (headers["flags"] & NLM_F_CREATE > 0)
        records["event"][is_new] = Event.NEW
        # What was asked for comes in parts; an event does not.
        is_listed = headers["flags"] & NLM_F_MULTI > 0
        records["event"][is_listed & (headers["kind"] == CT_NEW)] = Event.LISTED
        return records

    def _fill(
        self,
        records: NDArray[np.void],
        rows: NDArray[np.intp],
        data: NDArray[np.uint8],
        starts: NDArray[np.intp],
        shape: tuple[int, int],
    ) -> None:
        raw = records.view(np.uint8).reshape(len(records), ENTRY.itemsize)

        def rest(template: Template, rows: NDArray[np.intp]) -> NDArray[np.intp]:
            begin = starts[rows][:, None]
            fits = (data[begin + template.headers_at] == template.headers).all(axis=1)
            same = rows[fits]
            raw[same] = template.base
            raw[same[:, None], template.target] = data[starts[same][:, None] + template.source]
            left: NDArray[np.intp] = rows[~fits]
            return left

        for template in tuple(self._templates.get(shape, ())):
            rows = rest(template, rows)
        while len(rows):
            rows = rest(self._learn(data, int(starts[rows[0]]), shape), rows)

    def _learn(self, data: NDArray[np.uint8], start: int, shape: tuple[int, int]) -> Template:
        if self._count >= MAX_TEMPLATES:
            self._templates.clear()
            self._count = 0
        template = _template(data[start : start + shape[1]].tobytes(), shape[0])
        self._templates.setdefault(shape, []).append(template)
        self._count += 1
        return template


def message_starts(data: memoryview, begin: int, end: int) -> Iterator[int]:
    """Where each message of the datagram data[begin:end] begins."""
    while begin + HEADER.itemsize <= end:
        length = int.from_bytes(data[begin : begin + 4], sys.byteorder)
        if length < HEADER.itemsize or begin + length > end:
            return
        yield begin
        begin += (length + 3) & ~3


def _headers(data: NDArray[np.uint8], starts: NDArray[np.intp]) -> np.ndarray:
    raw = data[starts[:, None] + np.arange(HEADER.itemsize)]
    headers: np.ndarray = raw.view(HEADER).reshape(len(starts))
    return headers


def _template(message: bytes, kind: int) -> Template:
    """Walk one message."""
    base = np.zeros((), ENTRY)
    base["event"] = EVENTS[kind]
    has = 0
    raw = bytearray(base.tobytes())
    headers: list[int] = []
    copied = [(FAMILY_AT, ENTRY.fields["family"][1], 1)]  # type: ignore[index]
    places = PLACES[kind]
    for path, at, size in _attributes(message, BODY, len(message), ()):
        headers += range(at - 4, at)
        place = places.get(path)
        if place is None:
            continue
        has |= place.has
        copied.append((at, place.at, min(size, place.size)))
        if place.mapped:
            raw[place.at - len(_MAPPED) : place.at] = _MAPPED
    present_at = ENTRY.fields["present"][1]  # type: ignore[index]
    raw[present_at : present_at + 4] = has.to_bytes(4, sys.byteorder)
    whole = np.frombuffer(message, np.uint8)
    at_headers = np.array(headers, np.intp)
    return Template(
        headers_at=at_headers,
        headers=whole[at_headers],
        source=_ranges([(start, size) for start, _, size in copied]),
        target=_ranges([(start, size) for _, start, size in copied]),
        base=np.frombuffer(bytes(raw), np.uint8),
    )


def _ranges(spans: list[tuple[int, int]]) -> NDArray[np.intp]:
    return np.concatenate([np.arange(start, start + size) for start, size in spans])


def _attributes(
    message: bytes, begin: int, end: int, outer: Path
) -> Iterator[tuple[Path, int, int]]:
    """(path, where its value begins, size of the value) of each attribute, nested ones after."""
    while begin + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(message, begin)
        if length < _ATTRIBUTE.size or begin + length > end:
            return
        path = (*outer, kind & NLA_TYPE_MASK)
        value = begin + _ATTRIBUTE.size
        yield path, value, length - _ATTRIBUTE.size
        if kind & NLA_F_NESTED:
            yield from _attributes(message, value, begin + length, path)
        begin += (length + 3) & ~3
