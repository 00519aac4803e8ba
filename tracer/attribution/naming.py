"""Drops → the rule that dropped them, traced or inferred, without keeping anybody waiting."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from tracer.analysis.headers import packet_key
from tracer.analysis.rule_evidence import UNMOVED, weigh
from tracer.analysis.rule_fields import (
    INFERRED,
    TRACED,
    candidate_fields,
    rule_fields,
)
from tracer.analysis.rule_infer import lethal_verdicts
from tracer.analysis.rule_packet import host_of, packet_at
from tracer.attribution.behind import Behind
from tracer.attribution.evidence import WAIT, Evidence
from tracer.attribution.narrow import narrow
from tracer.attribution.passed import PassedRules
from tracer.attribution.readings import LOOKED_AHEAD, Readings
from tracer.attribution.sums import RuleSums
from tracer.attribution.tables import MAX_NAMESPACES, TraceTables, namespaces_of
from tracer.attribution.visits import Lethal
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import numpy as np

    from tracer.analysis.ruleset.model import End, Host, Packet, Ruleset, Verdict
    from tracer.analysis.selection import PodSelection
    from tracer.attribution.readings import Reading
    from tracer.model import Node, Record
    from tracer.netfilter.nft_table import Match
    from tracer.netfilter.nft_trace import Visit

LAST_S = 5.0
"""How long the end of a run waits for rules to be read."""
HOLD_NS = 30_000_000_000
"""How long a drop waits for its rules to be read; then it is shown without."""
MAX_WAITING = 20_000
MAX_INFERRED = 4096
"""Most drops are like others: what was worked out for one is kept for the next."""
MECHANISMS = ("nf_tables", "hook", "nf_queue")
MAX_WEIGHED = 8
"""Of more candidates nobody looks at the counters."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A drop whose rule is not known yet."""

    record: Record
    netns: int
    time_ns: int
    packet: Packet
    visit: Visit | None


class Run(Protocol):
    """What is needed of a running command."""

    @property
    def node(self) -> Node:
        """The latest snapshot."""

    @property
    def selection(self) -> PodSelection:
        """The chosen pods."""

    def wake(self) -> None:
        """Let the command look; from any thread."""


@contextmanager
def rule_naming(
    run: Run, way: str, expression: str, warn: Callable[[str], None]
) -> Iterator[RuleNaming | None]:
    """What names the rules while a command runs, as its --rules says; None where it names none.

    `expression` is the command's tcpdump filter.
    """
    if way not in ("trace", "read"):
        yield None
        return
    with closing(RuleNaming(lambda: run.node, run.wake, warn)) as rules:
        if way == "trace":
            rules.trace(run.selection, narrow(expression))
        else:
            rules.look_ahead(run.selection)
        yield rules


