"""Which conntrack entries of a namespace are alive, by their events; what a dump corrects.

Rows are numpy records with the names of `ct_layout.ENTRY`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tracer.ct_layout import TUPLE, Event, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Correction:
    """What a dump showed that the events had not told."""

    alive: int
    """Entries in the table."""
    found: NDArray[np.void]
    """Entries that live, and whose birth was missed."""
    gone: int
    """Entries that no longer live, and whose death was missed."""


@dataclass(slots=True)
class Table:
    """The living entries of one namespace."""

    born_ns: dict[int, int] = field(default_factory=dict)
    """Key → when its birth was told, 0 where it was not: it was there before."""
    births: int = 0
    deaths: int = 0
    """Told by events."""
    _missed_births: set[int] = field(default_factory=set)
    _missed_deaths: set[int] = field(default_factory=set)

    @property
    def births_lost(self) -> int:
        """Entries of which only a dump told that they had come."""
        return len(self._missed_births)

    @property
    def deaths_lost(self) -> int:
        """Entries of which only a dump told that they had gone."""
        return len(self._missed_deaths)

    def follow(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """Apply events in their order; returns of each row when its entry was born, 0: unknown."""
        born = np.zeros(len(rows), np.int64)
        told = np.flatnonzero((rows["event"] == Event.NEW) | (rows["event"] == Event.DESTROY))
        some = rows[told]
        columns = (told, keys(some), some["event"], some["time_ns"])
        for row, key, event, time_ns in zip(*(c.tolist() for c in columns), strict=True):
            if event == Event.NEW:
                self.births += 1
                self.born_ns[key] = time_ns
                self._missed_births.discard(key)
            else:
                self.deaths += 1
                born[row] = self.born_ns.pop(key, 0)
                self._missed_deaths.discard(key)
        return born

    def correct(self, dump: Iterable[NDArray[np.void]], events: NDArray[np.void]) -> Correction:
        """Compare with a `dump`; `events` are all that were told until its end, not yet followed.

        Afterwards the events are to be followed, as if they came after the dump.
        """
        came = set(keys(events[events["event"] == Event.NEW]).tolist())
        went = set(keys(events[events["event"] == Event.DESTROY]).tolist())
        known = self.born_ns.keys() | came
        there: set[int] = set()
        strange = [events[:0]]
        for part in dump:
            # Of a dying entry the end has been told, though it is still in the table.
            living = part[(part["status"] & Status.DYING) == 0]
            told = keys(living).tolist()
            strange.append(living[[key not in known for key in told]])
            there.update(told)
        gone = self.born_ns.keys() - there - went
        found = there - known
        for key in gone:
            del self.born_ns[key]
        self.born_ns.update(dict.fromkeys(found, 0))
        self._missed_deaths |= gone
        self._missed_births |= found
        return Correction(len(there), np.concatenate(strange), len(gone))

    def begin(self, dump: Iterable[NDArray[np.void]], events: NDArray[np.void]) -> Correction:
        """Take over what lives when following begins: no birth of these was missed."""
        correction = self.correct(dump, events)
        self._missed_births.clear()
        return correction


def keys(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return (n,) what tells entries of one namespace apart: the kernel's id with the tuple.

    The id alone has 32 bits, too few for a table of a million.
    """
    tuples = np.ascontiguousarray(rows["orig"])
    words = tuples.view(np.uint64).reshape(len(rows), TUPLE.itemsize // 8)
    key = rows["id"].astype(np.uint64)
    with np.errstate(over="ignore"):
        for column in range(words.shape[1]):
            key = (key ^ words[:, column]) * _STEP
            key ^= key >> np.uint64(32)
        return np.asarray(key * _STEP)
