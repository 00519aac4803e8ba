"""One packet's walk through the base chains of a hook; where it forks, both ways."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tracer.analysis.ruleset import hooks
from tracer.analysis.ruleset.compile import steps as steps_of
from tracer.analysis.ruleset.fields import Absent, View, assigned
from tracer.analysis.ruleset.judge import Judge
from tracer.analysis.ruleset.model import XT_LEGACY, End, Passed, Verdict
from tracer.analysis.ruleset.steps import (
    Assign,
    Constant,
    Take,
    TakeMapped,
    Test,
    Translate,
    Unknowable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.analysis.ruleset.model import Chain, Host, Packet, Rule, Ruleset, TableKey
    from tracer.analysis.ruleset.steps import Step

FIRST_PACKET = "first packet of its connection"
_FINAL = frozenset({"drop", "reject", "queue", "stolen", "unknown"})
_DESTINATION = frozenset({"dnat", "redirect"})
_NO_CHOICE = frozenset({"dnat", "snat"})
_BEFORE_CONNTRACK = frozenset({"prerouting", "output"})
_CONTINUE, _ACCEPT = Take("continue"), Take("accept")


@dataclass(slots=True)
class Run:
    """One way that the packet may go, and how far it came."""

    packet: Packet
    at: int = 0
    """Index of the base chain."""
    stack: list[tuple[Chain, int]] = field(default_factory=list)
    """Chains that it is in, each with the index of its next rule; the base chain first."""
    walk: list[Passed] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    answers: dict[str, bool] = field(default_factory=dict)
    """What was assumed of matches that answer the same whenever they are asked."""
    first: bool | None = None
    """Whether it meets nat chains; None until NAT's priority is reached."""
    translated: bool = False
    forced: Take | None = None
    """A verdict to take at once: one of several that a map may hold."""

    def copy(self) -> Run:
        """The same way so far, to go on otherwise."""
        return Run(
            self.packet, self.at, [*self.stack], [*self.walk], [*self.ends], [*self.assumed],
            {**self.answers}, self.first, self.translated, self.forced,
        )  # fmt: skip


