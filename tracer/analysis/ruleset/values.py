"""The words of rules as numbers: addresses, protocols, states, flags (nft describe).

A word that is not known raises ValueError: whoever asks then does not know what the rule
means, which is better than a wrong number.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.steps import Interval, Wildcard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.analysis.ruleset.steps import Part, Scalar

PROTOCOLS = {
    "ip": 0, "hopopt": 0, "icmp": 1, "igmp": 2, "ipencap": 4, "ipip": 4, "tcp": 6, "egp": 8,
    "udp": 17, "dccp": 33, "ipv6": 41, "ipv6-route": 43, "ipv6-frag": 44, "rsvp": 46, "gre": 47,
    "esp": 50, "ipsec-esp": 50, "ah": 51, "ipsec-ah": 51, "icmpv6": 58, "ipv6-icmp": 58,
    "icmp6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "eigrp": 88, "ospf": 89, "ospfigp": 89,
    "pim": 103, "comp": 108, "ipcomp": 108, "vrrp": 112, "l2tp": 115, "sctp": 132, "mh": 135,
    "mobility-header": 135, "udplite": 136, "mptcp": 262,
}  # fmt: skip
CT_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
CT_STATUS = {
    "expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32,
    "seq-adjust": 64, "snat-done": 128, "dnat-done": 256, "dying": 512, "fixed-timeout": 1024,
    "template": 2048, "nat-clash": 4096, "helper": 8192, "offload": 16384,
}  # fmt: skip
TCP_FLAGS = {
    "fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128,
    "none": 0, "all": 63,
}  # fmt: skip
_ICMP = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5,
    "echo-request": 8, "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11,
    "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15,
    "info-reply": 16, "address-mask-request": 17, "address-mask-reply": 18,
}  # fmt: skip
_ICMPV6 = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "mld-listener-reduction": 132, "nd-router-solicit": 133,
    "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136,
    "nd-redirect": 137, "router-renumbering": 138, "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
_DSCP = {
    "cs0": 0, "lephb": 1, "cs1": 8, "af11": 10, "af12": 12, "af13": 14, "cs2": 16, "af21": 18,
    "af22": 20, "af23": 22, "cs3": 24, "af31": 26, "af32": 28, "af33": 30, "cs4": 32, "af41": 34,
    "af42": 36, "af43": 38, "cs5": 40, "va": 44, "ef": 46, "cs6": 48, "cs7": 56,
}  # fmt: skip
_ETHER_TYPES = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD, "8021q": 0x8100, "vlan": 0x8100,
                "8021ad": 0x88A8}  # fmt: skip
ARP_OPERATIONS = {"request": 1, "reply": 2, "rrequest": 3, "rreply": 4, "inrequest": 8,
                  "inreply": 9, "nak": 10}  # fmt: skip

WORDS: dict[str, Mapping[str, int]] = {
    "inet_proto": PROTOCOLS,
    "ct_state": CT_STATES,
    "ct_status": CT_STATUS,
    "tcp_flag": TCP_FLAGS,
    "icmp_type": _ICMP,
    "icmpv6_type": _ICMPV6,
    "dscp": _DSCP,
    "ether_type": _ETHER_TYPES,
    "arp_op": ARP_OPERATIONS,
    "nf_proto": {"ipv4": 2, "ipv6": 10},
    "ct_dir": {"original": 0, "reply": 1},
    "uid": {"root": 0},
    "gid": {"root": 0},
    "boolean": {"exists": 1, "missing": 0},
}
"""Type → its words."""
FLAGS = frozenset({"ct_state", "ct_status", "tcp_flag"})
"""Types of which a match without operator asks for any of the bits."""
_NAMES = frozenset({"ifname", "iface_index", "fib_addrtype", "ether_addr", "pkt_type", "string"})
_SAME = {"unicast": "host"}
"""For `meta pkttype`, where nft says either."""

FIELD_TYPES = {
    **dict.fromkeys(("ip saddr", "ip daddr", "arp saddr ip", "arp daddr ip"), "ipv4_addr"),
    **dict.fromkeys(("ip6 saddr", "ip6 daddr"), "ipv6_addr"),
    **dict.fromkeys(("ip protocol", "ip6 nexthdr", "meta l4proto", "ct protocol"), "inet_proto"),
    **dict.fromkeys(("meta nfproto", "ct l3proto"), "nf_proto"),
    **dict.fromkeys(("meta protocol", "ether type"), "ether_type"),
    **dict.fromkeys(("ether saddr", "ether daddr"), "ether_addr"),
    **dict.fromkeys(("arp saddr ether", "arp daddr ether"), "ether_addr"),
    "arp operation": "arp_op",
    **dict.fromkeys(("ip dscp", "ip6 dscp"), "dscp"),
    **dict.fromkeys(("meta iifname", "meta oifname", "meta iif", "meta oif"), "ifname"),
    **dict.fromkeys(("meta ibrname", "meta obrname"), "ifname"),
    **dict.fromkeys(("physdev in", "physdev out"), "ifname"),
    "meta pkttype": "pkt_type",
    "meta skuid": "uid",
    "meta skgid": "gid",
    "ct state": "ct_state",
    "ct status": "ct_status",
    "ct direction": "ct_dir",
    "tcp flags": "tcp_flag",
    "icmp type": "icmp_type",
    "icmpv6 type": "icmpv6_type",
}


def field_type(name: str) -> str:
    """nftables' type of a field, `integer` where its values are but numbers."""
    words = name.split()
    if words[0] == "fib":
        return {"type": "fib_addrtype", "oifname": "ifname"}.get(words[-1], "integer")
    if words[0] == "ct" and words[-1] in {"saddr", "daddr"}:
        return "address"
    return FIELD_TYPES.get(name, "integer")


@lru_cache(maxsize=65536)
def address(text: str) -> int:
    """An IPv4 or IPv6 address as a number; ValueError when it is none."""
    return int(ip_address(text))


def literal(kind: str, word: Scalar) -> Scalar:
    """One word of a rule, of a type; ValueError when it has no such word."""
    kind = FIELD_TYPES.get(kind, kind)
    if isinstance(word, int):
        return word
    if kind in {"ipv4_addr", "ipv6_addr", "address"}:
        return address(word)
    if kind in _NAMES:
        return _SAME.get(word, word) if kind == "pkt_type" else word
    if (found := WORDS.get(kind, {}).get(word.lower())) is not None:
        return found
    return int(word, 0)


def part(kind: str, word: Scalar) -> Part:
    """One word as what a value may be; a trailing `*` of a device's name is a wildcard."""
    kind = FIELD_TYPES.get(kind, kind)
    if kind == "ifname" and isinstance(word, str) and word.endswith("*"):
        return Wildcard(word[:-1])
    value = literal(kind, word)
    return Interval(value, value)


@lru_cache(maxsize=65536)
def network(text: str) -> Interval:
    """`10.0.0.0/8` or `fd00::1` as the addresses it covers; ValueError for holes in its mask."""
    found = ip_network(text, strict=False)
    return Interval(int(found.network_address), int(found.broadcast_address))
