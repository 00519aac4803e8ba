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
from tracer.analysis.ruleset.model import Answer, Host
from tracer.analysis.ruleset.walk import Run, Walker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.analysis.ruleset.model import Chain, Packet, Rule, Ruleset, Verdict

MAX_CANDIDATES = 64
_MAX_RUNS = 16 * MAX_CANDIDATES
_NOTHING_KNOWN = Host()


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
    if bases is None:
        device = packet.oif if hook == "egress" else packet.iif
        bases = base_chains(ruleset, hook, packet.family, device)
    walker = Walker(ruleset, hook, host, bases)
    walker.pending.append(Run(packet))
    found: dict[tuple[object, ...], Verdict] = {}
    runs = 0
    while walker.pending and len(found) < MAX_CANDIDATES and runs < _MAX_RUNS:
        runs += 1
        verdict = walker.walk(walker.pending.pop())
        found.setdefault(_ends(verdict), verdict)
    cut = bool(walker.pending) or ruleset.incomplete
    return Answer(tuple(found.values()), tuple(walker.unknown), cut)


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
        (end.base.table, end.base.name, end.verdict)
        + ((end.rule.chain, end.rule.index) if end.rule else ())
        for end in verdict.ends
    )
