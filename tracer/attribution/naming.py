"""Drops → the rule that dropped them, traced or inferred, without keeping anybody waiting."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from tracer.analysis.headers import packet_key
from tracer.analysis.objects import RuleObjects
from tracer.analysis.rule_fields import (
    INFERRED,
    TRACED,
    candidate_fields,
    object_fields,
    rule_fields,
)
from tracer.analysis.rule_infer import lethal_verdicts
from tracer.analysis.rule_packet import host_of, packet_at
from tracer.analysis.rule_trace import knows, traced_end
from tracer.analysis.ruleset.model import XT_LEGACY
from tracer.attribution.handles import Handles
from tracer.attribution.narrow import narrow
from tracer.attribution.readings import Readings
from tracer.attribution.tables import TraceTables
from tracer.attribution.visits import Lethal
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
MAX_RULESETS = 64
MAX_INFERRED = 4096
"""Most drops are like others: what was worked out for one is kept for the next."""
MECHANISMS = ("nf_tables", "hook", "nf_queue")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A drop whose rule is not known yet."""

    record: Record
    netns: int
    time_ns: int
    packet: Packet
    visit: Visit | None


class _Objects:
    """What knows the objects behind rules, as long as rules and node stay the same."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Ruleset, Node, RuleObjects]] = {}

    def get(self, ruleset: Ruleset, node: Node) -> RuleObjects:
        """Make it anew only where something has changed."""
        known = self._of.get(id(ruleset))
        if known is None or known[0] is not ruleset or known[1] is not node:
            if len(self._of) >= MAX_RULESETS:
                self._of.clear()
            known = self._of[id(ruleset)] = ruleset, node, RuleObjects(ruleset, node)
        return known[2]


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
    """What names the rules while a command runs, as its --rules says; None for `off`.

    `expression` is the command's tcpdump filter.
    """
    if way == "off":
        yield None
        return
    with closing(RuleNaming(lambda: run.node, run.wake, warn)) as rules:
        if way == "trace":
            rules.trace(run.selection, narrow(expression))
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
        self._tables: TraceTables | None = None
        self._lethal = Lethal()
        self._waiting: list[_Waiting] = []
        self._version = -1
        self._objects = _Objects()
        self._handles = Handles()
        self._hosts: dict[int, tuple[int, Host]] = {}
        self._inferred: dict[tuple[object, ...], tuple[Ruleset, tuple[Verdict, ...]]] = {}

    def trace(self, selection: PodSelection, matches: Sequence[Match]) -> None:
        """Switch the kernel's trace on for these packets, from now on."""
        self._tables = TraceTables(selection, matches)
        self.follow()
        # Texts of rules must be known before they are gone.
        for netns in self._tables.traced:
            self._readings.ask(netns)

    @property
    def descriptors(self) -> list[int]:
        """What epoll waits for."""
        return self._tables.descriptors if self._tables else []

    @property
    def losses(self) -> dict[str, int]:
        """Trace messages that the kernel could not give us, as a source of losses."""
        lost = self._tables.lost if self._tables else 0
        return {"rule_trace": lost} if lost else {}

    def follow(self) -> None:
        """Trace where pods have come, and no longer where they have gone."""
        node = self._node()
        if self._tables and node.version != self._version:
            self._version = node.version
            for warning in self._tables.update(node):
                self._warn(f"warning: {warning}")

    def listen(self) -> None:
        """Take what the kernel's trace has told; before the drops that it belongs to."""
        for netns, visit in self._tables.take() if self._tables else ():
            self._lethal.add(netns, visit)

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

    def named(self) -> list[Record]:
        """The drops whose rules are known by now, or that have waited long enough."""
        if not self._waiting:
            return []
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        done, waiting = [], []
        for one in self._waiting:
            reading = self._readings.reading(one.netns, one.time_ns)
            if reading:
                self._heed_legacy(one.netns, reading)
                done.append(self._name(one, reading))
            elif now_ns - one.time_ns > HOLD_NS:
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
        families = (family, "inet") if family in ("ip", "ip6") else (family,)
        return self._lethal.take(
            int(event["netns"]), packet_key(data), record["netfilter.mechanism"], families
        )

    def _name(self, one: _Waiting, reading: Reading) -> Record:
        end = self._traced(one, reading) if one.visit else None
        if end:
            one.record.update(rule_fields(end, TRACED))
        else:
            verdicts = self._infer(one, reading)
            if len(verdicts) == 1:
                end = self._with_handle(verdicts[0].ends[-1], one.netns, reading)
                one.record.update(rule_fields(end, INFERRED))
            elif verdicts:
                one.record.update(candidate_fields(verdicts))
        if end:
            one.record.update(self._object(end, one.packet, reading))
        return one.record

    def _with_handle(self, end: End, netns: int, reading: Reading) -> End:
        """The same end; its rule has its handle, if it can be found."""
        rule = end.rule
        if reading.handles or rule is None or rule.handle or end.base.backend == XT_LEGACY:
            return end
        place = rule.family, rule.table, rule.chain
        known = self._handles.put(self._node(), netns, reading, place)
        table = known.tables.get((rule.family, rule.table, False))
        chain = table.chains.get(rule.chain) if table else None
        # The verdict may be of an older reading than this one: then it keeps what it has.
        same = chain is not None and rule.index < len(chain.rules)
        found = chain.rules[rule.index] if chain is not None and same else rule
        return replace(end, rule=found) if found.body is rule.body else end

    def _infer(self, one: _Waiting, reading: Reading) -> tuple[Verdict, ...]:
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
                return known[1]
        return ()

    def _host(self, netns: int) -> Host:
        """The namespace's own addresses, looked up once for each state of the node."""
        node = self._node()
        known = self._hosts.get(netns)
        if known is None or known[0] != node.version:
            known = self._hosts[netns] = node.version, host_of(node, netns)
        return known[1]

    def _object(self, end: End, packet: Packet, reading: Reading) -> Record:
        """The Kubernetes object behind a rule or a policy, if anybody knows it."""
        objects = self._objects.get(reading.ruleset, self._node())
        found = objects.of(end.rule, packet, end.path) if end.rule else objects.of_policy(end.base)
        return object_fields(found) if found else {}

    def _traced(self, one: _Waiting, reading: Reading) -> End | None:
        """What the trace says, unless it is about another hook than the drop."""
        visit = one.visit
        if visit is None:
            return None
        place = visit.family, visit.table, visit.chain
        # A rule that is not there any more may have been there when it was read last. Not the
        # other way round: a table that is made anew gives the same handles to other rules.
        last = visit.steps[-1][0] if visit.steps else visit.chain
        known = self._handles.put(self._node(), one.netns, reading, (*place[:2], last))
        ruleset = known if knows(known, place, visit.steps) else reading.before
        end = traced_end(ruleset, place, visit.steps, visit.verdict, by_policy=visit.by_policy)
        hook = one.record.get("netfilter.hook", "").lower()
        base = end.base.base
        return None if base and hook and base.hook != hook else end
