"""Flow tables → Parquet: typed columns, zstd, a directory of `date=YYYY-MM-DD/hour=HH`, in UTC.

A Parquet file is nothing before its last byte is there. So records go into a journal first, Arrow
streams one after another under a hidden name, and become a file when there are enough of them, or
they are old enough. What a killed run left in its journal, the next one makes a file of. A file is
written under a hidden name, too, and gets its own when it is whole; its name is the journal's, so
that doing it twice writes the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracer import __version__
from tracer.errors import TracerError
from tracer.files import NO_ROOM, PieceFile, sync, unwritable
from tracer.flow_table import BOOL, COLUMNS, FIELDS, SCHEMA_VERSION, TEXT, TIME
from tracer.sinks import rotation
from tracer.sinks.backlog import Piece
from tracer.wall_time import NS_PER_S

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise TracerError(
        "format parquet: pyarrow is not installed", "pip install node-packet-tracer[parquet]"
    ) from error

# A node's processors are there for its pods: threads of Arrow's own would take them all, and its
# own allocators keep what is freed for minutes.
pa.set_cpu_count(1)
pa.set_memory_pool(pa.system_memory_pool())

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracer.flow_table import Column, Field, FlowTable
    from tracer.sinks.rotation import Policy

JOURNAL = ".arrows"
_BEGUN = "%Y%m%dT%H%M%S.%f"
"""When a journal was begun, in its name; the names of one node sort by age, see rotation.behind."""
ROW_GROUP = 1 << 15
_ARROW_MAGIC = b"\xff\xff\xff\xff"
"""How every message of an Arrow stream begins (the continuation marker)."""
_COLUMNS = b"tracer.columns"
"""Metadata of a journal's stream: all columns of the file that it becomes."""
_NS_PER_HOUR = 3600 * NS_PER_S


def arrow_type(field: Field) -> pa.DataType:
    """The type of a column."""
    if field.kind == TEXT:
        return pa.dictionary(pa.int32(), pa.string())
    if field.kind == TIME:
        return pa.timestamp("ns", tz="UTC")
    return pa.bool_() if field.kind == BOOL else pa.from_numpy_dtype(np.dtype(field.kind))


def schema(names: Sequence[str] = tuple(FIELDS)) -> pa.Schema:
    """Of every file: all of COLUMNS, or the chosen, with the schema's version."""
    chosen = [field for field in COLUMNS if field.name in names]
    fields = [pa.field(field.name, arrow_type(field)) for field in chosen]
    told = {"tracer.schema_version": str(SCHEMA_VERSION), "tracer.version": __version__}
    return pa.schema(fields, metadata=told)


def arrow_batch(table: FlowTable, wanted: pa.Schema) -> pa.RecordBatch:
    """Those columns of `wanted` that the table has, as they are, without a look at a row.

    What the others are called is in the schema's metadata: an empty column costs, too.
    """
    fields = [field for field in wanted if field.name in table.columns]
    told = {**wanted.metadata, _COLUMNS: ",".join(wanted.names)}
    arrays = [_array(table.columns[field.name], field.type) for field in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata=told))


def _whole_schema(part: pa.Schema) -> pa.Schema:
    """The schema of which `arrow_batch` took a part; one that does not tell is whole."""
    names = part.metadata.get(_COLUMNS)
    return schema(names.decode().split(",")) if names else part


def _array(column: Column, kind: pa.DataType) -> pa.Array:
    if column.words is not None:
        absent = column.values.astype(np.int32) < 0
        indices = pa.array(column.values, mask=absent if absent.any() else None)
        return pa.DictionaryArray.from_arrays(indices, pa.array(column.words, pa.string()))
    mask = None if column.held is None else ~column.held
    if pa.types.is_timestamp(kind):
        # Seen as times, not cast: a cast loads all that Arrow computes with, 8 MB.
        return pa.array(column.values.astype(np.int64), pa.int64(), mask=mask).view(kind)
    return pa.array(np.ascontiguousarray(column.values).astype(kind.to_pandas_dtype()), mask=mask)


