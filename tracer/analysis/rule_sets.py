"""What of a packet the sets hold, or do not hold, that the rules on its way looked into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.packet import transport
from tracer.analysis.ruleset import ipsets
from tracer.analysis.ruleset.compile import steps
from tracer.analysis.ruleset.fields import View, field
from tracer.analysis.ruleset.model import Host
from tracer.analysis.ruleset.steps import Concat, Constant, Field, Match, Named, TakeMapped

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import End, Packet, Rule, Ruleset
    from tracer.analysis.ruleset.steps import Expression

_HOST = Host()
_ADDRESSES = {f"{family} {end}addr" for family in ("ip", "ip6") for end in "sd"}


def set_lookups(ruleset: Ruleset, end: End, packet: Packet) -> list[str]:
    """`10.244.0.6 in SET`, `… not in SET`: of the rules that led to the end, in order.

    They matched, so each set answered as its rule wants; `packet` is as it entered the hook.
    What a rule looks up that is not known of the packet is left out.
    """
    rules = (*end.path, end.rule) if end.rule else end.path
    found = (text for rule in rules if rule.text for text in _of_rule(ruleset, rule, packet))
    return list(dict.fromkeys(found))


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
