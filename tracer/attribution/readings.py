"""The rules of network namespaces as they are now, read in a thread of its own when asked for."""

from __future__ import annotations

import errno
import queue
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.model import Ruleset
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.attribution.cost import cpu_s
from tracer.attribution.counters import Counters
from tracer.errors import TracerError
from tracer.inventory.namespaces import run_in
from tracer.inventory.sysctl import netns_path
from tracer.netfilter import nfnl, nft_table, rule_programs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracer.attribution.counters import RuleKey, Sample
    from tracer.model import Node

LEGACY_S = 1.0
"""Least time between two readings of iptables-legacy rules or ipsets: nobody tells a change."""
CHEAP_S = 0.5
"""A ruleset that costs more CPU to read is not read again with every change of it."""
SHARE = 1 / 10
"""Most of one CPU that such readings may take."""
STOP_S = 1.0
WAITED_FOR, LOOKED_AHEAD = 1, 2
"""How urgent it is to read a namespace's rules: drops wait for them, or may come."""
_STOP = (0, 0)


_NOTHING = Ruleset()


@dataclass(frozen=True, slots=True)
class Reading:
    """The rules of one namespace; of one moment, or why they are not known."""

    ruleset: Ruleset
    checked_ns: int
    """CLOCK_BOOTTIME before it was last found to be the present one."""
    read_ns: int
    """CLOCK_BOOTTIME before it was read: what was dropped earlier may have met other rules."""
    done_ns: int = 0
    """CLOCK_BOOTTIME after it was read; 0 where nothing was."""
    before: Ruleset = _NOTHING
    """What was read the time before: rules that are gone by now."""
    before_ns: int = 0
    """`done_ns` of that."""
    counts: Mapping[RuleKey, tuple[Sample, ...]] = field(default_factory=dict)
    """Of rules that are watched: what their counters stood at, the newest since `checked_ns`."""
    generation: int = 0
    """nf_tables' number of this ruleset."""
    cost_s: float = 0.0
    """CPU time, of the programs that list the rules too: it does not grow on a busy node."""
    handles: bool = True
    """Whether the rules of iptables-nft have their handles."""
    legacy: bool = False
    """Whether there are iptables-legacy tables, which have no such number."""

    @property
    def untold(self) -> bool:
        """Whether a part of it may have changed that no number tells of."""
        return self.legacy or bool(self.ruleset.ipsets)


@dataclass(frozen=True, slots=True)
class _Signs:
    """What is cheap to look at in a namespace."""

    generation: int
    """nf_tables' number of its ruleset."""
    counts: dict[RuleKey, tuple[Sample, ...]]
    tables: bool
    """Whether nf_tables has any here; `legacy`: whether xtables itself has."""
    legacy: bool


@dataclass(slots=True)
class _Place:
    """What is kept of a namespace between two readings."""

    reader: Reader = field(default_factory=Reader)
    reading: Reading | None = None
    counters: Counters = field(default_factory=Counters)