class ParquetFiles:
    """A directory of Parquet files, and the journal of the next."""

    def __init__(
        self, folder: Path, policy: Policy, tell: Callable[[str], None], names: Sequence[str]
    ) -> None:
        """Make files of what a killed run left; TracerError when `folder` cannot be written."""
        self.name = str(folder)
        self._folder, self._policy, self._tell = folder, policy, tell
        self._schema = schema(names)
        self._file: PieceFile | None = None
        self._size = 0
        self._opened_s = time.monotonic()
        self._told_removal = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for half in folder.glob(f"*/*/{rotation.HIDDEN}*.part"):
                half.unlink()
        except OSError as error:
            raise unwritable(self.name, error) from error
        self._convert()
        own = self._folder.glob(f"date=*/hour=*/{os.uname().nodename}-*.parquet")
        self._begun: datetime | None = None
        with contextlib.suppress(ValueError):  # none yet, or somebody else named it
            newest = max(map(_begun, own), default="")
            self._begun = datetime.strptime(newest, _BEGUN).replace(tzinfo=timezone.utc)

    def encode(self, table: FlowTable) -> Piece:
        """A table as an Arrow stream of its own."""
        sink, batch = pa.BufferOutputStream(), arrow_batch(table, self._schema)
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        return Piece((sink.getvalue().to_pybytes(),), table.rows)

    def write(self, piece: Piece) -> Piece | None:
        """Append to the journal; NoRoomError, TracerError."""
        if self._file and self._policy.max_bytes and self._size >= self._policy.max_bytes:
            self.rotate()
        if self._file is None:
            self._begun = rotation.behind(datetime.now(timezone.utc), self._begun)
            stem = f"{os.uname().nodename}-{self._begun.strftime(_BEGUN)}-{os.getpid()}"
            name = f"{rotation.HIDDEN}{stem}{JOURNAL}"
            self._file = PieceFile(self._folder / name, _ARROW_MAGIC)
            self._size, self._opened_s = 0, time.monotonic()
        for part in piece.parts:
            self._file.append(part)
        self._size += piece.size_bytes
        if self._policy.fsync == "batch":
            sync(Path(self._file.name))
        return None

    def tick(self) -> None:
        """Make a file if the journal is old enough."""
        age_s = time.monotonic() - self._opened_s
        if self._policy.max_age_s and age_s >= self._policy.max_age_s:
            self.rotate()

    def rotate(self) -> None:
        """Make files of the journal; where there is no room it waits for the next time."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._opened_s = time.monotonic()
        self._convert()

    reopen = close = rotate

    def _convert(self) -> None:
        """Make files of every journal that nobody writes, the oldest first."""
        try:
            for journal in sorted(self._folder.glob(f"{rotation.HIDDEN}*{JOURNAL}")):
                with _locked(journal) as mine:
                    if mine:
                        self._publish(journal)
                        journal.unlink()
            self._prune()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise unwritable(self.name, error) from error
            self._tell(f"warning: {self.name}: no room: records wait in {JOURNAL} files there")

    def _publish(self, journal: Path) -> None:
        stem = journal.name.removeprefix(rotation.HIDDEN).removesuffix(JOURNAL)
        writers: dict[int, _Part] = {}
        try:
            for batch in batches(journal):
                for hour, rows in _by_hour(batch):
                    if hour not in writers:
                        goal = self._folder / _partition(hour) / f"{stem}.parquet"
                        writers[hour] = _Part(goal, _whole_schema(batch.schema))
                    writers[hour].add(rows)
            for part in writers.values():
                part.publish(synced=self._policy.fsync != "never")
        except BaseException:
            for part in writers.values():
                part.discard()
            raise

    def _prune(self) -> None:
        # Not by hour: where the clock was set back, the newest are in the hours of before.
        files = sorted(
            self._folder.glob("date=*/hour=*/*.parquet"), key=lambda one: (_begun(one), one)
        )
        removed = rotation.prune(files, self._policy)
        for folder in {file.parent for file in files[:removed]}:
            with contextlib.suppress(OSError):  # not empty: others write there
                folder.rmdir()
                folder.parent.rmdir()
        if removed and not self._told_removal:
            self._told_removal = True
            self._tell(f"{self.name}: old files are removed from now on")


def _begun(file: Path) -> str:
    """When the journal of a Parquet file was begun, by its name: sorts by age."""
    words = file.stem.rsplit("-", 2)
    return words[1] if len(words) == 3 else ""  # noqa: PLR2004 - node, moment, process


class _Part:
    """One Parquet file that is being made, a row group at a time."""

    def __init__(self, goal: Path, wanted: pa.Schema) -> None:
        goal.parent.mkdir(parents=True, exist_ok=True)
        self._goal, self._made = goal, rotation.partial(goal)
        self._rows: list[pa.RecordBatch] = []
        self._schema = wanted
        self._raw = pa.OSFile(str(self._made), "wb")
        texts = [field.name for field in wanted if pa.types.is_dictionary(field.type)]
        self._writer = pq.ParquetWriter(
            self._raw, wanted, compression="zstd", compression_level=1, use_dictionary=texts
        )

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows."""
        self._rows.append(batch)
        if sum(len(rows) for rows in self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            parts = [pa.Table.from_batches([rows]) for rows in self._rows]
            rows = pa.concat_tables(parts, promote_options="default").unify_dictionaries()
            columns = [
                rows.column(field.name)
                if field.name in rows.column_names
                else pa.nulls(len(rows), field.type)
                for field in self._schema
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows = []

    def publish(self, *, synced: bool) -> None:
        """Write the rest, and give the file its name."""
        self._flush()
        self._writer.close()
        self._raw.close()
        if synced:
            sync(self._made)
        self._made.rename(self._goal)
        if synced:
            sync(self._goal.parent)

    def discard(self) -> None:
        """Remove what is not published."""
        with contextlib.suppress(OSError):
            self._raw.close()
        self._made.unlink(missing_ok=True)


def batches(journal: Path) -> Iterator[pa.RecordBatch]:
    """Every whole batch of a journal; the last may be torn, if its writer was killed."""
    with pa.OSFile(str(journal)) as source:
        size = source.size()
        while source.tell() < size:
            try:
                yield from list(pa.ipc.open_stream(source))
            except (pa.ArrowInvalid, OSError):  # cut off: nothing whole can follow
                return


def _by_hour(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows by hour since 1970 of their `time`."""
    hours = batch.column("time").view(pa.int64()).to_numpy() // _NS_PER_HOUR
    distinct = np.unique(hours).tolist()
    for hour in distinct:
        rows = batch if len(distinct) == 1 else batch.filter(pa.array(hours == hour))
        yield hour, rows


def _partition(hour: int) -> str:
    moment = datetime.fromtimestamp(hour * 3600, timezone.utc)
    return f"date={moment:%Y-%m-%d}/hour={moment:%H}"


@contextlib.contextmanager
def _locked(journal: Path) -> Iterator[bool]:
    """Whether no running tracer writes it; nobody else takes it meanwhile."""
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)
