"""The rules of network namespaces as they are now, read in a thread of its own when asked for."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.model import Ruleset
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.errors import TracerError
from tracer.inventory.namespaces import run_in
from tracer.inventory.sysctl import netns_path
from tracer.netfilter import nfnl, nft_table, rule_programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.model import Node

LEGACY_S = 1.0
"""Least time between two readings of iptables-legacy rules, of which nobody tells a change."""
CHEAP_S = 0.5
"""A ruleset that takes longer to read is not read again with every change of it."""
SHARE = 1 / 10
"""Most of one CPU that such readings may take."""
STOP_S = 1.0


_NOTHING = Ruleset()


@dataclass(frozen=True, slots=True)
class Reading:
    """The rules of one namespace; of one moment, or why they are not known."""

    ruleset: Ruleset
    checked_ns: int
    """CLOCK_BOOTTIME before it was last found to be the present one."""
    read_ns: int
    """CLOCK_BOOTTIME before it was read: what was dropped earlier may have met other rules."""
    before: Ruleset = _NOTHING
    """What was read the time before: rules that are gone by now."""
    generation: int = 0
    """nf_tables' number of this ruleset."""
    cost_s: float = 0.0
    handles: bool = True
    """Whether the rules of iptables-nft have their handles."""
    legacy: bool = False
    """Whether there are iptables-legacy tables, which have no such number."""


@dataclass(slots=True)
class _Place:
    """What is kept of a namespace between two readings."""

    reader: Reader = field(default_factory=Reader)
    reading: Reading | None = None


class Readings:
    """Reads rulesets in the background; `reading` never waits."""

    def __init__(
        self, node: Callable[[], Node], done: Callable[[], None], warn: Callable[[str], None]
    ) -> None:
        """`done` is called, in the thread, after each reading; `warn` for what it costs."""
        self._node, self._done, self._warn = node, done, warn
        self._places: dict[int, _Place] = {}
        self._told: set[str] = set()
        self._asked: set[int] = set()
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rule-reader", daemon=True)
        self._thread.start()

    def ask(self, netns: int) -> None:
        """Have a namespace's rules checked, and read if they have changed."""
        if netns not in self._asked:
            self._asked.add(netns)
            self._queue.put(netns)

    def reading(self, netns: int, since_ns: int) -> Reading | None:
        """The rules, if they were checked after `since_ns` (CLOCK_BOOTTIME); asks for them else."""
        place = self._places.get(netns)
        reading = place.reading if place else None
        if reading is None or reading.checked_ns < since_ns:
            self.ask(netns)
            return None
        return reading

    def close(self) -> None:
        """Stop reading; one under way is left to its end."""
        self._queue.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (netns := self._queue.get()) is not None:
            self._asked.discard(netns)
            place = self._places.setdefault(netns, _Place())
            checked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            try:
                place.reading = self._look(netns, place, checked_ns)
            except (OSError, TracerError) as error:
                # Gone meanwhile, or not to be understood: its drops keep hook and family.
                place.reading = Reading(_NOTHING, checked_ns, checked_ns)
                self._tell(f"rules of netns {netns}: {error}")
            self._done()

    def _look(self, netns: int, place: _Place, checked_ns: int) -> Reading:
        path = netns_path(self._node().namespaces.get(netns), netns)
        if not path:  # it ended, as a pod's does: nothing to tell a person of
            return Reading(_NOTHING, checked_ns, checked_ns)
        before = place.reading
        generation = run_in(path, netns, _generation)
        if before and _is_fresh(before, generation, checked_ns):
            return replace(before, checked_ns=checked_ns)
        began_s = time.monotonic()
        printed, legacy = run_in(
            path, netns, lambda: (rule_programs.list_rules(), rule_programs.legacy_tables())
        )
        texts = dict(printed.texts)
        ruleset = place.reader.read(Texts(texts.pop("nft").encode(), **texts))
        # Without handles the ruleset warns of it: they are asked for chain by chain instead.
        for warning in (*printed.warnings, *(ruleset.warnings if printed.handles else ())):
            self._tell(f"rules of netns {netns}: {warning}")
        cost_s = time.monotonic() - began_s
        former = before.ruleset if before else _NOTHING
        return Reading(
            ruleset, checked_ns, checked_ns, former, generation, cost_s, printed.handles, legacy
        )

    def _tell(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            self._warn(f"warning: {warning}")


def _generation() -> int:
    with nfnl.open_socket() as sock:
        return nft_table.generation(sock)


def _is_fresh(before: Reading, generation: int, now_ns: int) -> bool:
    """Whether a ruleset need not be read again; a very large one may be stale for a while."""
    age_s = (now_ns - before.read_ns) / 1e9
    if generation != before.generation:
        return before.cost_s > CHEAP_S and age_s < before.cost_s / SHARE
    return not before.legacy or age_s < max(LEGACY_S, before.cost_s / SHARE)
