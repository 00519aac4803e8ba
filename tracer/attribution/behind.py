"""What is behind a trace: the texts of its rules, and the objects that they serve."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from tracer.analysis.objects import DEFAULT_DENY, RuleObjects
from tracer.analysis.rule_fields import object_fields
from tracer.analysis.rule_sets import set_lookups, set_misses
from tracer.analysis.rule_trace import knows, traced_end
from tracer.analysis.ruleset.model import XT_LEGACY
from tracer.attribution.handles import Handles

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.analysis.ruleset.model import End, Packet, Ruleset
    from tracer.attribution.readings import Reading
    from tracer.model import Node, Record
    from tracer.netfilter.nft_trace import Visit

MAX_RULESETS = 64
MAX_MISSES = 4
"""Rules whose set lacked a packet that are told of one drop."""


class Behind:
    """Looks rules up in readings; objects are kept while rules and node stay the same."""

    def __init__(self, node: Callable[[], Node]) -> None:
        """`node` gives the latest snapshot."""
        self._node = node
        self._handles = Handles()
        self._objects: dict[int, tuple[Ruleset, Node, RuleObjects]] = {}

    def traced(self, netns: int, visit: Visit, reading: Reading) -> End:
        """What the kernel's trace says, with the rules' texts as far as they are known."""
        place = visit.family, visit.table, visit.chain
        # A rule that is not there any more may have been there when it was read last. Not the
        # other way round: a table that is made anew gives the same handles to other rules.
        last = visit.steps[-1][0] if visit.steps else visit.chain
        changing = (chain for chain, _, verdict in visit.steps if verdict == "continue")
        known = reading
        for chain in dict.fromkeys((*changing, last)):
            ruleset = self._handles.put(self._node(), netns, known, (*place[:2], chain))
            known = replace(known, ruleset=ruleset)
        ruleset = known.ruleset if knows(known.ruleset, place, visit.steps) else reading.before
        return traced_end(ruleset, place, visit.steps, visit.verdict, by_policy=visit.by_policy)

    def with_handle(self, end: End, netns: int, reading: Reading) -> End:
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

    def object(self, end: End, packet: Packet, reading: Reading) -> Record:
        """The Kubernetes object behind a rule or a policy, if anybody knows it; sets it asked."""
        objects = self._get(reading.ruleset, self._node())
        found = objects.of(end.rule, packet, end.path) if end.rule else objects.of_policy(end.base)
        fields = object_fields(found) if found else {}
        if lookups := set_lookups(reading.ruleset, end, packet):
            fields["netfilter.sets"] = lookups
        if found and found.does == DEFAULT_DENY:
            fields |= self._misses(objects, end, packet, reading)
        return fields

    @staticmethod
    def _misses(objects: RuleObjects, end: End, packet: Packet, reading: Reading) -> Record:
        """Of a packet that no policy allowed: which set would have had to hold it."""
        texts: dict[str, None] = {}
        for miss in islice(set_misses(reading.ruleset, end, packet), MAX_MISSES):
            owner = objects.of(miss.rule, packet)
            whose = f"{owner.kind} {owner.label}" if owner and owner.name else miss.rule.chain
            side = f"{miss.side} of {whose}" if miss.side else whose
            texts[f"{miss.value} is not in set {miss.name} ({side})"] = None
        return {"netfilter.misses": list(texts)} if texts else {}

    def _get(self, ruleset: Ruleset, node: Node) -> RuleObjects:
        known = self._objects.get(id(ruleset))
        if known is None or known[0] is not ruleset or known[1] is not node:
            if len(self._objects) >= MAX_RULESETS:
                self._objects.clear()
            known = self._objects[id(ruleset)] = ruleset, node, RuleObjects(ruleset, node)
        return known[2]
