"""Files that gave way to a newer one: named by time, compressed a generation later, then removed.

Where the clock was set back, names go on from the newest there is: they always sort by age.
A backup is compressed when the next one comes, never while a reader may still be at its end, and
under a name of its own that is only taken once the whole is there: killed at any moment, every
backup is whole, compressed or not.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import IO, TYPE_CHECKING

from tracer.errors import TracerError
from tracer.files import sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}
FSYNC = ("never", "rotate", "batch")
_STAMP, _ANY_STAMP = "%Y-%m-%dT%H-%M-%S.%f", "????-??-??T??-??-??.??????"
"""What names of backups have behind the file's, and as a pattern of glob."""
HIDDEN = "."
"""What a name begins with while its file is not whole: readers of a directory pass it over."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a file gives way, and what becomes of it."""

    max_bytes: int | None = 10_000_000
    max_age_s: float | None = None
    max_backups: int | None = 5
    compress: str = "none"
    """One of SUFFIXES."""
    budget_bytes: int | None = None
    """For all files together."""
    fsync: str = "never"
    """`rotate`: a file when it is whole; `batch`: after each write, too."""

    @property
    def rotates(self) -> bool:
        """Whether anything makes a file give way."""
        return bool(self.max_bytes or self.max_age_s)

    def __post_init__(self) -> None:
        """Refuse a budget that not even one file keeps."""
        if self.budget_bytes and self.budget_bytes < 2 * (self.max_bytes or 0):
            raise TracerError(
                "--file-max-total: less than two files of --file-max-size",
                "one that grows and one that is whole must fit",
            )


def partial(path: Path) -> Path:
    """What `path` is called while it is not whole: hidden, beside it."""
    return path.with_name(f"{HIDDEN}{path.name}.part")


def backup_name(path: Path, when_ns: int, older: Sequence[Path] = ()) -> Path:
    """`flows.jsonl` → `flows-2026-11-22T21-40-00.123456.jsonl`, UTC, so that names sort by age.

    Also where the clock was set back: it is named behind the last of `older`, which are sorted.
    """
    moment = datetime.fromtimestamp(when_ns / 1e9, timezone.utc)
    moment = behind(moment, next(_moments(path, reversed(older)), None))
    return path.with_name(f"{path.stem}-{moment.strftime(_STAMP)}{path.suffix}")


def behind(moment: datetime, last: datetime | None) -> datetime:
    """`moment`, or the next microsecond after `last` where the clock was set back since."""
    return last + timedelta(microseconds=1) if last and last >= moment else moment


def _moments(path: Path, files: Iterable[Path]) -> Iterator[datetime]:
    """When backups of `path` were made, by their names."""
    for one in files:
        stamp = one.name[len(path.stem) + 1 :][: len(_ANY_STAMP)]
        with contextlib.suppress(ValueError):  # somebody else named it
            yield datetime.strptime(stamp, _STAMP).replace(tzinfo=timezone.utc)


def backups(path: Path) -> list[Path]:
    """Backups of `path`, oldest first, compressed ones as well."""
    found = {
        one
        for suffix in SUFFIXES.values()
        for one in path.parent.glob(f"{_escaped(path.stem)}-{_ANY_STAMP}{path.suffix}{suffix}")
    }
    return sorted(found, key=lambda one: one.name)


def _escaped(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def shift(
    path: Path, when_ns: int, policy: Policy, tell: Callable[[str], None], new_bytes: int = 0
) -> int:
    """Make a backup of `path`, compress those before it; how many were removed by the policy.

    `new_bytes` has the file that takes its place, where that is whole already. OSError as rename;
    where the others cannot be compressed for want of room they stay as they are.
    """
    older = backups(path)
    path.rename(backup_name(path, when_ns, older))
    if policy.fsync != "never":
        sync(path.parent)
    packed = tuple(path.suffix + suffix for suffix in SUFFIXES.values() if suffix)
    for one in older:
        if policy.compress != "none" and not one.name.endswith(packed):
            _compress(one, policy, tell)
    return prune(backups(path), policy, new_bytes)


def prune(files: Iterable[Path], policy: Policy, beside_bytes: int = 0) -> int:
    """Remove the oldest of `files` until the policy holds; how many went.

    The budget leaves room for a file that still grows, and for `beside_bytes` of others.
    """
    kept = list(files)
    sizes = [_size(one) for one in kept]
    room = None
    if policy.budget_bytes is not None:
        room = policy.budget_bytes - (policy.max_bytes or 0) - beside_bytes
    gone = 0
    while kept[gone:] and (
        (policy.max_backups is not None and len(kept) - gone > policy.max_backups)
        or (room is not None and sum(sizes[gone:]) > room)
    ):
        with contextlib.suppress(FileNotFoundError):
            kept[gone].unlink()
        gone += 1
    return gone


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _compress(path: Path, policy: Policy, tell: Callable[[str], None]) -> None:
    goal = path.with_name(path.name + SUFFIXES[policy.compress])
    made = partial(goal)
    try:
        with path.open("rb") as whole, made.open("wb") as raw, _packer(raw, policy) as packed:
            shutil.copyfileobj(whole, packed, 1 << 20)
        if policy.fsync != "never":
            sync(made)
        made.rename(goal)
        path.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            made.unlink()
        tell(f"warning: {path}: not compressed: {(error.strerror or str(error)).lower()}")


def _packer(raw: IO[bytes], policy: Policy) -> contextlib.AbstractContextManager[IO[bytes]]:
    if policy.compress == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6)  # type: ignore[return-value]
    import zstandard  # noqa: PLC0415 - only who wants it waits for it

    return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)


def resume(path: Path) -> None:
    """Clear away what a killed compression left beside `path`: half a file, or the plain one."""
    for suffix in filter(None, SUFFIXES.values()):
        for half in path.parent.glob(f"{HIDDEN}{_escaped(path.stem)}-*{suffix}.part"):
            half.unlink()
        for one in backups(path):
            if one.suffix == suffix and one.with_suffix("").exists():
                one.with_suffix("").unlink()
