"""Flow tables → lines of JSON, column by column: the text of what repeats is made once.

A line is the join of a few pieces. Columns of text that stand side by side are one piece as long as
few combinations of their values occur: each is written once, and then only pointed at.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import orjson

from tracer.flow_table import FIELDS, TEXT, TIME
from tracer.wall_time import time_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tracer.flow_table import Column, FlowTable

    Texts = list[bytes]
    Coded = tuple[NDArray[np.int64], Texts]
    """Of each row which of the texts it has."""


class FlowLines:
    """Flow tables as flat records, with the fields that each row knows."""

    live = True
    header = b""

    def lines(self, table: FlowTable) -> list[bytes]:
        """One line a record; each has a `type`."""
        pieces: list[Texts] = []
        few: list[Coded] = []
        for name, column in table.columns.items() if table.rows else ():
            key = b'%b"%b":' % (b"{" if name == "type" else b",", name.encode())
            if FIELDS[name].kind == TEXT:
                coded = _coded(key, column)
                if prod(len(texts) for _, texts in (*few, coded)) > table.rows // 2:
                    pieces.append(_combined(few))
                    few = []
                few.append(coded)
                continue
            pieces.append(_combined(few))
            few = []
            make = _times if FIELDS[name].kind == TIME else _numbers
            pieces.append(_where_held(make, key, column))
        pieces += [_combined(few), [b"}\n"] * table.rows]
        return [b"".join(line) for line in zip(*filter(None, pieces), strict=True)]


def _coded(key: bytes, column: Column) -> Coded:
    """A column of text; absent is the empty text."""
    words = column.words or ()
    place = column.values.astype(np.int64) + 1
    used = np.flatnonzero(np.bincount(place))
    number = np.zeros(len(words) + 1, np.int64)
    number[used] = np.arange(len(used))
    texts = [key + orjson.dumps(words[at - 1]) if at else b"" for at in used.tolist()]
    return number[place], texts


def _combined(columns: list[Coded]) -> Texts:
    """The texts of several columns, row by row; of no columns none."""
    if not columns:
        return []
    shape = [len(texts) for _, texts in columns]
    code = np.ravel_multi_index([codes for codes, _ in columns], shape)
    used = np.flatnonzero(np.bincount(code))
    parts = zip(columns, np.unravel_index(used, shape), strict=True)
    chosen = [[texts[at] for at in which.tolist()] for (_, texts), which in parts]
    made = np.empty(prod(shape), object)
    made[used] = [b"".join(row) for row in zip(*chosen, strict=True)]
    found: Texts = made[code].tolist()
    return found


def _where_held(
    make: Callable[[bytes, NDArray[np.generic]], Texts], key: bytes, column: Column
) -> Texts:
    """What `make` makes of the values that are there; of others the empty text."""
    if column.held is None:
        return make(key, column.values)
    made = np.full(len(column.values), b"", object)
    if column.held.any():
        made[column.held] = make(key, column.values[column.held])
    texts: Texts = made.tolist()
    return texts


def _numbers(key: bytes, values: NDArray[np.generic]) -> Texts:
    """Numbers, true and false: written all at once, then cut."""
    text = orjson.dumps(values.tolist())[1:-1]
    return (key + text.replace(b",", b"\n" + key)).split(b"\n")


def _times(key: bytes, values: NDArray[np.generic]) -> Texts:
    times = time_array(values)
    quoted = np.empty(len(times), f"S{len(key) + 1}, {times.dtype}, S1")
    quoted["f0"], quoted["f1"], quoted["f2"] = key + b'"', times, b'"'
    texts: Texts = quoted.view(f"S{quoted.itemsize}").tolist()
    return texts
