"""Netfilter hops of a packet's way, and what the rules that took it there did, as fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis.branches import HOP
from tracer.analysis.headers import packet_key
from tracer.analysis.objects.answer import without_comments
from tracer.analysis.packet import ETH_P_IP, ETH_P_IPV6, parse
from tracer.analysis.paths import NF_FAMILIES, NF_HOOKS
from tracer.analysis.rule_packet import packet_in_hop
from tracer.analysis.ruleset.model import End, Packet
from tracer.layout import layout

if TYPE_CHECKING:
    import numpy as np

    from tracer.analysis.assemble import Path
    from tracer.analysis.ruleset.model import Rule
    from tracer.model import Node

_TO = r"(?:ip6? )?(?:addr \. port |prefix |interval )?to\b"
"""Not the `dnat` and `snat` of `ct status`."""
_CHANGES = (
    ("masquerade", re.compile(r"-j MASQUERADE\b|\bmasquerade\b")),
    ("snat", re.compile(rf"-j SNAT\b|\bsnat {_TO}")),
    ("dnat", re.compile(rf"-j DNAT\b|\bdnat {_TO}")),
    ("redirect", re.compile(r"-j REDIRECT\b|\bredirect\b")),
    ("mark", re.compile(r"-j MARK\b|-j CONNMARK --restore|\bmeta mark set\b")),
    ("conntrack mark", re.compile(r"-j CONNMARK --(?:set|save)|\bct mark set\b")),
)
"""What a rule can make of a packet → how its text says so, in both notations."""
_IPV4, _IPV4_PROTOCOL, _IPV6_NEXT_HEADER = 4, 9, 6
"""Where the protocol's number stands."""


@dataclass(frozen=True, slots=True)
class HookHop:
    """A packet in one netfilter hook."""

    at: int
    """Which of the record's `hops` it is."""
    netns: int
    family: str
    hook: str
    """`prerouting`, …: as rules write it."""
    keys: tuple[bytes, ...]
    """`packet_key` of what came, and of what left or died there."""
    begin_ns: int
    end_ns: int
    skb: int = 0
    row: int = -1
    """Of the path's batch: where it came into the hook."""
    leave: int = -1
    """Where it left the hook; -1 where it did not: it died there, or was queued or stolen."""
    iif: int = 0
    """ifindex of the device by which it came into the namespace, as far as its way tells."""

    @property
    def event(self) -> tuple[int, int]:
        """What tells the record of its beginning from all others: (time_ns, skb)."""
        return self.begin_ns, self.skb

    @property
    def families(self) -> tuple[str, ...]:
        """Of the tables that are asked in this hook."""
        return (self.family, "inet") if self.family in ("ip", "ip6") else (self.family,)


def hook_hops(path: Path) -> list[HookHop]:
    """The netfilter hops of a packet, by time."""
    rows, order = path.batch.rows, path.batch.order
    absorbed = set(order.leave[path.start : path.stop].tolist())
    hops, came = [], {}
    visible = (row for row in range(path.start, path.stop) if row not in absorbed)
    for at, row in enumerate(visible):
        hook = int(rows["nf_hook"][row])
        if rows["hop"][row] != HOP.HOP_NF_ENTER or hook >= len(NF_HOOKS):
            continue
        after = int(order.leave[row] if order.leave[row] >= 0 else order.following[row])
        end = row if after < 0 else after
        keys = tuple(dict.fromkeys(filter(None, (_key(rows[it]) for it in (row, end)))))
        begin_ns, end_ns = (int(rows["time_ns"][it]) for it in (row, end))
        family = NF_FAMILIES.get(int(rows["nf_family"][row]), "")
        netns, ifindex = int(rows["netns"][row]), int(rows["ifindex"][row])
        if NF_HOOKS[hook] in ("PREROUTING", "INPUT"):
            came[netns] = ifindex
        leave, skb = int(order.leave[row]), int(rows["skb"][row])
        seen = begin_ns, end_ns, skb, row, leave, came.get(netns, 0)
        hops.append(HookHop(at, netns, family, NF_HOOKS[hook].lower(), keys, *seen))
    return hops


def packets_of(path: Path, hop: HookHop, node: Node) -> tuple[Packet, Packet]:
    """The packet of a hop that let it pass: as it came into the hook, and as it left."""
    rows = path.batch.rows
    entered, left = rows[hop.row], rows[hop.leave]
    here = node.devices.get((hop.netns, int(entered["ifindex"])))
    came = node.devices.get((hop.netns, hop.iif))
    out, into = (one.name if one else None for one in (here, came))
    devices = {
        "prerouting": (out, ""),
        "input": (out, ""),
        "forward": (into, out),
        "output": ("", out),
        # What the namespace itself has sent came by none; of others the way tells, if it is whole.
        "postrouting": (into, out),
    }[hop.hook]
    tracked = None if entered["ct"]["present"] else left
    return packet_in_hop(entered, devices, tracked), packet_in_hop(left, devices)


def _key(row: np.void) -> bytes:
    data = row["packet"].tobytes()[: int(row["captured_bytes"])]
    return packet_key(data[layout().constants["L2_BYTES"] :])


def packet_of(network: bytes, transport: bytes) -> Packet:
    """What its headers tell of a packet, to look rules up with; IPv4 and IPv6."""
    is_ipv4 = network[0] >> 4 == _IPV4
    told = parse(ETH_P_IP if is_ipv4 else ETH_P_IPV6, network + transport)
    return Packet(
        "ip" if is_ipv4 else "ip6",
        told.get("src.address"),
        told.get("dst.address"),
        network[_IPV4_PROTOCOL if is_ipv4 else _IPV6_NEXT_HEADER],
        told.get("src.port"),
        told.get("dst.port"),
    )


def changes_by(rule: Rule | None) -> list[str]:
    """What a rule makes of a packet: `dnat`, `mark`, …; by its text."""
    if rule is None:
        return []
    text = without_comments(rule.text)
    return [name for name, pattern in _CHANGES if pattern.search(text)]


def decisions(end: End) -> list[End]:
    """The rules of a base chain that changed the packet, in order, and how the chain ended."""
    changing = [
        End(end.base, passed.verdict, passed.rule, end.walk[: number + 1])
        for number, passed in enumerate(end.walk)
        if passed.rule is not end.rule and changes_by(passed.rule)
    ]
    return [*changing, end]
