"""Arrays of records ↔ bytes that compress well, and dtypes ↔ JSON.

Records are stored by columns of 8-byte words, each word XORed with the one before it: what
stays the same from hop to hop becomes runs of zeros. Fields are found again by name, so that
a recording outlives the layout it was made with.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

MAX_ITEM_BYTES = 1 << 16
MAX_BATCH_BYTES = 256 << 20
"""What a block may grow to by fields that its records lack."""
MAX_DEPTH = 4
SETTINGS = frozenset({"packet", "stack"})
"""Arrays whose length is a setting of the run: any length will do."""

_SCALAR = re.compile(r"[<|][uiS][1-9]\d{0,2}")


def pack(records: np.ndarray) -> bytes:
    """One-dimensional structured array → bytes; `unpack` is its inverse."""
    words = _words(np.ascontiguousarray(records))
    mixed = np.empty(words.shape[::-1], words.dtype)
    mixed[:, :1] = words.T[:, :1]
    np.bitwise_xor(words.T[:, 1:], words.T[:, :-1], out=mixed[:, 1:])
    return mixed.tobytes()


def unpack(raw: bytes, dtype: np.dtype[np.void]) -> np.ndarray:
    """Bytes of `pack` → records of `dtype`; ValueError when they are not a whole number."""
    rows, rest = divmod(len(raw), dtype.itemsize)
    if rest:
        raise ValueError("not a whole number of records")
    word = _word(dtype)
    mixed = np.frombuffer(raw, word).reshape(dtype.itemsize // word.itemsize, rows)
    words = np.ascontiguousarray(np.bitwise_xor.accumulate(mixed, axis=1).T)
    return words.reshape(-1).view(dtype)


def _word(dtype: np.dtype[np.void]) -> np.dtype[Any]:
    return np.dtype("<u1" if dtype.itemsize % 8 else "<u8")


def _words(records: np.ndarray) -> np.ndarray:
    word = _word(records.dtype)
    return records.view(word).reshape(len(records), records.dtype.itemsize // word.itemsize)


def describe(dtype: np.dtype[np.void]) -> list[Any]:
    """A structured dtype as JSON: rows of name, scalar or nested rows, and array length or 0."""
    rows = []
    for name in dtype.names or ():
        member = dtype[name]
        base = member.base
        length = member.shape[0] if member.shape else 0
        rows.append([name, describe(base) if base.names else base.str, length])
    return rows


def undescribe(rows: object, depth: int = MAX_DEPTH) -> np.dtype[np.void]:
    """JSON of `describe` → dtype; ValueError for anything else, and for absurd sizes."""
    fields: list[tuple[str, Any]] = []
    if not isinstance(rows, list) or not rows or not depth:
        raise ValueError("not the description of a record")
    for row in rows:
        if not isinstance(row, list) or len(row) != len(("name", "type", "length")):
            raise ValueError("not the description of a field")
        name, kind, length = row
        if not isinstance(name, str) or not name.isidentifier() or not _is_length(length):
            raise ValueError("not the description of a field")
        if isinstance(kind, list):
            base: np.dtype[Any] = undescribe(kind, depth - 1)
        elif isinstance(kind, str) and _SCALAR.fullmatch(kind):
            base = _scalar(kind)
        else:
            raise ValueError(f"field {name}: unknown type")
        fields.append((name, np.dtype((base, (length,))) if length else base))
    if sum(member.itemsize for _, member in fields) > MAX_ITEM_BYTES:
        raise ValueError("a record of impossible size")
    return np.dtype(fields)


def _is_length(length: object) -> bool:
    return isinstance(length, int) and 0 <= length <= MAX_ITEM_BYTES


def _scalar(kind: str) -> np.dtype[Any]:
    try:
        return np.dtype(kind)
    except TypeError as error:
        raise ValueError(f"unknown type {kind}") from error


def complete(records: np.ndarray, wanted: np.dtype[np.void]) -> np.ndarray:
    """`records` with every field of `wanted`: those they lack are zero, others stay.

    Not copied where nothing is missing. ValueError names a field that is something else.
    """
    dtype = _union(records.dtype, wanted)
    if dtype == records.dtype:
        return records
    if len(records) * dtype.itemsize > MAX_BATCH_BYTES:
        raise ValueError("too many records at once")
    whole = np.zeros(len(records), dtype)
    _fill(whole, records)
    return whole


def _union(have: np.dtype[Any], wanted: np.dtype[Any]) -> np.dtype[Any]:
    fields: dict[str, np.dtype[Any]] = {name: have[name] for name in have.names or ()}
    for name in wanted.names or ():
        member = wanted[name]
        if name not in fields:
            fields[name] = member
            continue
        mine = fields[name]
        same_shape = mine.shape == member.shape or name in SETTINGS
        if (
            mine.base.kind != member.base.kind
            or not same_shape
            or bool(mine.shape) != bool(member.shape)
        ):
            raise ValueError(f"field {name}: not as this tracer knows it")
        if member.base.names:
            base = _union(mine.base, member.base)
            fields[name] = np.dtype((base, mine.shape)) if mine.shape else base
    return np.dtype(list(fields.items()))


def _fill(whole: np.ndarray, records: np.ndarray) -> None:
    for name in records.dtype.names or ():
        if records.dtype[name].base.names:
            _fill(whole[name], records[name])
        else:
            whole[name] = records[name]
