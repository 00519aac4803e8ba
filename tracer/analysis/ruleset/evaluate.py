"""What a ruleset says to a packet at a hook, and which rules a packet moved.

    reader = read.Reader()
    before = reader.read(texts)
    answer = evaluate(before, "forward", packet, host)
    answer.certain                      # one end only, whatever was not known on the way
    answer.verdict.verdict              # "drop"
    answer.verdict.rule                 # the rule that dropped; None: the chain's policy
    answer.verdict.path                 # the rules that jumped to it
    counted = moved(before, reader.read(later))     # evidence: rules whose counters moved

The packet is given as it enters the hook, before NAT there; what is None in it is not known.
A match that needs what is not known, or what nobody can repeat (random, limits, sets that
packets change), makes two candidates: one for its yes, one for its no.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.hooks import base_chains
from tracer.analysis.ruleset.model import XT_LEGACY, Answer, Host
from tracer.analysis.ruleset.walk import Run, Walker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.analysis.ruleset.model import Chain, Packet, Rule, Ruleset, Verdict

MAX_CANDIDATES = 64
_MAX_RUNS = 16 * MAX_CANDIDATES
_NOTHING_KNOWN = Host()
_ORDER = "whether iptables-legacy or nf_tables comes first at one priority"


def evaluate(
    ruleset: Ruleset,
    hook: str,
    packet: Packet,
    host: Host = _NOTHING_KNOWN,
    bases: Sequence[Chain] | None = None,
) -> Answer:
    """The verdict of all base chains of a hook, or of `bases` only, in that order.

    Of a packet that a bridge handles by itself give `base_chains(…, "bridge")`; where the
    base chain that decided is known, give that one. Candidates come in the order of the rules.
    """
    device = packet.oif if hook == "egress" else packet.iif
    orders = [bases] if bases is not None else _orders(ruleset, hook, packet.family, device)
    found: dict[tuple[object, ...], Verdict] = {}
    unknown: dict[str, None] = {}
    cut = ruleset.incomplete
    for order in orders:
        walker = Walker(ruleset, hook, host, order)
        for verdict in _candidates(walker, packet):
            if order is orders[0] or not any(_same(verdict, one) for one in found.values()):
                found.setdefault(_ends(verdict), verdict)
                unknown.update(walker.unknown if order is orders[0] else {_ORDER: None})
        unknown.update(walker.unknown)
        cut |= bool(walker.pending)
    return Answer(tuple(found.values()), tuple(unknown), cut)


def _orders(
    ruleset: Ruleset, hook: str, family: str, device: str | None
) -> list[tuple[Chain, ...]]:
    """The orders in which the kernel may call the base chains: two where tools do not tell."""
    orders = [
        base_chains(ruleset, hook, family, device, legacy_first=first) for first in (False, True)
    ]
    return orders[:1] if orders[0] == orders[1] else orders


def _candidates(walker: Walker, packet: Packet) -> Iterator[Verdict]:
    """Every fate that ends by other rules, up to a limit; what is left stays in `pending`."""
    walker.pending.append(Run(packet))
    seen: set[tuple[object, ...]] = set()
    runs = 0
    while walker.pending and len(seen) < MAX_CANDIDATES and runs < _MAX_RUNS:
        runs += 1
        verdict = walker.walk(walker.pending.pop())
        if _ends(verdict) not in seen:
            seen.add(_ends(verdict))
            yield verdict


def _same(one: Verdict, other: Verdict) -> bool:
    """Whether the same rule or policy decided the same; of what passed, every chain's."""
    if one.verdict != other.verdict:
        return False
    if one.verdict == "accept":
        return set(_ends(one)) == set(_ends(other))
    return _ends(one)[-1] == _ends(other)[-1]


@dataclass(frozen=True, slots=True)
class Moved:
    """A rule that counted between two readings."""

    rule: Rule
    """As of the later reading."""
    packets: int
    """How many more."""
    bytes: int


def moved(before: Ruleset, after: Ruleset) -> tuple[Moved, ...]:
    """Rules whose counters grew, in the order of the later reading.

    A rule that is new, or whose counter was set back, counts from 0. Rules without a counter
    tell nothing.
    """
    found = []
    for key, table in after.tables.items():
        older = before.tables.get(key)
        if older is table:
            continue
        known = dict(_counted(older.chains)) if older else {}
        for place, rule in _counted(table.chains):
            old = known.get(place)
            packets, size = rule.packets or 0, rule.bytes or 0
            if old and (old.packets or 0) <= packets:
                packets, size = packets - (old.packets or 0), size - (old.bytes or 0)
            if packets:
                found.append(Moved(rule, packets, size))
    return tuple(found)


def count_before(before: Ruleset, ruleset: Ruleset, rule: Rule) -> int:
    """What the counter of a rule of `ruleset` stood at in an older reading; 0 if it is newer."""
    key = rule.family, rule.table, rule.backend == XT_LEGACY
    table, now = before.tables.get(key), ruleset.tables.get(key)
    chain = table.chains.get(rule.chain) if table else None
    if table is None or now is None or chain is None or table.handle != now.handle:
        return 0
    # Of rules alike the first decides: the others never count.
    same = (
        one
        for one in chain.rules
        if (one.handle == rule.handle if one.handle and rule.handle else one.body == rule.body)
    )
    found = next(same, None)
    return (found.packets or 0) if found else 0


def was_replaced(before: Ruleset, ruleset: Ruleset, rule: Rule) -> bool:
    """Whether a rule of `ruleset` took the place of one alike, or its counter was set back.

    `iptables-restore` does that to every rule of a chain: then a 0 says nothing of earlier packets.
    """
    key = rule.family, rule.table, rule.backend == XT_LEGACY
    table, now = before.tables.get(key), ruleset.tables.get(key)
    chain = table.chains.get(rule.chain) if table else None
    alike = [one for one in (chain.rules if chain else ()) if _said(one) == _said(rule)]
    if not alike or table is None or now is None:
        return False
    same = table.handle == now.handle and any(one.handle in (0, rule.handle) for one in alike)
    return not same or any((one.packets or 0) > (rule.packets or 0) for one in alike)


def _said(rule: Rule) -> object:
    """What a rule says, without what it has counted."""
    source = rule.body.source
    return source if isinstance(source, str) else [one for one in source if "counter" not in one]


def _counted(chains: Mapping[str, Chain]) -> Iterator[tuple[tuple[object, ...], Rule]]:
    """Rules that count, by their handle; without one by what they say and how often before."""
    for chain in chains.values():
        seen: dict[object, int] = {}
        for rule in chain.rules:
            if rule.packets is None:
                continue
            identity = rule.handle or rule.text
            seen[identity] = seen.get(identity, 0) + 1
            yield (chain.name, identity, seen[identity]), rule


def _ends(verdict: Verdict) -> tuple[object, ...]:
    """What tells two candidates apart: where each base chain ended, and how."""
    return tuple(
        (end.base.family, end.base.table, end.base.backend, end.base.name, end.verdict)
        + ((end.rule.chain, end.rule.index) if end.rule else ())
        for end in verdict.ends
    )
