"""A file of lines that gives way to a new one by size and age, and never shows half a line.

Two ways, by what the format allows:

live: lines are seen as they come. The kernel copies a write(2) into the page cache page by page
and looks for SIGKILL between two pages only, so each page of it is there whole or not at all. No
line here crosses the end of a page: one that would is preceded by blanks up to there, in front of
the newline of the line before it, where JSON allows them. What lines are longer than half a page,
may cross.

published: the file grows under a hidden name, and gets its own when it is whole.

A crash of the machine, or a file system that works otherwise, may still leave a torn line: it is
cut off when the file is opened again.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from tracer.files import NO_ROOM, PAGE_BYTES, NoRoomError, open_for_append, unwritable
from tracer.sinks import rotation
from tracer.sinks.backlog import Piece
from tracer.sinks.output import mend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tracer.sinks.rotation import Policy

ROOM_BYTES = PAGE_BYTES // 2
"""What a batch leaves of its last page at least, or nothing: room for the next batch's first."""
_MOST_BYTES = 1 << 16
"""Of one write; of a live file at most one of _WRITES parts of it, to keep to its size."""
_WRITES = 64


@dataclass(slots=True)
class _Chunk:
    """Whole lines for one write."""

    data: bytearray
    lines: int


def paged(lines: Sequence[bytes], at_bytes: int, most_bytes: int = PAGE_BYTES) -> Iterator[_Chunk]:
    """Lines for a file of `at_bytes`, padded so that none crosses the end of a page.

    Each line ends with a newline, before which blanks may stand. A chunk has whole pages, behind
    the first, up to `most_bytes` or one page more; the last one ends where the lines do.
    """
    room = PAGE_BYTES - at_bytes % PAGE_BYTES
    data, count = bytearray(), 0
    for line in lines:
        if len(line) > room and room < PAGE_BYTES and count:
            _pad(data, room)
            room = PAGE_BYTES
        if room == PAGE_BYTES and len(data) >= most_bytes:
            yield _Chunk(data, count)
            data, count = bytearray(), 0
        data += line
        count += 1
        room = (room - len(line)) % PAGE_BYTES or PAGE_BYTES
    if count:
        if room < ROOM_BYTES:
            _pad(data, room)
        yield _Chunk(data, count)


def _pad(data: bytearray, blanks: int) -> None:
    data[-1:] = b" " * blanks + b"\n"


def _joined(lines: Sequence[bytes]) -> Iterator[_Chunk]:
    chunk = _Chunk(bytearray(), 0)
    for line in lines:
        chunk.data += line
        chunk.lines += 1
        if len(chunk.data) >= _MOST_BYTES:
            yield chunk
            chunk = _Chunk(bytearray(), 0)
    if chunk.lines:
        yield chunk


class LineFile:
    """The file `path` and its backups. `path` is the newest: it grows, or it was published last."""

    def __init__(
        self,
        path: Path,
        policy: Policy,
        tell: Callable[[str], None],
        *,
        live: bool,
        header: bytes = b"",
    ) -> None:
        """Go on with what is there; TracerError when it cannot be written or another one does.

        `header` begins each file; only one that is published when whole may have one.
        """
        self.name = str(path)
        self._path, self._policy, self._tell = path, policy, tell
        self._live, self._header = live, header
        self._grows = path if live else rotation.partial(path)
        self._fd = self._size = -1
        self._head_bytes = 0
        """Of the header as this file has it: a killed run of other fields left another one."""
        self._opened_s = 0.0
        self._told_removal = False
        try:
            rotation.resume(path)
            self._open()
            if not live and self._has_records:
                self.rotate()  # what a killed run left
        except OSError as error:
            raise unwritable(self.name, error) from error

    def write(self, piece: Piece) -> Piece | None:
        """Append lines, and return those that found no room.

        NoRoomError when none did; TracerError for other refusals.
        """
        lines, done = piece.parts, 0
        try:
            while done < len(lines):
                if self._fd < 0:
                    self._open()
                for chunk in self._chunks(lines[done:]):
                    if self._has_records and self._is_too_much(len(chunk.data)):
                        self.rotate()
                        break
                    self._put(chunk.data)
                    done += chunk.lines
            if self._policy.fsync == "batch":
                os.fsync(self._fd)
        except OSError as error:
            refused = unwritable(self.name, error)
            if not done or not isinstance(refused, NoRoomError):
                raise refused from error
            rest = lines[done:]
            return Piece(rest, len(rest)) if rest else None
        return None

    def tick(self) -> None:
        """Rotate if the file is old enough."""
        age_s = time.monotonic() - self._opened_s
        if self._policy.max_age_s and age_s >= self._policy.max_age_s and self._fd >= 0:
            self._unless_full(self.rotate)

    def reopen(self) -> None:
        """Begin a new file; a live one that somebody has moved away stays where it is."""
        if self._live:
            self._close()
            self._unless_full(self._open)
        else:
            self._unless_full(self.rotate)

    def rotate(self) -> None:
        """Begin a new file, unless this one is empty; OSError when the disk refuses."""
        if self._has_records:
            self._give_way()
            self._open()
        self._opened_s = time.monotonic()

    def close(self) -> None:
        """Publish what is whole, and close. May be called twice."""
        if self._size < 0:
            return
        if not self._live and (self._has_records or not self._path.exists()):
            self._unless_full(self._give_way)
        elif not self._live:
            self._grows.unlink(missing_ok=True)
        self._close()
        self._size = -1

    def _give_way(self) -> None:
        """Close the file; what was at `path` becomes a backup, a published one takes its place."""
        self._close()
        removed = 0
        if self._path.exists():
            new_bytes = 0 if self._live else self._size
            removed = rotation.shift(
                self._path, time.time_ns(), self._policy, self._tell, new_bytes
            )
        if not self._live:
            self._grows.rename(self._path)
        if removed and not self._told_removal:
            self._told_removal = True
            self._tell(f"{self.name}: old backups are removed from now on")

    @property
    def _has_records(self) -> bool:
        return self._size > self._head_bytes

    def _is_too_much(self, more_bytes: int) -> bool:
        most = self._policy.max_bytes
        return most is not None and self._size + more_bytes > most

    def _chunks(self, lines: Sequence[bytes]) -> Iterator[_Chunk]:
        if not self._live:
            return _joined(lines)
        most = self._policy.max_bytes or _MOST_BYTES * _WRITES
        return paged(lines, self._size, min(_MOST_BYTES, most // _WRITES))

    def _open(self) -> None:
        fd = open_for_append(self._grows)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise TracerError(
                f"{self.name}: another tracer writes it", "name another file"
            ) from None
        self._fd, self._opened_s = fd, time.monotonic()
        mend(fd, ours=not self._live)
        self._size = os.fstat(fd).st_size
        if not self._header:
            return
        self._head_bytes = os.pread(fd, _MOST_BYTES, 0).find(b"\n") + 1
        if not self._has_records:
            os.ftruncate(fd, 0)
            self._size, self._head_bytes = 0, len(self._header)
            self._put(bytearray(self._header))

    def _put(self, data: bytearray) -> None:
        """Write `data` whole, or nothing of it and raise OSError."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, memoryview(data)[done:])
        except OSError:
            if done:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += done

    def _close(self) -> None:
        if self._fd >= 0:
            if self._policy.fsync != "never":
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _unless_full(self, work: Callable[[], None]) -> None:
        """Do what a full disk may put off: the next write tries again, and says so."""
        try:
            work()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise unwritable(self.name, error) from error