class Walker:
    """Walks runs to their end. What forks off is left in `pending`."""

    def __init__(self, ruleset: Ruleset, hook: str, host: Host, bases: Sequence[Chain]) -> None:
        self._ruleset = ruleset
        self._hook = hook
        self._host = host
        self._bases = bases
        self._judges: dict[TableKey, Judge] = {}
        self._translates: bool | None = None
        self._seen: tuple[Packet, Chain, View] | None = None
        self.pending: list[Run] = []
        self.unknown: dict[str, None] = {}

    def walk(self, run: Run) -> Verdict:
        """Until the hook's verdict; every unknown is taken as yes here, as no in `pending`."""
        while run.at < len(self._bases):
            base = self._bases[run.at]
            if not run.stack and not self._enter(run, base):
                run.at += 1
                continue
            end = self._chain(run, base)
            run.ends.append(end)
            run.at, run.stack, run.walk = run.at + 1, [], []
            if end.verdict in _FINAL:
                break
        else:
            self._leave(run)
        verdict = run.ends[-1].verdict if run.ends else "accept"
        return Verdict(verdict, tuple(run.ends), run.packet, tuple(run.assumed))

    def _enter(self, run: Run, base: Chain) -> bool:
        """Into a base chain; False where the kernel does not call it for this packet."""
        nat = hooks.nat_slot(self._hook)
        if run.first is None and nat is not None and hooks.slot(base) >= nat:
            self._reach_nat(run)
        if base.base and base.base.type == "nat" and (not run.first or run.translated):
            return False
        run.stack = [(base, 0)]
        return True

    def _leave(self, run: Run) -> None:
        """Out of the hook: NAT is done there also where no chain stands behind it."""
        if run.first is None and hooks.nat_slot(self._hook) is not None and self._has_nat(run):
            first = hooks.meets_nat_chains(run.packet)
            run.packet = run.packet if first else hooks.translated(run.packet, self._hook)

    def _has_nat(self, run: Run) -> bool:
        if self._translates is None:
            self._translates = hooks.translates(self._ruleset, run.packet.family)
        return self._translates

    def _reach_nat(self, run: Run) -> None:
        """At NAT's priority: first packets meet its chains, others are translated already."""
        if not self._has_nat(run):
            run.first = False
            return
        run.first = hooks.meets_nat_chains(run.packet)
        if run.first is None:
            other = self._fork(run, FIRST_PACKET)
            run.first, other.first = True, False
            other.packet = hooks.translated(other.packet, self._hook)
        elif not run.first:
            run.packet = hooks.translated(run.packet, self._hook)

    def _chain(self, run: Run, base: Chain) -> End:
        """Through a base chain and what it jumps to, to its end."""
        while run.stack:
            rule, take = self._next(run)
            if rule is None:
                continue
            chain, index = run.stack[-1]
            run.stack[-1] = chain, index + 1
            self._passed(run, rule, take)
            if take.verdict in _FINAL or take.verdict == "accept":
                return End(base, take.verdict, rule, tuple(run.walk))
            if take.verdict in {"jump", "goto"}:
                self._jump(run, rule, take)
            elif take.verdict == "return":
                run.stack.pop()
        policy = base.base.policy if base.base else "accept"
        return End(base, policy, None, tuple(run.walk))

    def _next(self, run: Run) -> tuple[Rule | None, Take]:
        """The next rule of the innermost chain that matches; at its end, leave that chain."""
        chain, index = run.stack[-1]
        rules = chain.rules
        while index < len(rules):
            rule = rules[index]
            run.stack[-1] = chain, index
            forced, run.forced = run.forced, None
            take = forced or self._rule(run, rule)
            if take is not None:
                return rule, take
            index += 1
        run.stack.pop()
        return None, _CONTINUE

    def _jump(self, run: Run, rule: Rule, take: Take) -> None:
        table = self._ruleset.tables[_table_of(self._bases[run.at])]
        target = table.chains.get(take.target)
        if take.verdict == "goto":
            run.stack.pop()
        if target is None:
            self.unknown[f"{rule.text}: chain {take.target} was not read"] = None
        else:
            run.stack.append((target, 0))

    def _rule(self, run: Run, rule: Rule) -> Take | None:
        """What a rule says to the packet; None where it does not match."""
        judge = self._judge(self._bases[run.at])
        steps = steps_of(rule)
        for at, step in enumerate(steps):
            if isinstance(step, Take):
                return step
            if isinstance(step, Assign):
                view = self._view(run)
                value = judge.value(step.value, view)
                if not isinstance(value, Absent):
                    run.packet = assigned(step.field, value, view)
                elif not step.lenient:
                    return None
            elif isinstance(step, Translate):
                self._translate(run, step, judge)
                return _ACCEPT
            elif isinstance(step, TakeMapped):
                return self._mapped(run, step, judge)
            else:
                answer = judge.test(step, self._view(run))
                if answer is None:
                    answer = self._assume(run, step, steps[at + 1 :])
                if not answer:
                    return None
        return _CONTINUE

    def _assume(self, run: Run, step: Step, rest: Sequence[Step]) -> bool:
        """Yes, and no in a fork; nothing forks for a rule that decides and changes nothing."""
        text = step.text  # type: ignore[union-attr] # only tests come here, and each has one
        if text in run.answers:
            return run.answers[text]
        if all(isinstance(one, Test) for one in rest):
            return False
        other = self._fork(run, text)
        if not isinstance(step, Unknowable):
            run.answers[text], other.answers[text] = True, False
        chain, index = other.stack[-1]
        other.stack[-1] = chain, index + 1
        return True

    def _fork(self, run: Run, text: str) -> Run:
        self.unknown[text] = None
        other = run.copy()
        run.assumed.append(f"yes: {text}")
        other.assumed.append(f"no: {text}")
        self.pending.append(other)
        return other

    def _mapped(self, run: Run, step: TakeMapped, judge: Judge) -> Take | None:
        takes, maybe_none = judge.verdicts(step, self._view(run))
        if len(takes) + maybe_none == 1:
            return takes[0] if takes else None
        self.unknown[step.text] = None
        before = run.copy()
        run.assumed.append(_chosen(step, takes[0]))
        if maybe_none:
            other = before.copy()
            other.assumed.append(f"no: {step.text}")
            chain, index = other.stack[-1]
            other.stack[-1] = chain, index + 1
            self.pending.append(other)
        for take in reversed(takes[1:]):
            other = before.copy()
            other.assumed.append(_chosen(step, take))
            other.forced = take
            self.pending.append(other)
        return takes[0]

    def _translate(self, run: Run, step: Translate, judge: Judge) -> None:
        view = self._view(run)
        chosen = step.kind not in _NO_CHOICE
        side = "d" if step.kind in _DESTINATION else "s"
        if step.address is not None or chosen:
            value = judge.value(step.address, view) if step.address else None
            family = "ip6" if view.packet.family == "ip6" else "ip"
            view = replace(view, packet=assigned(f"{family} {side}addr", value, view))
        packet = self._port(f"th {side}port", step, judge, view)
        run.packet, run.translated = _with_status(run.packet, packet, side), True

    @staticmethod
    def _port(name: str, step: Translate, judge: Judge, view: View) -> Packet:
        """The port after NAT: the rule's, else the same, which a source port need not stay."""
        if step.port is not None:
            return assigned(name, judge.value(step.port, view), view)
        kept = step.kind in _DESTINATION and isinstance(step.address, Constant | None)
        return view.packet if kept else assigned(name, None, view)

    def _view(self, run: Run) -> View:
        chain = self._bases[run.at]
        if self._seen and self._seen[0] is run.packet and self._seen[1] is chain:
            return self._seen[2]
        early = self._hook == "ingress" or (
            self._hook in _BEFORE_CONNTRACK and hooks.slot(chain) <= hooks.CONNTRACK_PRIORITY
        )
        # What comes back over lo was tracked when it was sent.
        tracked = not early or (self._hook == "prerouting" and run.packet.iif == "lo")
        view = View(run.packet, self._host, tracked)
        self._seen = run.packet, chain, view
        return view

    def _judge(self, chain: Chain) -> Judge:
        key = _table_of(chain)
        if key not in self._judges:
            table = self._ruleset.tables[key]
            self._judges[key] = Judge(table.sets, self._ruleset.ipsets)
        return self._judges[key]

    @staticmethod
    def _passed(run: Run, rule: Rule, take: Take) -> None:
        jumps = take.verdict in {"jump", "goto"}
        run.walk.append(Passed(rule, f"{take.verdict} {take.target}" if jumps else take.verdict))


def _table_of(chain: Chain) -> TableKey:
    return chain.family, chain.table, chain.backend == XT_LEGACY


def _chosen(step: TakeMapped, take: Take) -> str:
    return f"yes: {step.text}: {take.verdict} {take.target}".rstrip()


def _with_status(before: Packet, after: Packet, side: str) -> Packet:
    """With the bit of NAT in its conntrack status: set where the address or port is another."""
    if before.ct.status is None:
        return after
    words = [f"{side}addr", f"{side}port"]
    old, new = ([getattr(packet, word) for word in words] for packet in (before, after))
    unsure = any(is_now is None and was is not None for was, is_now in zip(old, new, strict=True))
    bit = {"dnat"} if side == "d" else {"snat"}
    status = None if unsure else before.ct.status | bit if old != new else before.ct.status
    return replace(after, ct=replace(after.ct, status=status))
