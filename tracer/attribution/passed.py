"""Paths → the rules that took their packets in each netfilter hook: traced, else inferred."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tracer.analysis.rule_fields import TRACED
from tracer.analysis.rule_hops import hook_hops, packet_of
from tracer.attribution.inference import Inference, entries_of
from tracer.attribution.visits import Passing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tracer.analysis.paths import Path
    from tracer.analysis.rule_hops import HookHop
    from tracer.attribution.behind import Behind
    from tracer.attribution.readings import Reading, Readings
    from tracer.model import Node, Record
    from tracer.netfilter.nft_trace import Visit

HOLD_NS = 30_000_000_000
"""How long a path waits for rules to be read; then it is shown without them."""
LAST_S = 5.0
"""The same, at the end of a run."""
MAX_WAITING = 20_000
MAX_KEPT = 4096
"""Most packets are like others: what was worked out for one is kept for the next."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A path whose rules are not read yet."""

    path: Path
    hops: Sequence[HookHop]
    """Those of which the trace has told."""
    since_ns: int


class PassedRules:
    """Holds paths until the rules that took their packets are known."""

    def __init__(
        self,
        node: Callable[[], Node],
        readings: Readings,
        behind: Behind,
        traced: Callable[[], Collection[int]],
    ) -> None:
        """`node` gives the latest snapshot, `traced` the namespaces whose nf_tables are traced."""
        self._node, self._readings, self._behind = node, readings, behind
        self._traced = traced
        self._inference = Inference(node, behind)
        self._visits = Passing()
        self._waiting: list[_Waiting] = []
        self._told: dict[int, list[tuple[HookHop, list[Record]]]] = {}
        self._kept: dict[tuple[object, ...], tuple[Reading, list[Record]]] = {}

    def hear(self, netns: int, visit: Visit, since_ns: int, until_ns: int) -> None:
        """Take what the trace told between two moments of CLOCK_BOOTTIME, in its order."""
        self._visits.add(netns, visit, since_ns, until_ns)

    def add(self, paths: Sequence[Path]) -> list[Path]:
        """Take complete paths; those of which no rules can be told are given back."""
        through, traced = [], self._traced()
        for path in paths:
            hops = [
                hop
                for hop in hook_hops(path)
                if self._visits.knows(hop.netns, hop.keys) or self._infers(hop, traced)
            ]
            if hops and len(self._waiting) < MAX_WAITING:
                self._waiting.append(_Waiting(path, hops, max(hop.end_ns for hop in hops)))
            else:
                through.append(path)
        return through

    def _infers(self, hop: HookHop, traced: Collection[int]) -> bool:
        """Whether rules are inferred: those of untraced namespaces, and iptables-legacy's."""
        known = self._readings.latest(hop.netns)
        wanted = hop.netns not in traced or (known is not None and known.legacy)
        return wanted and self._inference.can(hop)

    @property
    def skipped(self) -> int:
        """Hops whose rules would have taken too long to evaluate."""
        return self._inference.skipped

    def named(self, *, last: bool = False) -> list[Path]:
        """Paths whose rules are read; with `last` all, after a little waiting."""
        end_s = time.monotonic() + LAST_S
        done = self._look()
        while last and self._waiting and time.monotonic() < end_s:
            time.sleep(0.02)
            done += self._look()
        if last:
            done += [one.path for one in self._waiting]
            self._waiting = []
        return done

    def complete(self, path: Path, record: Record) -> list[tuple[tuple[int, int], list[Record]]]:
        """Put the rules into the hops of this path's record; returns them by their hop's event."""
        told = self._told.pop(id(path), [])
        for hop, rules in told:
            record["hops"][hop.at]["rules"] = rules
        return [(hop.event, rules) for hop, rules in told]

    def _look(self) -> list[Path]:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        done, waiting = [], []
        for one in self._waiting:
            readings = {
                netns: self._readings.reading(netns, one.since_ns)
                for netns in {hop.netns for hop in one.hops}
            }
            known = {netns: reading for netns, reading in readings.items() if reading}
            if len(known) == len(readings):
                self._name(one, known)
            elif now_ns - one.since_ns <= HOLD_NS:
                waiting.append(one)
                continue
            done.append(one.path)
        self._waiting = waiting
        return done

    def _name(self, one: _Waiting, readings: dict[int, Reading]) -> None:
        told, traced = [], self._traced()
        for hop in one.hops:
            reading = readings[hop.netns]
            visits = self._visits.take(hop, partial(_hook, reading))
            rules = [entry for visit in visits for entry in self._entries(hop, visit, reading)]
            if self._infers(hop, traced):
                inferred = self._inference.entries(
                    one.path, hop, reading, only_legacy=hop.netns in traced
                )
                rules = sorted([*rules, *inferred], key=_priority) if rules else inferred
            if rules:
                told.append((hop, rules))
        if told:
            self._told[id(one.path)] = told

    def _entries(self, hop: HookHop, visit: Visit, reading: Reading) -> list[Record]:
        packet, node = packet_of(visit.network, visit.transport), self._node()
        way = visit.family, visit.table, visit.chain, *visit.steps, visit.verdict, visit.by_policy
        key = hop.netns, node.version, packet, *way
        known = self._kept.get(key)
        if known is None or known[0].ruleset is not reading.ruleset:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            end = self._behind.traced(hop.netns, visit, reading)
            entries = entries_of(end, packet, reading, self._behind, TRACED)
            known = self._kept[key] = reading, entries
        return known[1]


def _priority(entry: Record) -> int:
    return int(entry.get("netfilter.priority", 0))


def _hook(reading: Reading, visit: Visit) -> str:
    """Where the base chain of a visit is hooked in; empty where nobody knows it any more."""
    for ruleset in (reading.ruleset, reading.before):
        table = ruleset.tables.get((visit.family, visit.table, False))
        chain = table.chains.get(visit.chain) if table else None
        if chain and chain.base:
            return chain.base.hook
    return ""