class Readings:
    """Reads rulesets in the background; `reading` never waits."""

    def __init__(
        self, node: Callable[[], Node], done: Callable[[], None], warn: Callable[[str], None]
    ) -> None:
        """`done` is called, in the thread, after each reading; `warn` for what it costs."""
        self._node, self._done, self._warn = node, done, warn
        self._places: dict[int, _Place] = {}
        self._told: set[str] = set()
        self._asked: dict[int, int] = {}
        self._queue: queue.PriorityQueue[tuple[int, int]] = queue.PriorityQueue()
        self._thread = threading.Thread(target=self._run, name="rule-reader", daemon=True)
        self._thread.start()

    def ask(self, netns: int, urgency: int = WAITED_FOR) -> None:
        """Have a namespace's rules checked, and read if they have changed."""
        self._places.setdefault(netns, _Place())
        if self._asked.get(netns, LOOKED_AHEAD + 1) > urgency:
            self._asked[netns] = urgency
            self._queue.put((urgency, netns))

    def watch(self, netns: int, key: RuleKey) -> bool:
        """Have a rule's counter read with the next check, and check; False: too many are."""
        place = self._places.setdefault(netns, _Place())
        if not place.counters.want(key, _now_ns()):
            return False
        self.ask(netns)
        return True

    def reading(self, netns: int, since_ns: int) -> Reading | None:
        """The rules, if they were checked after `since_ns` (CLOCK_BOOTTIME); asks for them else."""
        reading = self.latest(netns)
        if reading is None or reading.checked_ns < since_ns:
            self.ask(netns)
            return None
        return reading

    def renew(self, netns: int, reading: Reading) -> bool:
        """Have rules read again whose changes nobody tells, as soon as they may be.

        False where that costs too much to be waited for.
        """
        if _now_ns() - reading.read_ns > LEGACY_S * 1e9:
            self.ask(netns)
        return reading.cost_s <= CHEAP_S

    def latest(self, netns: int) -> Reading | None:
        """The last reading there was, of whatever time; asks for none."""
        place = self._places.get(netns)
        return place.reading if place else None

    def close(self) -> None:
        """Stop reading; one under way is left to its end."""
        self._queue.put(_STOP)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (asked := self._queue.get()) != _STOP:
            netns = asked[1]
            self._asked.pop(netns, None)
            place = self._places[netns]
            checked_ns = _now_ns()
            try:
                place.reading = self._look(netns, place, checked_ns)
            except (OSError, TracerError) as error:
                # Gone meanwhile, or not to be understood: its drops keep hook and family.
                place.reading = Reading(_NOTHING, checked_ns, checked_ns)
                self._tell(f"rules of netns {netns}: {error}")
            except Exception as error:  # noqa: BLE001 - told; the thread must outlive a fault of ours
                place.reading = Reading(_NOTHING, checked_ns, checked_ns)
                kind = type(error).__name__
                self._tell(
                    f"rules of netns {netns}: not understood, please report: {kind}: {error}"
                )
            self._done()

    def _look(self, netns: int, place: _Place, checked_ns: int) -> Reading:
        path = netns_path(self._node().namespaces.get(netns), netns)
        if not path:  # it ended, as a pod's does: nothing to tell a person of
            return Reading(_NOTHING, checked_ns, checked_ns)
        before = place.reading
        now = run_in(path, netns, partial(_signs, place.counters))
        if before and _is_fresh(before, now, checked_ns):
            return replace(before, checked_ns=checked_ns, counts=now.counts)
        former = before or Reading(_NOTHING, 0, 0)
        reading = Reading(
            _NOTHING,
            checked_ns,
            checked_ns,
            _now_ns(),
            former.ruleset,
            former.done_ns,
            now.counts,
            now.generation,
            legacy=now.legacy,
        )
        some = now.tables or now.legacy
        return self._read(netns, path, place.reader, reading) if some else reading

    def _read(self, netns: int, path: str, reader: Reader, now: Reading) -> Reading:
        """The same reading, with the rules."""
        began_s = cpu_s()
        printed = run_in(path, netns, rule_programs.list_rules)
        texts = dict(printed.texts)
        ruleset = _without_ours(reader.read(Texts(texts.pop("nft").encode(), **texts)))
        # Without handles the ruleset warns of it: they are asked for chain by chain instead.
        for warning in (*printed.warnings, *(ruleset.warnings if printed.handles else ())):
            self._tell(f"rules of netns {netns}: {warning}")
        cost_s = cpu_s() - began_s
        handles = printed.handles
        return replace(now, ruleset=ruleset, done_ns=_now_ns(), cost_s=cost_s, handles=handles)

    def _tell(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            self._warn(f"warning: {warning}")


def _without_ours(ruleset: Ruleset) -> Ruleset:
    """Without the tables of tracers, this one and others: their chains accept all there is."""
    tables = {
        key: table for key, table in ruleset.tables.items() if not nft_table.is_ours(table.name)
    }
    return replace(ruleset, tables=tables)


def _signs(counters: Counters) -> _Signs:
    legacy = rule_programs.legacy_tables()
    with nfnl.open_socket() as sock:
        try:
            generation = nft_table.generation(sock)
            return _Signs(
                generation, counters.read(sock, generation), bool(nft_table.tables(sock)), legacy
            )
        except OSError as error:
            if error.errno != errno.EINVAL:  # no nf_tables in this kernel
                raise
            return _Signs(0, {}, tables=False, legacy=legacy)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _is_fresh(before: Reading, now: _Signs, now_ns: int) -> bool:
    """Whether a ruleset need not be read again; a very large one may be stale for a while."""
    age_s = (now_ns - before.read_ns) / 1e9
    if now.generation != before.generation:
        return before.cost_s > CHEAP_S and age_s < before.cost_s / SHARE
    if now.legacy != before.legacy:
        return False
    return not before.untold or age_s < max(LEGACY_S, before.cost_s / SHARE)
