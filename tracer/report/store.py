"""The records of many files as SQL views, and nothing but questions to them.

`flows` holds the records of packets (types `flow` and `drop`) in the asked period, with every
column of `columns.COLUMNS`; `ways` the same with a row for each direction and end, whatever way
they were told; `losses` what tracer told it had lost (`file`, `source`, `count`).
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from tracer.errors import TracerError
from tracer.flow_table import SCHEMA_VERSION
from tracer.report.columns import COLUMNS
from tracer.report.inputs import Skipped, compression
from tracer.report.ways import ways_sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracer.report.inputs import Inputs

SCHEMA_KEY = "tracer.schema_version"
"""Where a Parquet file tells the version of its columns."""
QUESTIONS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
AS_TEXT = ("DATE", "TIME", "INTERVAL", "UUID", "BLOB")
_NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|DOUBLE|FLOAT|DECIMAL.*")
PACKET_TYPES = ("flow", "drop")
LONGEST_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` to before `until`: RFC 3339 in UTC without its Z, or None for no end."""

    since: str | None = None
    until: str | None = None

    def condition(self) -> str:
        """SQL that holds for a record's time."""
        ends = ((">=", self.since), ("<", self.until))
        return " AND ".join(f"time {sign} {quoted(end)}::TIMESTAMP_NS" for sign, end in ends if end)


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of one question; times are text in UTC, all else as DuckDB gives it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, and what was not."""

    files: int
    empty: int
    torn_lines: int
    """Lines that are no JSON object: cut by a crash, or not ours."""
    skipped: tuple[Skipped, ...]


def quoted(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """`column` as an SQL name: ours hold dots."""
    return '"' + column.replace('"', '""') + '"'


class Store:
    """One in-memory database over the files; a context manager.

    JSON lines are parsed once, into a table that may spill to the temporary directory; Parquet is
    read column by column with each question.
    """

    def __init__(self, inputs: Inputs, period: Period, memory: str = "") -> None:
        """Open the files; `memory` (`4GB`) bounds DuckDB's, by default most of the machine's.

        TracerError when none of them can be read, or one is of another version.
        """
        self._closing = contextlib.ExitStack()
        spill = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="tracer-report-"))
        self._db = duckdb.connect(
            ":memory:",
            config={
                "temp_directory": spill,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        self._closing.callback(self._db.close)
        try:
            self._limit(memory)
            self._load(inputs, period)
        except BaseException:
            self._closing.close()
            raise

    def __enter__(self) -> Store:  # noqa: PYI034 - typing.Self is 3.11's
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def ask(self, sql: str) -> Answer:
        """Answer one question of ours; TracerError names a file that cannot be read to its end."""
        with self._reading():
            return _answer(self._db.sql(sql))

    def ask_freely(self, sql: str) -> Answer:
        """Answer a question of the user's: one SELECT; TracerError says what is wrong with it."""
        try:
            kinds = [statement.type for statement in self._db.extract_statements(sql)]
            if len(kinds) != 1 or kinds[0] not in QUESTIONS:
                raise TracerError(
                    "--sql: not one question", "one SELECT (or FROM, SUMMARIZE, DESCRIBE, EXPLAIN)"
                )
            return self.ask(sql)
        except duckdb.Error as error:
            raise _explained(error) from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What is wrong with a file becomes a TracerError; what is wrong with the SQL does not."""
        try:
            yield
        except duckdb.ProgrammingError:
            raise
        except duckdb.Error as error:
            told = self._unread(error)
            if told is None:
                raise
            raise told from error

    def _unread(self, error: duckdb.Error) -> TracerError | None:
        """What is to be told where files are the reason; None where they are whole."""
        if isinstance(error, duckdb.OutOfMemoryException):
            return _too_little_memory(error)
        for path in self._parquet:
            try:
                self._db.execute(f"SELECT max(COLUMNS(*)::TEXT) FROM read_parquet({quoted(path)})")
            except duckdb.Error as reason:
                hint = "damaged, or removed meanwhile: leave it out, and run it again"
                return TracerError(f"{path}: {_torn(reason)}", hint)
        return None

    # Loading

    def _limit(self, memory: str) -> None:
        try:
            if memory:
                self._db.execute(f"SET memory_limit = {quoted(memory)}")
        except duckdb.Error as error:
            raise TracerError(f"--memory '{memory}': not understood", "--memory 4GB") from error

    def _load(self, inputs: Inputs, period: Period) -> None:
        self._db.execute("SET TimeZone = 'UTC'")
        self._db.execute("SET enable_progress_bar = false")
        parquet, unreadable = self._parquet_schemas(inputs.parquet)
        torn = self._read_json_lines(inputs.json_lines, period, unreadable)
        skipped = (*inputs.skipped, *unreadable)
        read = len(inputs.parquet) + len(inputs.json_lines) - len(unreadable)
        self.loaded = Loaded(read, inputs.empty, torn, skipped)
        if skipped and not read:
            more = f" (and {len(skipped) - 1} more)" if skipped[1:] else ""
            raise TracerError(
                f"{skipped[0].path}{more}: {skipped[0].why}", "no file here could be read"
            )
        self._parquet = tuple(path for paths in parquet.values() for path in paths)
        with self._reading():
            self._make_views(parquet, period)
        allowed = ", ".join(quoted(path) for path in inputs.parquet)
        self._db.execute(f"SET allowed_paths = [{allowed}]")
        self._db.execute("SET enable_external_access = false")
        self._db.execute("SET lock_configuration = true")

    def _parquet_schemas(
        self, paths: tuple[str, ...]
    ) -> tuple[dict[tuple[str, ...], list[str]], list[Skipped]]:
        """Whole files by the names of their partitions; and those that DuckDB cannot read."""
        groups: dict[tuple[str, ...], list[str]] = {}
        unreadable = []
        for path in paths:
            try:
                found = self._db.execute(
                    f"SELECT decode(value) FROM parquet_kv_metadata({quoted(path)})"
                    f" WHERE decode(key) = {quoted(SCHEMA_KEY)}"
                ).fetchone()
                why = "" if found else self._alien(path)
            except duckdb.Error as error:
                why = _torn(error)
            if why:
                unreadable.append(Skipped(path, why))
                continue
            _check_version(path, found[0] if found else None)
            keys = tuple(re.findall(r"([^/=]+)=[^/]+/", path))
            groups.setdefault(keys, []).append(path)
        return groups, unreadable

    def _alien(self, path: str) -> str:
        """Why a file that tracer did not write holds no records of ours; empty when it does."""
        found = self._db.execute(f"DESCRIBE SELECT * FROM read_parquet({quoted(path)})").fetchall()
        columns = {row[0]: str(row[1]) for row in found}
        if "type" not in columns:
            return "holds no records of tracer (flows --format parquet)"
        for column, kind in COLUMNS.items():
            if column in columns and _family(columns[column]) != _family(kind):
                return f"its column {column} is {columns[column]}, not {kind}"
        return ""

    def _read_json_lines(
        self, paths: Iterable[str], period: Period, unreadable: list[Skipped]
    ) -> int:
        """Fill the table `json_lines`; returns how many lines were not a record."""
        columns = ", ".join(f"{name(column)} {kind}" for column, kind in COLUMNS.items())
        self._db.execute(f"CREATE TABLE json_lines ({columns}, file VARCHAR)")
        types = ", ".join(f"{quoted(column)}: {quoted(kind)}" for column, kind in COLUMNS.items())
        wanted = period.condition() or "true"
        torn = 0
        for path in paths:
            packed = compression(Path(path))
            try:
                self._db.execute(
                    f"INSERT INTO json_lines SELECT *, {quoted(path)} FROM read_json("
                    f"{quoted(path)}, format = 'newline_delimited', ignore_errors = true,"
                    f" compression = '{packed}', columns = {{{types}}}, hive_partitioning = false,"
                    f" maximum_object_size = {LONGEST_LINE_BYTES})"
                    f" WHERE time IS NULL OR ({wanted})"
                )
            except duckdb.Error as error:
                unreadable.append(Skipped(path, _torn(error)))
                continue
            torn += self._forget_torn(path, unreadable)
        return torn

    def _forget_torn(self, path: str, unreadable: list[Skipped]) -> int:
        """Take away the lines without a type, which every record has; returns how many."""
        row = self._db.execute(
            "SELECT count(*), count(type) FROM json_lines WHERE file = ?", [path]
        ).fetchone()
        lines, records = row or (0, 0)
        if lines and not records:
            unreadable.append(Skipped(path, "holds no flat records (flows --format flat)"))
        if lines != records:
            self._db.execute("DELETE FROM json_lines WHERE type IS NULL")
        return int(lines - records) if records else 0

    def _make_views(self, parquet: dict[tuple[str, ...], list[str]], period: Period) -> None:
        """`records` of everything, then what the questions are about."""
        parts = ["SELECT * FROM json_lines"]
        parts += [self._parquet_part(paths, bool(keys)) for keys, paths in parquet.items()]
        self._db.execute(f"CREATE VIEW records AS {' UNION ALL BY NAME '.join(parts)}")
        types = ", ".join(quoted(kind) for kind in PACKET_TYPES)
        conditions = [f"coalesce(type, 'flow') IN ({types})"]
        conditions += [period.condition()] if period.condition() else []
        self._db.execute(
            "CREATE VIEW flows AS SELECT * EXCLUDE (source, count) FROM records"
            f" WHERE {' AND '.join(conditions)}"
        )
        told = self._db.sql('FROM flows WHERE "flow.reverse.packets" >= 0 LIMIT 1').fetchall()
        ways = ways_sql() if told else "SELECT *, 0 AS way FROM flows"
        self._db.execute(f"CREATE VIEW ways AS {ways}")
        self._db.execute(
            "CREATE VIEW losses AS SELECT file, source, count FROM records WHERE type = 'lost'"
        )

    def _parquet_part(self, paths: list[str], partitioned: bool) -> str:  # noqa: FBT001 - private
        """A SELECT of all columns, those that no file has as NULL, from files laid out alike."""
        files = ", ".join(quoted(path) for path in paths)
        table = (
            f"read_parquet([{files}], union_by_name = true, filename = 'file',"
            f" hive_partitioning = {'true' if partitioned else 'false'})"
        )
        there = [row[0] for row in self._db.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()]
        ours = [
            f"{name(column) if column in there else 'NULL'}::{kind} AS {name(column)}"
            for column, kind in COLUMNS.items()
        ]
        more = [name(column) for column in there if column not in COLUMNS]
        return f"SELECT {', '.join([*ours, *more])} FROM {table}"


def _answer(relation: duckdb.DuckDBPyRelation) -> Answer:
    cells = [_readable(f"#{at}", str(kind)) for at, kind in enumerate(relation.types, 1)]
    return Answer(tuple(relation.columns), tuple(relation.project(", ".join(cells)).fetchall()))


def _readable(cell: str, kind: str) -> str:
    """SQL of a cell as Python has it: times with nanoseconds are text, as in the records."""
    if kind.startswith("TIMESTAMP") and not kind.endswith("]"):
        return f"strftime({cell}, '%Y-%m-%dT%H:%M:%S.%n') || 'Z'"
    if kind.startswith("DECIMAL"):
        return f"{cell}::DOUBLE"
    return f"{cell}::VARCHAR" if kind in AS_TEXT else cell


def _check_version(path: str, version: str | None) -> None:
    if version is not None and version != str(SCHEMA_VERSION):
        raise TracerError(
            f"{path}: schema version {version}; this tracer reads version {SCHEMA_VERSION}",
            "use the release of tracer that wrote it, or a newer one",
        )


def _family(kind: str) -> str:
    """Types that can be cast into each other without a look at the values."""
    if kind.startswith(("VARCHAR", "ENUM")):
        return "text"
    if kind.startswith(("TIMESTAMP", "BOOLEAN")):
        return kind[:7]
    return "number" if _NUMBER.fullmatch(kind) else kind


def _torn(error: duckdb.Error) -> str:
    """Why a file cannot be read, without its path, which DuckDB repeats."""
    if isinstance(error, duckdb.OutOfMemoryException):
        raise _too_little_memory(error) from error
    line = str(error).splitlines()[0].lower()
    text = line.partition(": ")[2] or line
    return f"torn: {re.split(r': /| in file ', text)[0]}"


def _too_little_memory(error: duckdb.Error) -> TracerError:
    text = str(error).splitlines()[0].partition(": ")[2].lower()
    return TracerError(f"--memory: too little: {text}", "--memory 1GB, or --since, --until")


def _explained(error: duckdb.Error) -> TracerError:
    """DuckDB's words, and what they mostly mean here."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[0]
    if isinstance(error, duckdb.PermissionException):
        hint = "a question reads the views flows and losses, no other files"
    elif isinstance(error, duckdb.BinderException) and "Referenced" in message:
        hint = 'names with dots stand in double quotes: "src.address"; DESCRIBE flows lists them'
    else:
        hint = next(
            (line for line in lines[1:] if "Did you mean" in line or "Candidate" in line),
            "DuckDB's SQL; DESCRIBE flows lists the columns",
        )
    return TracerError(f"--sql: {message}", hint)
