"""A file or stdout that only ever holds whole lines."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

from tracer.files import open_for_append, unwritable

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
            mend(self._fd)

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
            raise unwritable(self.name, error) from error

    def close(self) -> None:
        """Close the file; stdout stays open. May be called twice."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _cut(self, lines: bytes, written: int) -> None:
        """Take back what was written of a line that did not fit."""
        torn = written - (lines.rfind(b"\n", 0, written) + 1)
        if self._regular and torn:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - torn)


def mend(fd: int, *, ours: bool = False) -> None:
    """Take half a record off the end of a file; of what is not `ours` make a line of its own."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
    torn = tail[tail.rfind(b"\n") + 1 :]
    if ours or torn.startswith(_RECORD) or not torn.strip(b" \0"):
        os.ftruncate(fd, size - len(torn))
    elif torn:
        # Not a record of ours: keep it, on a line of its own.
        os.write(fd, b"\n")


def _open(path: Path) -> int:
    try:
        return open_for_append(path)
    except OSError as error:
        raise unwritable(str(path), error) from error
