"""Which files a report reads: found under the paths, told by kind, and what is not readable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from tracer.report.compressed import torn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

PARQUET = ".parquet"
JSON_LINES = (".jsonl", ".ndjson", ".json", ".log")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = b"PAR1"
"""A Parquet file begins and ends with it; the end is written last."""
SMALLEST_PARQUET_BYTES = 12


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not in the answers, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is read."""

    parquet: tuple[str, ...] = ()
    json_lines: tuple[str, ...] = ()
    empty: int = 0
    """Files without a byte: nothing was lost with them."""
    skipped: tuple[Skipped, ...] = ()


def find_inputs(paths: Sequence[Path]) -> Inputs:
    """Every Parquet and JSON-lines file that is named, or anywhere below a named directory.

    A backup's number may follow or precede the suffix (`flows.jsonl.3`, `flows.3.jsonl.gz`).
    Raises TracerError for a path that does not exist or cannot be read, for a named file of
    another kind, and when nothing was found.
    """
    parquet: list[str] = []
    lines: list[str] = []
    skipped, empty = [], 0
    for path in _files(paths):
        try:
            why = _unreadable(path)
            if path.stat().st_size == 0:
                empty += 1
                continue
        except OSError as error:  # not ours, or removed meanwhile by who writes there
            why = (error.strerror or str(error)).lower()
        if why:
            skipped.append(Skipped(str(path), why))
        else:
            (parquet if _is_parquet(path) else lines).append(str(path))
    if not (parquet or lines or skipped or empty):
        raise TracerError(
            f"{', '.join(map(str, paths))}: no Parquet or JSON-lines files",
            f"looked for *{PARQUET} and *{JSON_LINES[0]}, also {' and '.join(COMPRESSED)}",
        )
    return Inputs(tuple(parquet), tuple(lines), empty, tuple(skipped))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Each file once, in order of names."""
    seen = set()
    for path in paths:
        for file in _below(path):
            resolved = file.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield resolved


def _below(path: Path) -> Iterator[Path]:
    try:
        if path.is_dir():
            # A name that begins with a dot or ends with .tmp is still being written.
            yield from sorted(
                file
                for file in path.rglob("*")
                if _is_known(file) and not file.name.startswith(".") and file.is_file()
            )
            return
        with path.open("rb"):
            pass
    except OSError as error:
        raise TracerError(
            f"{path}: {(error.strerror or str(error)).lower()}", "name files or directories"
        ) from error
    if not _is_known(path):
        raise TracerError(
            f"{path}: neither Parquet nor JSON lines by its name",
            f"known: {', '.join((PARQUET, *JSON_LINES))}, JSON lines also with .gz or .zst",
        )
    yield path


def _suffixes(path: Path) -> list[str]:
    """The file's suffixes, without a backup's number."""
    return [suffix for suffix in path.suffixes if not suffix[1:].isdecimal()]


def _is_parquet(path: Path) -> bool:
    return _suffixes(path)[-1:] == [PARQUET]


def _is_known(path: Path) -> bool:
    suffixes = _suffixes(path)
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return bool(suffixes) and (
        suffixes[-1] in JSON_LINES or (suffixes[-1] == PARQUET and not packed)
    )


def compression(path: Path) -> str:
    """What DuckDB calls the way in which the file is packed."""
    return COMPRESSED.get(_suffixes(path)[-1], "uncompressed")


def _unreadable(path: Path) -> str:
    """Why a file is not whole; empty when it is, or has no byte. OSError."""
    with path.open("rb") as file:
        if not file.read(1):
            return ""
    return _torn_parquet(path) if _is_parquet(path) else _torn_lines(path)


def _torn_lines(path: Path) -> str:
    """Why a compressed file is not whole; empty when it is, or is not compressed."""
    packed = compression(path)
    return torn(path, packed) if packed in COMPRESSED.values() else ""


def _torn_parquet(path: Path) -> str:
    """Why the file is no whole Parquet file; empty when it is."""
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        if head != _MAGIC:
            return "not a Parquet file"
        if path.stat().st_size < SMALLEST_PARQUET_BYTES:
            return "torn: it has no footer"
        file.seek(-len(_MAGIC), 2)
        return "" if file.read() == _MAGIC else "torn: it has no footer"
