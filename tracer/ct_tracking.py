"""Keeps conntrack tables of namespaces true: events, losses, and dumps that make up for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracer.analysis.ct_death import EARLY_DROP, deaths, maybe_early_dropped, tells_timeout
from tracer.analysis.ct_table import Table
from tracer.inventory.namespaces import run_in
from tracer.netfilter.ct_follow import Follower

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from tracer.analysis.ct_death import Death
    from tracer.analysis.ct_table import Correction

SETTLE_S = 0.001
"""An entry is in the table a moment before its birth is told."""
RESYNC_SHARE = 1 / 4
"""Most of the time that dumps may take while losses go on."""
LOOK_SHARE = 1 / 100
"""Most of the time that reading counters may take."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one namespace, in their order."""

    rows: NDArray[np.void]
    born_ns: NDArray[np.int64]
    """Of each row, when its entry was born; 0 where that is not known."""
    deaths: Mapping[int, Death]
    """Row → why the entry ended."""


@dataclass(slots=True)
class _Space:
    """What is known of one namespace."""

    table: Table = field(default_factory=Table)
    pending: list[NDArray[np.void]] = field(default_factory=list)
    """Events that were read while a dump was compared."""
    counters: dict[str, int] = field(default_factory=dict)
    early_drops: int = 0
    """The kernel's count of early drops, of which every event so far has been told as such."""
    unsynced: int = 0
    """Messages lost since the last dump."""
    due_s: float = 0.0


class Tracker:
    """The tables of every followed namespace, and what became of their entries."""

    def __init__(self, groups: Collection[str], buffer_bytes: int) -> None:
        """`groups`: names of ctnetlink.GROUPS, `new` and `destroy` among them."""
        self.follower = Follower(run_in, groups, buffer_bytes)
        self._spaces: dict[int, _Space] = {}
        self._told = False
        self._look_s = 0.0
        self.lost = 0
        """Messages that the kernel could not deliver."""
        self._told_lost = 0
        self._ended: dict[str, int] = {}

    def follow(self, wanted: Mapping[int, str]) -> list[str]:
        """Follow just `wanted` (inode → path); returns what could not be."""
        self._count_losses()  # of those that are let go, for the last time
        opened, problems = self.follower.update(wanted)
        for netns in self._spaces.keys() - set(self.follower.followed):
            self._add_up(self._spaces.pop(netns).table)
        for netns in opened:
            space = self._spaces[netns] = _Space()
            space.counters = self.follower.counters(netns)
            space.early_drops = space.counters.get("early_drop", 0)
            space.pending.append(self._compare(netns, first=True)[1])
        return problems

    def _compare(self, netns: int, *, first: bool = False) -> tuple[Correction, NDArray[np.void]]:
        """Correct the table by a dump; the events until then are still to be followed."""
        table = self._spaces[netns].table
        parts = list(self.follower.dump(netns))
        time.sleep(SETTLE_S)
        events = self.follower.drain(netns)
        compare = table.begin if first else table.correct
        return compare(parts, events), events

    def read(self, *, last: bool = False) -> Iterator[Batch]:
        """Yield events that wait: of each namespace a buffer's, or, the `last` time, all."""
        take = self.follower.drain if last else self.follower.read
        waiting = {netns for netns, space in self._spaces.items() if space.pending}
        for netns in waiting:
            space = self._spaces[netns]
            for rows in space.pending:
                yield self._batch(netns, rows)
            space.pending.clear()
        for netns in self.follower.ready():
            if netns in self._spaces:
                yield self._batch(netns, take(netns))

    def _batch(self, netns: int, rows: NDArray[np.void]) -> Batch:
        space = self._spaces[netns]
        self._told = self._told or tells_timeout(rows)
        counted = space.early_drops
        if maybe_early_dropped(rows).any():
            counted = self.follower.counters(netns).get("early_drop", 0)
        # The counter may be ahead of the events: those it has counted are still to come.
        ended = deaths(rows, told=self._told, early_dropped=counted > space.early_drops)
        space.early_drops += sum(death is EARLY_DROP for death in ended.values())
        space.early_drops = min(space.early_drops, counted)
        return Batch(rows, space.table.follow(rows), ended)

    def _count_losses(self) -> None:
        for netns, count in self.follower.new_losses().items():
            self.lost += count
            self._spaces[netns].unsynced += count

    def new_losses(self) -> int:
        """Messages lost since the last call, in all namespaces."""
        self._count_losses()
        new, self._told_lost = self.lost - self._told_lost, self.lost
        return new

    def resynchronise(self, *, last: bool = False) -> Iterator[tuple[int, int, Correction]]:
        """Dump where messages were lost: yields (netns, messages lost, what the dump showed).

        While losses go on, dumps take no more than RESYNC_SHARE of the time, but for the `last`.
        """
        for netns, space in self._spaces.items():
            begun_s = time.monotonic()
            if not space.unsynced or (begun_s < space.due_s and not last):
                continue
            lost, space.unsynced = space.unsynced, 0
            # Which of them were early drops is lost, too.
            space.early_drops = self.follower.counters(netns).get("early_drop", 0)
            correction, events = self._compare(netns)
            space.pending.append(events)
            space.due_s = time.monotonic() + (time.monotonic() - begun_s) / RESYNC_SHARE
            yield netns, lost, correction

    def failures(self, *, last: bool = False) -> Iterator[tuple[int, dict[str, int]]]:
        """Yield (netns, counter → how much it has grown) where a counter has, since the last call.

        Looks no more often than LOOK_SHARE allows, unless it is the `last` time.
        """
        begun_s = time.monotonic()
        if begun_s < self._look_s and not last:
            return
        for netns, space in self._spaces.items():
            counters = self.follower.counters(netns)
            grown = {
                name: (value - space.counters.get(name, 0)) & 0xFFFFFFFF
                for name, value in counters.items()
                if name != "cpu" and value != space.counters.get(name, 0)
            }
            space.counters = counters
            if grown:
                yield netns, grown
        self._look_s = begun_s + (time.monotonic() - begun_s) / LOOK_SHARE

    @property
    def totals(self) -> dict[str, int]:
        """Entries `alive`; since the beginning `births`, `deaths`, `births_lost`, `deaths_lost`."""
        totals = dict(self._ended)
        for space in self._spaces.values():
            for name, value in _totals(space.table).items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def _add_up(self, table: Table) -> None:
        for name, value in _totals(table).items():
            self._ended[name] = self._ended.get(name, 0) + value

    def close(self) -> None:
        """Let go of every namespace."""
        self.follower.close()


def _totals(table: Table) -> dict[str, int]:
    names = ("births", "deaths", "births_lost", "deaths_lost")
    return {name: int(getattr(table, name)) for name in names} | {"alive": len(table.born_ns)}
