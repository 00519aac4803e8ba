"""Files that hold whole pieces only, and what is said when the system refuses one."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from tracer.errors import TracerError

if TYPE_CHECKING:
    from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
"""What a write(2) that is killed leaves whole: see line_file."""
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Refusals that may pass: somebody makes room."""


class NoRoomError(TracerError):
    """There is no room to write to; nothing of what was to be written stays."""


class PieceFile:
    """A file of our own format that grows by whole pieces, each in one write(2).

    Where the disk is full, what fitted of a piece is taken back. SIGKILL may stop a write
    between two pages: readers of such a file have to bear a torn last piece.
    """

    def __init__(self, path: Path, magic: bytes, *, keep: bool = False) -> None:
        """Open `path` anew, or `keep` what it holds; it may be a pipe or a device.

        TracerError when it cannot be written, when another process writes it, and when it is
        a file that does not begin with `magic`: what we did not make is not overwritten.
        """
        self.name = str(path)
        try:
            self._fd = open_for_append(path)
        except OSError as error:
            raise unwritable(self.name, error) from error
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if self._regular:
            self._take_over(magic)
            if not keep:
                os.ftruncate(self._fd, 0)

    def append(self, piece: bytes) -> None:
        """Write `piece` whole; NoRoomError where it does not fit, TracerError for other refusals.

        BrokenPipeError is the caller's: the reader has gone.
        """
        written = 0
        try:
            while written < len(piece):
                written += os.write(self._fd, piece[written:] if written else piece)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._regular and written:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise unwritable(self.name, error) from error

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take_over(self, magic: bytes) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.pread(self._fd, len(magic), 0) in (b"", magic)
        except BlockingIOError:
            self.close()
            raise TracerError(
                f"{self.name}: another tracer writes it", "name another file"
            ) from None
        if not ours:
            self.close()
            raise TracerError(
                f"{self.name}: exists and holds something else", "remove it, or name another file"
            )


def open_for_append(path: Path) -> int:
    """Descriptor of a file to append to, made if need be; OSError as open(2)."""
    # O_RDWR: to see what an existing file is. A FIFO or a device may be write-only to us.
    mode = os.O_RDWR if path.is_file() or not path.exists() else os.O_WRONLY
    return os.open(path, mode | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def sync(path: Path) -> None:
    """Have the disk hold what is written to a file, or what is in a directory; OSError as fsync."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unwritable(name: str, error: OSError) -> TracerError:
    """What to tell of a file that could not be opened or written, with a hint."""
    hints = {
        errno.ENOSPC: "make room on the disk; all that was written before is whole",
        errno.EDQUOT: "the quota is used up; all that was written before is whole",
        errno.EFBIG: "the file has reached the limit on its size (ulimit -f)",
        errno.EISDIR: "name a file in it",
        errno.ENOENT: "make its directory first",
        errno.ENOTDIR: "a part of the path is not a directory",
        errno.EROFS: "the file system is mounted read-only: choose another path",
    }
    kind = NoRoomError if error.errno in NO_ROOM else TracerError
    return kind(
        f"{name}: {(error.strerror or str(error)).lower()}",
        hints.get(error.errno or 0, "choose a path that can be written"),
    )
