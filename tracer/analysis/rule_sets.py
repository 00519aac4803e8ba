"""What of a packet the sets hold, or do not hold, that the rules on its way looked into.

Of a packet that no policy allowed also the rules that it met in vain: which set lacked it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tracer.analysis.packet import transport
from tracer.analysis.ruleset import ipsets
from tracer.analysis.ruleset.compile import steps
from tracer.analysis.ruleset.fields import View, field
from tracer.analysis.ruleset.judge import Judge
from tracer.analysis.ruleset.model import XT_LEGACY, Host
from tracer.analysis.ruleset.steps import (
    Assign,
    Concat,
    Constant,
    Field,
    Match,
    Named,
    Take,
    TakeMapped,
    matches,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.analysis.ruleset.model import End, Packet, Rule, Ruleset
    from tracer.analysis.ruleset.steps import Expression

_HOST = Host()
_ADDRESSES = {f"{family} {end}addr" for family in ("ip", "ip6") for end in "sd"}
_ENDS = {"s": "sources", "d": "destinations"}
_ACCEPT = Take("accept")
MAX_MET = 256
"""Rules of policies that are looked at for one packet."""


@dataclass(frozen=True, slots=True)
class Miss:
    """A rule that would have taken a packet, had one set held it."""

    rule: Rule
    value: str
    """What the set lacks: `10.0.0.7`, `10.0.0.7 . tcp . 80`."""
    name: str
    """Of the set."""
    side: str
    """What the rule looks up in it: `sources`, `destinations`; empty: neither alone."""


def set_lookups(ruleset: Ruleset, end: End, packet: Packet) -> list[str]:
    """`10.244.0.6 in SET`, `… not in SET`: of the rules that led to the end, in order.

    They matched, so each set answered as its rule wants; `packet` is as it entered the hook.
    What a rule looks up that is not known of the packet is left out.
    """
    rules = (*end.path, end.rule) if end.rule else end.path
    found = (text for rule in rules if rule.text for text in _of_rule(ruleset, rule, packet))
    return list(dict.fromkeys(found))


def set_misses(ruleset: Ruleset, end: End, packet: Packet) -> Iterator[Miss]:
    """Rules that a set alone kept from allowing a packet which the end of its chain refused.

    Asked are the chains that the packet came to from that of the deciding rule, where policies
    mark what they allow. A rule that something else spoke against too is none.
    """
    rule = end.rule
    key = rule and (rule.family, rule.table, rule.backend == XT_LEGACY)
    table = ruleset.tables.get(key) if key else None
    if rule is None or table is None:
        return
    judge, view = Judge(table.sets, ruleset.ipsets), View(packet, _HOST)
    chains = {rule.chain: table.chains.get(rule.chain)}
    for passed in end.walk:
        verdict, _, target = passed.verdict.partition(" ")
        if verdict == "jump" and passed.rule.chain in chains and target not in chains:
            chains[target] = table.chains.get(target)
    met = (one for chain in chains.values() for one in (chain.rules if chain else ()))
    for one in islice(met, MAX_MET):
        if found := _missed(ruleset, one, judge, view):
            yield found


def _missed(ruleset: Ruleset, rule: Rule, judge: Judge, view: View) -> Miss | None:
    asked = steps(rule)
    if not any(isinstance(step, Assign) or step == _ACCEPT for step in asked):
        return None
    failed = [test for test in matches(asked) if judge.test(test, view) is not True]
    match = failed[0] if len(failed) == 1 else None
    if not isinstance(match, Match) or match.negated or not isinstance(match.goal, Named):
        return None
    if judge.test(match, view) is None:
        return None
    fields = _fields(ruleset, match, view.packet)
    values = [_value(name, view.packet) for name in fields]
    if not values or not all(values):
        return None
    sides = {_ENDS[name.split()[1][0]] for name in fields if name in _ADDRESSES}
    return Miss(rule, " . ".join(values), match.goal.name, sides.pop() if len(sides) == 1 else "")


def _of_rule(ruleset: Ruleset, rule: Rule, packet: Packet) -> list[str]:
    found = []
    for step in steps(rule):
        if isinstance(step, Match) and isinstance(step.goal, Named):
            fields = _fields(ruleset, step, packet)
            answer = "not in" if step.negated else "in"
            named = step.goal.name
        elif isinstance(step, TakeMapped) and isinstance(step.data, Named):
            fields, answer, named = _names(step.key), "in", step.data.name
        else:
            continue
        values = [_value(name, packet) for name in fields]
        if values and all(values):
            found.append(f"{' . '.join(values)} {answer} {named}")
    return found


def _fields(ruleset: Ruleset, match: Match, packet: Packet) -> list[str]:
    """Names of the fields that a match looks up in its set; empty where they are not known."""
    if not isinstance(match.goal, Named) or not match.goal.ipset:
        return _names(match.key)
    known = ruleset.ipsets.get(match.goal.name)
    parts = match.key.parts if isinstance(match.key, Concat) else ()
    ways = [str(part.value) for part in parts if isinstance(part, Constant)]
    return (ipsets.key(known, ways, packet.family) or []) if known else []


def _names(key: Expression) -> list[str]:
    parts = key.parts if isinstance(key, Concat) else (key,)
    names = [part.name for part in parts if isinstance(part, Field)]
    return names if len(names) == len(parts) else []


def _value(name: str, packet: Packet) -> str:
    """What the packet has there, as a person reads it; empty where that is not known."""
    value = field(name, View(packet, _HOST))
    if isinstance(value, int) and name in _ADDRESSES:
        return str(getattr(packet, name.split()[1]))
    if name == "meta l4proto" and isinstance(value, int):
        return transport(value)
    return str(value) if isinstance(value, int | str) else ""
