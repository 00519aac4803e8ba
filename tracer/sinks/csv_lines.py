"""Flow tables as CSV by RFC 4180: a header in each file, CRLF, quotes only where needed.

What is not known is an empty field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.flow_table import FIELDS, TEXT, TIME, Column, texts
from tracer.wall_time import time_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.flow_table import FlowTable

_SPECIAL = frozenset(',"\r\n')


class FlowLines:
    """The columns `names`, in this order."""

    live = False

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self.header = ",".join(self._names).encode() + b"\r\n"

    def lines(self, table: FlowTable) -> list[bytes]:
        """One line a record."""
        cells = [_cells(name, table) for name in self._names]
        return [f"{','.join(row)}\r\n".encode() for row in zip(*cells, strict=True)]


def _cells(name: str, table: FlowTable) -> Iterable[str]:
    """Of every row."""
    column = table.columns.get(name)
    if column is None:
        return [""] * table.rows
    kind = FIELDS[name].kind
    if kind == TIME:
        return time_texts(column.values)
    if kind == TEXT:
        # Each word is quoted once, however many rows have it.
        words = tuple(map(_quoted, column.words or ()))
        return [text or "" for text in texts(Column(column.values, words))]
    numbers = column.values.tolist()
    written = map(str, numbers) if column.values.dtype != bool else ("true" for _ in numbers)
    if column.held is None:
        return written
    return [
        text if there else "" for text, there in zip(written, column.held.tolist(), strict=True)
    ]


def _quoted(word: str) -> str:
    if _SPECIAL.isdisjoint(word):
        return word
    return '"' + word.replace('"', '""') + '"'
