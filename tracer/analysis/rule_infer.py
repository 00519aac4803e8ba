"""A drop and a reading of the rules → the rules that can have dropped it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.hooks import base_chains
from tracer.analysis.ruleset.model import XT_LEGACY

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import Host, Packet, Ruleset, Verdict
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
    place = end.base.family, end.base.table, end.base.backend, end.base.name
    return (*place, end.rule.chain, end.rule.index) if end.rule else place