class RuleNaming:
    """Names the rules behind drops."""

    def __init__(
        self,
        node: Callable[[], Node],
        wake: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        """Read rules where drops ask for it; `wake` is called from another thread when read."""
        self._node, self._warn = node, warn
        self._readings = Readings(node, wake, warn)
        self._evidence = Evidence(self._readings)
        self.sums = RuleSums(node, self._readings)
        self._tables: TraceTables | None = None
        self._lethal = Lethal()
        self._waiting: list[_Waiting] = []
        self._version = -1
        self._behind = Behind(node)
        self._passed: PassedRules | None = None
        self._listened_ns = 0
        self._hosts: dict[int, tuple[int, Host]] = {}
        self._inferred: dict[tuple[object, ...], tuple[Ruleset, tuple[Verdict, ...]]] = {}
        self._handled: dict[int, tuple[Verdict, Verdict]] = {}

    @property
    def waiting(self) -> int:
        """How many drops wait until their rules are known."""
        return len(self._waiting)

    def trace(self, selection: PodSelection, matches: Sequence[Match]) -> None:
        """Switch the kernel's trace on for these packets, from now on."""
        self._tables = TraceTables(selection, matches)
        self.follow()
        # Texts of rules must be known before they are gone.
        for netns in self._tables.traced:
            self._readings.ask(netns)

    def look_ahead(self, selection: PodSelection) -> None:
        """Read the rules before anything is dropped: that is what counters stood at before."""
        for netns in namespaces_of(self._node(), selection)[:MAX_NAMESPACES]:
            self._readings.ask(netns, LOOKED_AHEAD)

    def passed(self) -> PassedRules:
        """Of packets that are followed: the rules that let them pass, from now on."""
        if self._passed is None:
            self._passed = PassedRules(self._node, self._readings, self._behind, self._traced_now)
        return self._passed

    def _traced_now(self) -> Collection[int]:
        return self._tables.traced if self._tables else ()

    @property
    def descriptors(self) -> list[int]:
        """What epoll waits for."""
        return self._tables.descriptors if self._tables else []

    @property
    def losses(self) -> dict[str, int]:
        """Trace messages that the kernel could not give us, and hops left without rules."""
        lost = {
            "rule_trace": self._tables.lost if self._tables else 0,
            "hop_rules": self._passed.skipped if self._passed else 0,
        }
        return {source: count for source, count in lost.items() if count}

    def follow(self) -> None:
        """Trace where pods have come, and no longer where they have gone."""
        node = self._node()
        if self._tables and node.version != self._version:
            self._version = node.version
            for warning in self._tables.update(node):
                self._warn(f"warning: {warning}")

    def listen(self) -> None:
        """Take what the kernel's trace has told; before the drops that it belongs to."""
        if self._tables is None:
            return
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for netns, visit in self._tables.take():
            self._lethal.add(netns, visit)
            if self._passed:
                now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                self._passed.hear(netns, visit, self._listened_ns, now_ns)
        self._listened_ns = began_ns

    def add(self, records: Sequence[Record], events: Sequence[np.void]) -> list[Record]:
        """Take drops; those that no rule decided, or that cannot wait, are given back."""
        self.listen()
        node, through = self._node(), []
        for record, event in zip(records, events, strict=True):
            decided = record.get("netfilter.mechanism") in MECHANISMS and event["netns"]
            if not decided or len(self._waiting) >= MAX_WAITING:
                through.append(record)
                continue
            packet = packet_at(event, record, node)
            visit = self._visit(record, event)
            self._waiting.append(
                _Waiting(record, int(event["netns"]), int(event["time_ns"]), packet, visit)
            )
        return through

    def named(self, *, last: bool = False) -> list[Record]:
        """The drops whose rules are known by now, or that have waited long enough.

        With `last`, those too whose rules are known, but not yet what their counters say.
        """
        if not self._waiting:
            return []
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        done, waiting = [], []
        for one in self._waiting:
            reading = self._readings.reading(one.netns, one.time_ns)
            late = last or now_ns - one.time_ns > HOLD_NS
            if reading:
                self._heed_legacy(one.netns, reading)
            if (reading and self._name(one, reading, late=late)) or (late and not last):
                done.append(one.record)
            else:
                waiting.append(one)
        self._waiting = waiting
        return done

    def last(self) -> list[Record]:
        """All that still wait, after the last `add`; waits a little for their rules."""
        end_s = time.monotonic() + LAST_S
        done = self.named()
        while self._waiting and time.monotonic() < end_s:
            time.sleep(0.02)
            done += self.named()
        done += self.named(last=True)
        done += [one.record for one in self._waiting]
        self._waiting = []
        return done

    def close(self) -> None:
        """Switch the trace off, and stop reading."""
        if self._tables:
            self._tables.close()
        self._readings.close()

    def _heed_legacy(self, netns: int, reading: Reading) -> None:
        """Switch the trace off where iptables-legacy has come, which would log it."""
        if self._tables and reading.legacy:
            for warning in self._tables.leave_legacy(self._node(), netns):
                self._warn(f"warning: {warning}")

    def _visit(self, record: Record, event: np.void) -> Visit | None:
        data = event["packet"].tobytes()[layout().constants["L2_BYTES"] :]
        family = record.get("netfilter.family", "")
        # Before 6.1 a drop knows the family of its hook, not that of the table.
        families = (family, "inet") if family in ("ip", "ip6", "netdev") else (family,)
        return self._lethal.take(
            int(event["netns"]), packet_key(data), record["netfilter.mechanism"], families
        )

    def _name(self, one: _Waiting, reading: Reading, *, late: bool) -> bool:
        """Put the rule into the record; False where its counter is still to be read."""
        end = self._traced(one, reading) if one.visit else None
        if end:
            one.record.update(rule_fields(end, TRACED))
        else:
            ruleset, verdicts = self._infer(one, reading)
            verdicts = tuple(self._with_handle(verdict, one.netns, reading) for verdict in verdicts)
            growths = self._growths(one, verdicts, reading if ruleset is reading.ruleset else None)
            waits = WAIT in growths or self._is_behind(one, reading, growths)
            if waits and not late:
                return False
            end = self._weighed(one.record, verdicts, growths)
        if end:
            one.record.update(self._behind.object(end, one.packet, reading))
            source = one.record["netfilter.rule_source"]
            self.sums.add(one.netns, one.time_ns, end, source, reading)
        return True

    def _is_behind(self, one: _Waiting, reading: Reading, growths: Sequence[int | None]) -> bool:
        """Whether an ipset or legacy rules may have changed, and a new reading will tell.

        So where the drop has no cause by them as they were read, or its counter did not move.
        """
        contradicted = all(growth == 0 for growth in growths)
        if not (contradicted and reading.untold and reading.read_ns < one.time_ns):
            return False
        return self._readings.renew(one.netns, reading)

    def _growths(
        self, one: _Waiting, verdicts: Sequence[Verdict], reading: Reading | None
    ) -> list[int | None]:
        """By how much the counter of each verdict's rule grew over the drop."""
        # What a queue holds was counted when it came, and dies when its program says so.
        queued = one.record.get("netfilter.mechanism") == "nf_queue"
        if reading is None or queued or len(verdicts) > MAX_WEIGHED:
            return [None] * len(verdicts)
        grown = self._evidence.growth
        return [grown(one.netns, one.time_ns, verdict.rule, reading) for verdict in verdicts]

    def _weighed(
        self, record: Record, verdicts: Sequence[Verdict], growths: Sequence[int | None]
    ) -> End | None:
        """Put what was inferred into the record, as certain as it is; the end, if it is one."""
        known = [None if growth == WAIT else growth for growth in growths]
        kept, words = weigh(verdicts, known)
        if words:
            record["netfilter.evidence"] = words
        if len(kept) == 1 and words != UNMOVED:
            end = kept[0].ends[-1]
            record.update(rule_fields(end, INFERRED))
            return end
        if kept:
            record.update(candidate_fields(kept))
        return None

    def _with_handle(self, verdict: Verdict, netns: int, reading: Reading) -> Verdict:
        """The same verdict; the rule that decided has its handle, if it can be found."""
        known = self._handled.get(id(verdict))
        if known and known[0] is verdict:
            return known[1]
        last = self._behind.with_handle(verdict.ends[-1], netns, reading)
        if last is verdict.ends[-1]:
            return verdict
        if len(self._handled) >= MAX_INFERRED:
            self._handled.clear()
        found = replace(verdict, ends=(*verdict.ends[:-1], last))
        self._handled[id(verdict)] = verdict, found
        return found

    def _infer(self, one: _Waiting, reading: Reading) -> tuple[Ruleset, tuple[Verdict, ...]]:
        """What the rules as they are say, else what they said when they were read before."""
        host = self._host(one.netns)
        for ruleset in (reading.ruleset, reading.before):
            key = id(ruleset), one.record.get("netfilter.hook"), one.packet
            known = self._inferred.get(key)
            if known is None or known[0] is not ruleset:
                if len(self._inferred) >= MAX_INFERRED:
                    self._inferred.clear()
                verdicts = lethal_verdicts(ruleset, one.record, one.packet, host)
                known = self._inferred[key] = ruleset, verdicts
            if known[1] or reading.read_ns < one.time_ns:
                return known
        return reading.ruleset, ()

    def _host(self, netns: int) -> Host:
        """The namespace's own addresses, looked up once for each state of the node."""
        node = self._node()
        known = self._hosts.get(netns)
        if known is None or known[0] != node.version:
            known = self._hosts[netns] = node.version, host_of(node, netns)
        return known[1]

    def _traced(self, one: _Waiting, reading: Reading) -> End | None:
        """What the trace says, unless it is about another hook than the drop."""
        if one.visit is None:
            return None
        end = self._behind.traced(one.netns, one.visit, reading)
        hook = one.record.get("netfilter.hook", "").lower()
        base = end.base.base
        return None if base and hook and base.hook != hook else end
