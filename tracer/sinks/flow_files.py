"""Where `flows` writes: tables become lines or Parquet, in a stream or in files that rotate."""

from __future__ import annotations

import importlib
import stat
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from tracer.errors import TracerError
from tracer.flow_table import FIELDS, known_fields, lost_table, only, take
from tracer.sinks.backlog import LOST_SOURCE, Backlog, Piece
from tracer.sinks.line_file import LineFile
from tracer.sinks.output import Output
from tracer.sinks.rotation import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tracer.flow_table import FlowTable

FORMATS = ("flat", "hubble", "parquet", "csv", "vpc")
_MODULES = {"flat": "flow_json", "hubble": "hubble", "csv": "csv_lines", "vpc": "vpc_lines"}
ROWS = 4096
"""Encoded at once: what repeats among them is written once; their lines are 4 MB."""
PARQUET_ROWS = 1 << 14
PARQUET = Policy(max_bytes=64_000_000, max_age_s=300, max_backups=None)
"""What is usual for Parquet: few large files, and none removed."""
PUBLISHED = Policy(max_age_s=300)
"""What is usual for lines that are seen when their file is whole."""
LINES = Policy()
"""What is usual for lines that are seen as they come: as Hubble's exporter does it."""


def usual(format: str) -> Policy:  # noqa: A002 - the word users know
    """The policy where nothing else is asked for."""
    return {"parquet": PARQUET, "csv": PUBLISHED, "vpc": PUBLISHED}.get(format, LINES)


class _Encoder(Protocol):
    live: bool
    header: bytes

    def lines(self, table: FlowTable) -> list[bytes]: ...


class _Store(Protocol):
    """What takes pieces: line_file.LineFile, parquet.ParquetFiles."""

    name: str

    def write(self, piece: Piece) -> Piece | None: ...
    def tick(self) -> None: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What to write, and where."""

    format: str
    """One of FORMATS."""
    path: Path | None = None
    """None: stdout."""
    fields: tuple[str, ...] = ()
    """Columns, of hubble its own names; empty: all."""
    policy: Policy | None = None
    """None: what is usual for the format."""
    node: str = ""
    """Whose records they are."""


class FlowFiles:
    """Flow tables on their way to files; a full disk is waited for, see Backlog."""

    tick_s = 1.0
    """How often `tick` wants to be called at least."""

    def __init__(
        self, request: Request, store: _Store, encode: Callable[[FlowTable], Piece], rows: int,
        tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._request, self._store, self._encode, self._rows = request, store, encode, rows
        self._backlog = Backlog(store.name, store.write, self._lost_piece, tell)

    @property
    def thrown_away(self) -> int:
        """Records that found no room."""
        return self._backlog.thrown_away

    def write(self, table: FlowTable) -> None:
        """Write all records, or keep them; TracerError when the file is refused otherwise."""
        for at in range(0, table.rows, self._rows):
            self._backlog.put(self._encode(take(table, slice(at, at + self._rows))))

    def lost(self, source: str, count: int) -> None:
        """Write a record that says so."""
        self.write(lost_table(source, count, self._request.node, time.time_ns()))

    def tick(self) -> None:
        """To be called now and then: rotates by age, and looks whether there is room again."""
        self._backlog.flush()
        self._store.tick()

    def reopen(self) -> None:
        """Begin new files: somebody has moved or will take the old ones."""
        self._store.reopen()

    def close(self) -> None:
        """Finish the files; what finds no room now is lost, and said to be."""
        self._backlog.give_up()
        self._store.close()

    def _lost_piece(self, records: int) -> Piece:
        table = lost_table(LOST_SOURCE, records, self._request.node, time.time_ns())
        return replace(self._encode(table), records=0)


class FlowStream:
    """Flow tables as lines on stdout, a pipe or a device: their reader decides what is kept."""

    thrown_away = 0
    tick_s = float("inf")

    def __init__(self, request: Request, encoder: _Encoder) -> None:
        self._request, self._encoder = request, encoder
        self._output = Output(request.path)
        self._output.write(encoder.header)

    def write(self, table: FlowTable) -> None:
        """Write all records; TracerError or BrokenPipeError when the reader takes no more."""
        for at in range(0, table.rows, ROWS):
            lines = self._encoder.lines(take(table, slice(at, at + ROWS)))
            self._output.write(b"".join(lines))

    def lost(self, source: str, count: int) -> None:
        """Write a record that says so."""
        self.write(lost_table(source, count, self._request.node, time.time_ns()))

    def tick(self) -> None:
        """Nothing is to be done."""

    def reopen(self) -> None:
        """Nothing is to be done."""

    def close(self) -> None:
        """Close the output."""
        self._output.close()


FlowSink = FlowFiles | FlowStream


def open_flows(request: Request, tell: Callable[[str], None]) -> FlowSink:
    """Open where `request` says; TracerError for what cannot be. `tell` is for what happens later.

    Of an existing file that grows, whole lines stay and are gone on with.
    """
    policy = request.policy or usual(request.format)
    if request.format == "parquet":
        return _parquet(request, policy, tell)
    encoder = _encoder(request)
    path = request.path
    if path is None or (path.exists() and not stat.S_ISREG(path.stat().st_mode)):
        return FlowStream(request, encoder)
    file = LineFile(path, policy, tell, live=encoder.live, header=encoder.header)

    def encode(table: FlowTable) -> Piece:
        return Piece(tuple(encoder.lines(table)), table.rows)

    return FlowFiles(request, file, encode, ROWS, tell)


def _parquet(request: Request, policy: Policy, tell: Callable[[str], None]) -> FlowFiles:
    if request.path is None:
        raise TracerError("format parquet: not for stdout", "name a directory: --write PATH")
    if request.path.exists() and not request.path.is_dir():
        raise TracerError(f"{request.path}: not a directory", "Parquet files go into a directory")
    module = importlib.import_module("tracer.sinks.parquet")
    files = module.ParquetFiles(request.path, policy, tell, _columns(request))
    return FlowFiles(request, files, files.encode, PARQUET_ROWS, tell)


def _columns(request: Request) -> Sequence[str]:
    """The chosen columns, always with what tells records and losses apart, and when."""
    if not request.fields:
        return tuple(FIELDS)
    chosen = {*known_fields(request.fields, "--fields"), "type", "time", "source", "count"}
    return tuple(name for name in FIELDS if name in chosen)


def _encoder(request: Request) -> _Encoder:
    module = importlib.import_module(f"tracer.sinks.{_MODULES[request.format]}")
    if request.format == "hubble":
        hubble: _Encoder = module.FlowLines(request.fields)
        return hubble
    if request.format == "csv":
        csv: _Encoder = module.FlowLines(_columns(request))
        return csv
    plain: _Encoder = module.FlowLines()
    if request.format == "vpc" and request.fields:
        raise TracerError("--fields: the fields of format vpc are fixed", "leave it out")
    return _Masked(plain, _columns(request)) if request.fields else plain


class _Masked:
    """An encoder that is shown some columns only."""

    def __init__(self, encoder: _Encoder, names: Sequence[str]) -> None:
        self.live, self.header = encoder.live, encoder.header
        self._encoder, self._names = encoder, names

    def lines(self, table: FlowTable) -> list[bytes]:
        return self._encoder.lines(only(table, self._names))
