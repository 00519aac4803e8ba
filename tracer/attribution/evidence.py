"""By how much the counter of a rule has grown over a drop: read before it, and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.ruleset.evaluate import count_before, was_replaced
from tracer.analysis.ruleset.model import XT_LEGACY
from tracer.attribution.counters import APART_NS

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import Rule, Ruleset
    from tracer.attribution.readings import Reading, Readings

WAIT = -1
"""It is not known yet, but will be soon."""
MAX_KEPT = 4096


class Evidence:
    """Looks at counters; those of nf_tables are asked for, xtables' come with its rules."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._before: dict[tuple[int, int], tuple[Ruleset, Rule, int]] = {}

    def growth(self, netns: int, time_ns: int, rule: Rule | None, reading: Reading) -> int | None:
        """By how much the counter of `rule`, of `reading.ruleset`, grew over a drop at `time_ns`.

        None where nobody knows, and `WAIT`: then ask again once there is another reading.
        """
        if rule is None or rule.packets is None:
            return None
        if rule.backend == XT_LEGACY:
            return self._legacy(netns, time_ns, rule, reading)
        if not rule.handle:
            return None
        key = rule.family, rule.table, rule.chain, rule.handle
        samples = reading.counts.get(key)
        if samples is None or (samples and samples[-1].began_ns < time_ns):
            return WAIT if self._readings.watch(netns, key) else None
        if not samples:  # it has gone
            return None
        former = [(one.done_ns, one.packets) for one in samples[:-1]]
        return self._grown(samples[-1].packets, former, time_ns, rule, reading)

    def _legacy(self, netns: int, time_ns: int, rule: Rule, reading: Reading) -> int | None:
        if reading.read_ns < time_ns:
            return WAIT if self._readings.renew(netns, reading) else None
        return self._grown(rule.packets or 0, [], time_ns, rule, reading)

    def _grown(
        self,
        packets: int,
        former: list[tuple[int, int]],
        time_ns: int,
        rule: Rule,
        reading: Reading,
    ) -> int | None:
        """From the last of the readings that were done well before the packet died."""
        if not packets:
            return None if was_replaced(reading.before, reading.ruleset, rule) else 0
        known = [(reading.before_ns, -1), (reading.done_ns, rule.packets or 0), *former]
        early = [one for one in known if 0 < one[0] <= time_ns - APART_NS]
        if not early:
            return None
        before = max(early)[1]
        if before < 0:
            before = self._count_before(rule, reading)
        # Set back meanwhile, it counts from 0.
        return packets - before if before <= packets else packets

    def _count_before(self, rule: Rule, reading: Reading) -> int:
        key = id(reading.ruleset), id(rule)
        known = self._before.get(key)
        if known is None or known[0] is not reading.ruleset or known[1] is not rule:
            if len(self._before) >= MAX_KEPT:
                self._before.clear()
            count = count_before(reading.before, reading.ruleset, rule)
            known = self._before[key] = reading.ruleset, rule, count
        return known[2]
