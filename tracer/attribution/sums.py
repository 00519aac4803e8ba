"""Of each rule that was named: how many drops were shown with it, and how many it counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis.drops import place_fields
from tracer.analysis.rule_fields import rule_fields
from tracer.analysis.ruleset.evaluate import count_before
from tracer.analysis.ruleset.model import XT_LEGACY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.analysis.ruleset.model import End, Rule
    from tracer.attribution.counters import RuleKey
    from tracer.attribution.readings import Reading, Readings
    from tracer.model import Node, Record

MAX_RULES = 1000
LAST_S = 1.0
"""How long the end of a run waits for counters."""


@dataclass(slots=True)
class _Sum:
    end: End
    source: str
    base: int | None
    """What its counter stood at before the first of them; None where nobody looked."""
    shown: int = 0


class RuleSums:
    """Adds up drops by rule, for the summary of what was not shown one by one."""

    def __init__(self, node: Callable[[], Node], readings: Readings) -> None:
        """`node` gives the latest snapshot."""
        self._node, self._readings = node, readings
        self._sums: dict[tuple[object, ...], _Sum] = {}

    def add(self, netns: int, time_ns: int, end: End, source: str, reading: Reading) -> None:
        """Note that a drop, at a CLOCK_BOOTTIME, is shown with this rule."""
        rule = end.rule
        if rule is None:
            return
        # A table that is made anew gives the same handles to other rules.
        key = netns, *_key(rule), rule.handle, rule.text
        known = self._sums.get(key)
        if known is None and len(self._sums) < MAX_RULES:
            base = None
            if reading.before_ns:
                base = count_before(reading.before, reading.ruleset, rule)
            elif reading.done_ns < time_ns:
                base = rule.packets
            known = self._sums[key] = _Sum(end, source, base)
        if known:
            known.shown += 1

    def records(self) -> list[Record]:
        """One `rule` record each, most shown first; with what its counter has grown by.

        The counter may have counted other packets too than those that were asked for.
        """
        asked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        end_s = time.monotonic() + LAST_S
        records, node = [], self._node()
        for (netns, *_), one in sorted(self._sums.items(), key=lambda item: -item[1].shown):
            record: Record = {
                "type": "rule",
                **place_fields(node, int(str(netns)), 0),
                **rule_fields(one.end, one.source),
                "shown": one.shown,
            }
            if one.base is not None:
                count = self._count(int(str(netns)), one.end.rule, asked_ns, end_s)
                if count is not None and count >= one.base:
                    record["counter.packets"] = count - one.base
            records.append(record)
        return records

    def _count(self, netns: int, rule: Rule | None, since_ns: int, end_s: float) -> int | None:
        """What a counter stands at now; None where it does not count, or nobody answers."""
        if rule is None or rule.packets is None:
            return None
        if rule.backend != XT_LEGACY and not rule.handle:
            return None
        while time.monotonic() < end_s:
            reading = self._readings.latest(netns)
            count = _counted(reading, rule, since_ns) if reading else None
            if count is not None:
                return count
            if rule.backend == XT_LEGACY:
                self._readings.ask(netns)
            elif not self._readings.watch(netns, (*_key(rule), rule.handle)):
                return None
            time.sleep(0.02)
        return None


def _counted(reading: Reading, rule: Rule, since_ns: int) -> int | None:
    if rule.backend == XT_LEGACY:
        fresh = reading.read_ns >= since_ns
        return count_before(reading.ruleset, reading.ruleset, rule) if fresh else None
    key: RuleKey = (*_key(rule), rule.handle)
    samples = reading.counts.get(key, ())
    return samples[-1].packets if samples and samples[-1].began_ns >= since_ns else None


def _key(rule: Rule) -> tuple[str, str, str]:
    return rule.family, rule.table, rule.chain
