"""What a full disk cannot take: kept in memory up to a limit, then thrown away and counted."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from typing import TYPE_CHECKING

from tracer.files import NoRoomError

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_BYTES = 64 << 20
LOST_SOURCE = "disk_full"
"""`source` of the lost records that tell how many records found no room."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Encoded records that are written together; of lines, each keeps its end."""

    parts: tuple[bytes, ...]
    records: int

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A piece in pages of its own, which the kernel has back as soon as it is written.

    What the allocator once got it keeps, above all where small parts lie between others.
    """

    pages: mmap
    ends: array[int]
    """Of each part in `pages`."""
    records: int

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return self.ends[-1] if self.ends else 0

    def piece(self) -> Piece:
        """As it was."""
        starts = (0, *self.ends[:-1])
        parts = tuple(self.pages[at:end] for at, end in zip(starts, self.ends, strict=True))
        return Piece(parts, self.records)


def _waiting(piece: Piece) -> _Waiting:
    ends = array("Q", accumulate(map(len, piece.parts)))
    pages = mmap(-1, max(1, piece.size_bytes))
    for part in piece.parts:
        pages.write(part)
    return _Waiting(pages, ends, piece.records)


class Backlog:
    """Pieces on their way to a file, in order.

    `write` takes a piece and returns None, or raises NoRoomError; it may return the rest of a piece
    that fitted in part. `lost` makes the piece that tells of so many records thrown away.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Piece], Piece | None],
        lost: Callable[[int], Piece],
        tell: Callable[[str], None],
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._name, self._write, self._lost, self._tell = name, write, lost, tell
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._pieces: deque[_Waiting] = deque()
        self._full = False
        self._untold = 0
        self.thrown_away = 0
        """Records, since the start."""

    def put(self, piece: Piece) -> None:
        """Write what waits and then `piece`; what finds no room waits."""
        rest = self._attempt(piece) if self.flush() else piece
        if rest is not None:
            self._pieces.append(_waiting(rest))
            self._held_bytes += rest.size_bytes
        while self._held_bytes > self._limit_bytes:
            self._drop_oldest()

    def flush(self) -> bool:
        """Try to write all that waits; whether nothing waits any more."""
        while self._untold or self._pieces:
            untold = self._untold
            rest = self._attempt(self._lost(untold) if untold else self._pieces[0].piece())
            if rest is not None:
                if not untold:
                    self._held_bytes -= self._pieces[0].size_bytes - rest.size_bytes
                    self._pieces[0] = _waiting(rest)
                return False
            if untold:
                self._untold = 0
            else:
                self._held_bytes -= self._pieces.popleft().size_bytes
        if self._full:
            self._full = False
            lost = f"; {self.thrown_away} records were lost so far" if self.thrown_away else ""
            self._tell(f"over: {self._name}: there is room again{lost}")
        return True

    def give_up(self) -> None:
        """At the end: what still finds no room is lost, and said to be."""
        if not self.flush():
            while self._pieces:
                self._drop_oldest()
            self._tell(f"lost: {self._untold} records found no room in {self._name}")

    def _drop_oldest(self) -> None:
        piece = self._pieces.popleft()
        self._held_bytes -= piece.size_bytes
        self._untold += piece.records
        self.thrown_away += piece.records

    def _attempt(self, piece: Piece) -> Piece | None:
        """What of `piece` found no room; None when it is written."""
        try:
            return self._write(piece)
        except NoRoomError as error:
            if not self._full:
                self._full = True
                limit = f"{self._limit_bytes >> 20} MiB"
                self._tell(f"warning: {error.message}: records wait in memory, up to {limit}")
            return piece
