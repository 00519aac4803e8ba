"""A file or stdout that only ever holds whole lines."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from tracer.errors import TracerError

if TYPE_CHECKING:
    from pathlib import Path

_STDOUT = 1
_LONGEST_LINE = 1 << 20
_RECORD = b'{"'
"""How every JSON record begins."""


class Output:
    """Appends whole lines, each batch in one write(2).

    SIGKILL can stop even one write(2) between two pages, and a crash of the machine anywhere:
    what such an end left of a record is taken away when the file is opened again.
    """

    def __init__(self, path: Path | None) -> None:
        """Open `path` for appending, or take stdout; TracerError when that fails."""
        self.name = str(path) if path else "stdout"
        self._owned = path is not None
        self._fd = _open(path) if path else _STDOUT
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self.is_terminal = os.isatty(self._fd)
        if self._owned and self._regular:
            self._mend()

    def write(self, lines: bytes) -> None:
        """Append `lines`, which end with a newline, or are empty.

        Where the disk is full the lines that fit stay, whole, and TracerError is raised.
        BrokenPipeError is the caller's: the reader has gone.
        """
        if not self._owned:
            sys.stdout.flush()
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
        except BrokenPipeError:
            raise
        except OSError as error:
            self._cut(lines, written)
            raise TracerError(f"{self.name}: {_words(error)}", _hint(error)) from error

    def close(self) -> None:
        """Close the file; stdout stays open. May be called twice."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _mend(self) -> None:
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn.startswith(_RECORD):
            os.ftruncate(self._fd, size - len(torn))
        elif torn:
            # Not a record of ours: keep it, on a line of its own.
            self.write(b"\n")

    def _cut(self, lines: bytes, written: int) -> None:
        """Take back what was written of a line that did not fit."""
        torn = written - (lines.rfind(b"\n", 0, written) + 1)
        if self._regular and torn:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - torn)


def _open(path: Path) -> int:
    try:
        # O_RDWR: to see how an existing file ends. A FIFO or a device may be write-only to us.
        mode = os.O_RDWR if path.is_file() or not path.exists() else os.O_WRONLY
        return os.open(path, mode | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TracerError(f"{path}: {_words(error)}", _hint(error)) from error


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _hint(error: OSError) -> str:
    hints = {
        errno.ENOSPC: "make room on the disk; every line before is whole",
        errno.EDQUOT: "the quota is used up; every line before is whole",
        errno.EFBIG: "the file has reached the limit on its size (ulimit -f)",
        errno.EISDIR: "name a file in it",
        errno.ENOENT: "make its directory first",
        errno.ENOTDIR: "a part of the path is not a directory",
        errno.EROFS: "the file system is mounted read-only: choose another path",
    }
    return hints.get(error.errno or 0, "choose a path that can be written")
