"""A drop and a reading of the rules → the rules that can have dropped it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.analysis.rule_fields import chains_of
from tracer.analysis.rule_hops import decisions
from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.hooks import base_chains
from tracer.analysis.ruleset.model import XT_LEGACY

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import End, Host, Packet, Ruleset, Verdict
    from tracer.model import Record

_LETHAL = {"nf_tables": ("drop", "reject"), "hook": ("drop", "reject"), "nf_queue": ("queue",)}


def lethal_verdicts(
    ruleset: Ruleset, record: Record, packet: Packet, host: Host
) -> tuple[Verdict, ...]:
    """Every verdict, at the hook where the drop was, that drops such a packet.

    No two of them by the same rule. Several where the drop does not tell what a rule asks for;
    none where these rules let it pass.
    """
    hook = str(record.get("netfilter.hook", "")).lower()
    mechanism = record.get("netfilter.mechanism", "")
    if not hook or mechanism not in _LETHAL:
        return ()
    family = "bridge" if record.get("netfilter.family") == "bridge" else packet.family
    device = packet.oif if hook == "egress" else packet.iif
    bases = base_chains(ruleset, hook, family, device)
    answer = evaluate(ruleset, hook, as_it_came(packet, hook), host, bases)
    found: dict[tuple[object, ...], Verdict] = {}
    for verdict in answer.candidates:
        if verdict.verdict in _LETHAL[mechanism] and _fits(verdict, record):
            found.setdefault(_decider(verdict), verdict)
    return tuple(found.values())


def passed_ends(
    ruleset: Ruleset, hook: str, packet: Packet, left: Packet, host: Host
) -> tuple[End, ...]:
    """How each base chain of a hook ended that let a packet pass, where that is certain.

    Of all that these rules can have done to it, what counts makes of `packet`, as it came, what it
    was when it left. A base chain of which they do not tell the same is left out.
    """
    answer = evaluate(ruleset, hook, packet, host)
    if answer.cut:
        return ()
    likely = [
        verdict
        for verdict in answer.candidates
        if verdict.verdict == "accept" and _becomes(verdict.packet, left)
    ]
    by_base = [{_base(end): end for end in verdict.ends} for verdict in likely]
    return tuple(
        end
        for base, end in (by_base[0].items() if by_base else ())
        if all(base in other and _alike(end, other[base]) for other in by_base[1:])
    )


def _becomes(made: Packet, left: Packet) -> bool:
    """Whether a packet that rules have made is the one that left; what is unknown may be."""
    names = ("saddr", "daddr", "sport", "dport", "mark")
    pairs = ((getattr(made, name), getattr(left, name)) for name in names)
    return all(one is None or one == other for one, other in pairs)


def _alike(one: End, other: End) -> bool:
    """Whether two ends of a base chain are by the same rules, by way of the same chains."""
    return one.verdict == other.verdict and _decided(one) == _decided(other)


def _decided(end: End) -> list[tuple[object, ...]]:
    return [
        (*chains_of(one), one.rule.index if one.rule else -1, one.verdict) for one in decisions(end)
    ]


def _base(end: End) -> tuple[str, ...]:
    return end.base.family, end.base.table, end.base.backend, end.base.name


def as_it_came(packet: Packet, hook: str) -> Packet:
    """The packet as it entered the hook, where conntrack has translated its destination since."""
    original = packet.ct.original
    translated = "dnat" in (packet.ct.status or ()) and packet.ct.direction == "original"
    if hook not in ("prerouting", "output") or not translated or original is None:
        return packet
    return replace(packet, daddr=original.daddr, dport=original.dport)


def _fits(verdict: Verdict, record: Record) -> bool:
    """Whether what decided is of the kind that dropped: nft_do_chain tells its family."""
    chain = verdict.chain
    if chain is None:
        return False
    if record["netfilter.mechanism"] != "nf_tables":
        return True
    return chain.backend != XT_LEGACY and record.get("netfilter.family") in (chain.family, None)


def _decider(verdict: Verdict) -> tuple[object, ...]:
    end = verdict.ends[-1]
    place = _base(end)
    return (*place, end.rule.chain, end.rule.index) if end.rule else place
