"""Which base chains a packet meets at a hook, in the kernel's order, and what NAT does there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.model import XT_LEGACY

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import Chain, Conntrack, Packet, Ruleset, Table

CONNTRACK_PRIORITY = -200
"""NF_IP_PRI_CONNTRACK: where packets get their conntrack entry, coming in or sent."""
_NAT_SLOTS = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
"""Hook → where the kernel calls all nat chains, whatever their own priority."""
_DESTINATION = frozenset({"prerouting", "output"})
_DEVICE_HOOKS = frozenset({"ingress", "egress"})
_ICMP = frozenset({1, 58})


def base_chains(
    ruleset: Ruleset,
    hook: str,
    family: str,
    device: str | None = None,
    *,
    legacy_first: bool = False,
) -> tuple[Chain, ...]:
    """Base chains that a packet of `family` meets at `hook`, in order.

    `family` is `ip` or `ip6` (with those of `inet`), `arp`, or `bridge` for a frame that a
    bridge handles. At `ingress` and `egress` only chains of `device` count. Among
    chains of one priority the kernel calls first which was hooked in last: by handles. Of one of
    iptables-legacy and one of nf_tables nothing tells: `legacy_first` decides.
    """
    own = "netdev" if hook in _DEVICE_HOOKS else family
    families = {own, "inet"} if family in {"ip", "ip6"} else {own}
    found = [
        (table, chain)
        for table in ruleset.tables.values()
        if table.family in families and "dormant" not in table.flags
        for chain in table.chains.values()
        if chain.base and chain.base.hook == hook
        # Where no tool told the devices of a chain, it may be any.
        if hook not in _DEVICE_HOOKS or not chain.base.devices or device in chain.base.devices
    ]
    found.sort(key=lambda pair: _order(pair[0], pair[1], legacy_first=legacy_first))
    return tuple(chain for _, chain in found)


def slot(chain: Chain) -> int:
    """The priority at which the kernel really calls a base chain."""
    base = chain.base
    if base is None:
        raise ValueError(chain.name)
    return _NAT_SLOTS.get(base.hook, base.priority) if base.type == "nat" else base.priority


def nat_slot(hook: str) -> int | None:
    """The priority of NAT at a hook; None where there is none."""
    return _NAT_SLOTS.get(hook)


def translates(ruleset: Ruleset, family: str) -> bool:
    """Whether NAT is hooked in at all: one nat chain brings it to every hook."""
    families = {family, "inet"}
    chains = (c for t in ruleset.tables.values() if t.family in families for c in t.chains.values())
    return any(chain.base and chain.base.type == "nat" for chain in chains)


def meets_nat_chains(packet: Packet) -> bool | None:
    """Whether nat chains are asked: they are for a connection's first packet. None: not known."""
    ct = packet.ct
    if ct.state is None:
        return None
    if ct.state not in {"new", "related"} or (ct.state == "related" and packet.protocol in _ICMP):
        return False
    return None if ct.status is None else "confirmed" not in ct.status


def translated(packet: Packet, hook: str) -> Packet:
    """A later packet of a connection after NAT at this hook, by its conntrack entry."""
    ct = packet.ct
    if ct.state in {"invalid", "untracked"} or _untouched(ct, hook):
        return packet
    other = {"original": ct.reply, "reply": ct.original}.get(ct.direction or "")
    if hook in _DESTINATION:
        return replace(
            packet, daddr=other.saddr if other else None, dport=other.sport if other else None
        )
    return replace(
        packet, saddr=other.daddr if other else None, sport=other.dport if other else None
    )


def _untouched(ct: Conntrack, hook: str) -> bool:
    """Whether no NAT of this side is on the connection."""
    if ct.status is None or ct.direction is None:
        return ct.status is not None and not ct.status & {"snat", "dnat"}
    # What was done to the source of the one direction is undone to the destination of the other.
    original = ct.direction == "original"
    return ("dnat" if (hook in _DESTINATION) == original else "snat") not in ct.status


def _order(table: Table, chain: Chain, *, legacy_first: bool) -> tuple[int, ...]:
    base = chain.base
    priority = base.priority if base else 0
    legacy = (table.backend == XT_LEGACY) is not legacy_first
    return slot(chain), priority, legacy, -table.handle, -chain.handle
