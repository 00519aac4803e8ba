"""The reader of recordings: needs neither root nor BPF, and trusts nothing that it reads."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from tracer.analysis.drops import Context
from tracer.errors import TracerError
from tracer.layout import layout
from tracer.model import Node
from tracer.recording import blocks
from tracer.recording.columns import complete, undescribe, unpack
from tracer.recording.node_json import NodeReader, printable
from tracer.recording.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np

STRUCTS = {"hops": "hop_event", "drops": "drop_event"}
"""Kind of a batch → its struct in bpf/event.h: the fields that readers may count on."""

MAX_TIME_NS = 1 << 62
"""No machine has been up for 146 years."""

ENUM_FIELDS = {"hop": "hop", "direction": "direction"}
"""Fields that hold one value of an enum of bpf/event.h."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that were written together."""

    kind: str
    events: np.ndarray
    context: Context
    """What names their numbers, as it was known then."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Events that the recording lacks, told where they were missed."""

    source: str
    count: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Sysctls as they were in a network namespace at that time."""

    netns: int
    values: Mapping[str, str]


class DamagedError(TracerError):
    """Something in a recording is not what its recorder wrote."""


class Recording:
    """A recording; iterate over it as often as you like.

    `header` is what its recorder was given. After an iteration `ending` says in words why
    the recording may be incomplete, and is empty where it ended in good order.
    """

    def __init__(self, path: Path) -> None:
        """Read the header; TracerError for what is no recording of ours."""
        self.path, self.ending = path, ""
        with self._open() as file:
            try:
                first = next(blocks.blocks(file), None)
            except (blocks.CutError, blocks.DamageError):
                first = None
            if first is None or first.tag != blocks.HEAD:
                raise TracerError(f"{path}: its header is damaged", "record it again")
            self.header: Mapping[str, Any] = _object(first)
        self._translations = _translations(self.header.get("enums"))

    def __iter__(self) -> Iterator[Batch | Loss | Evidence]:
        """Batches, losses and evidence in the order of the file.

        A file that was cut ends with its last whole batch (see `ending`); DamagedError where it
        is damaged, after all before has been read.
        """
        self.ending = "it has no end: its recorder was killed, found no room, or still runs"
        reader = _Reader(self._translations)
        with self._open() as file:
            try:
                for block in blocks.blocks(file):
                    if block.tag == blocks.DONE:
                        self.ending = ""
                        return
                    yield from reader.take(block)
            except blocks.CutError as cut:
                self.ending = f"it is cut in the middle of a batch, at byte {cut.at}"
            except blocks.DamageError as damage:
                self.ending = f"damaged: {damage}"
                raise DamagedError(
                    f"{self.path}: damaged: {damage}", "what stands before has been read"
                ) from damage

    def rules(self) -> Rules:
        """The rules that its recorder has found; reads nothing where it looked for none."""
        if self.header.get("rules", "off") == "off":
            return Rules()
        with self._open() as file:
            return Rules(blocks.blocks(file, blocks.RULES))

    def _open(self) -> BinaryIO:
        """The file, after its magic."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            words = (error.strerror or str(error)).lower()
            raise TracerError(f"{self.path}: {words}", "tracer show FILE") from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise TracerError(f"{self.path}: not a file", "recordings are read more than once")
        magic = file.read(len(blocks.MAGIC))
        if magic == blocks.MAGIC:
            return file
        file.close()
        if magic.startswith(blocks.MAGIC_STEM):
            raise TracerError(f"{self.path}: made by a later tracer", "update this one")
        raise TracerError(f"{self.path}: not a recording", "make one with tracer trace --record")


class _Reader:
    """What has been learnt on the way through one file."""

    def __init__(self, translations: Mapping[str, Mapping[int, int]]) -> None:
        self._translations = translations
        self._kinds: list[tuple[str, np.dtype[np.void]]] = []
        self._node = NodeReader()
        self._symbols: dict[int, str] = {}
        self._context = Context(Node("", 0), {}, self._symbol, 0)

    def take(self, block: blocks.Block) -> Iterator[Batch | Loss | Evidence]:
        """What one block yields; DamageError for one that makes no sense."""
        try:
            if block.tag == blocks.ROWS:
                yield self._batch(block.payload)
            elif block.tag == blocks.LOST:
                told = _object(block)
                yield Loss(printable(told["source"]), int(told["count"]))
            elif block.tag == blocks.EVIDENCE:
                told = _object(block)
                values = {str(k): printable(v) for k, v in told["values"].items()}
                yield Evidence(int(told["netns"]), values)
            elif block.tag == blocks.KIND:
                told = _object(block)
                self._kinds.append((str(told["kind"]), undescribe(told["fields"])))
            elif block.tag == blocks.CONTEXT:
                self._context = self._changed(_object(block))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise blocks.DamageError(f"byte {block.at}: {error}") from error

    def _batch(self, payload: bytes) -> Batch:
        kind, dtype = self._kinds[int.from_bytes(payload[:4], "little")]
        events = unpack(payload[4:], dtype)
        struct = STRUCTS.get(kind)
        if struct:
            events = complete(events, layout().structs[struct])
            if len(events) and events["time_ns"].max() >= MAX_TIME_NS:
                raise ValueError("an impossible time")
        for field, translation in self._translations.items():
            if field in (events.dtype.names or ()):
                _translate(events[field], translation)
        return Batch(kind, events, self._context)

    def _changed(self, change: Mapping[str, Any]) -> Context:
        context = self._context
        for text, name in change.get("symbols", {}).items():
            self._symbols[int(text)] = printable(name)
        reasons = change.get("reasons")
        return Context(
            self._node.apply(change["node"]) if "node" in change else context.node,
            {int(value): printable(name) for value, name in reasons.items()}
            if reasons is not None
            else context.reasons,
            self._symbol,
            _clock(change.get("wall_offset_ns", context.wall_offset_ns)),
        )

    def _symbol(self, address: int) -> str:
        return self._symbols.get(address) or f"0x{address:x}"


def _object(block: blocks.Block) -> dict[str, Any]:
    value = orjson.loads(block.payload)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _clock(offset_ns: object) -> int:
    if not isinstance(offset_ns, int) or abs(offset_ns) >= 1 << 63:
        raise ValueError("not a clock offset")
    return offset_ns


def _translations(recorded: object) -> dict[str, dict[int, int]]:
    """Field → recorded value → ours, where an enum's members have other values by now."""
    found = {}
    for field, name in ENUM_FIELDS.items():
        members = recorded.get(name) if isinstance(recorded, dict) else None
        ours = layout().enums[name].__members__
        if isinstance(members, dict):
            pairs = {
                v: int(ours[m]) for m, v in members.items() if m in ours and isinstance(v, int)
            }
            if any(theirs != mine for theirs, mine in pairs.items()):
                found[field] = pairs
    return found


def _translate(column: np.ndarray, translation: Mapping[int, int]) -> None:
    before = column.copy()
    for theirs, mine in translation.items():
        column[before == theirs] = mine
