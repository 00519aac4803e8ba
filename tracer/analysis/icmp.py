"""ICMP and ICMPv6 types and codes in words (RFC 792, 1812, 4443, 4861)."""

from __future__ import annotations

import struct
from socket import AF_INET6, inet_ntop

ICMP_ERRORS = {"icmp": frozenset((3, 4, 5, 11, 12)), "icmpv6": frozenset((1, 2, 3, 4))}
"""Types that quote the packet they are about, from byte 8 on."""

_TYPES = {
    "icmp": {
        0: "echo reply", 3: "destination unreachable", 4: "source quench", 5: "redirect",
        8: "echo request", 9: "router advertisement", 10: "router solicitation",
        11: "time exceeded", 12: "parameter problem", 13: "timestamp request",
        14: "timestamp reply",
    },
    "icmpv6": {
        1: "destination unreachable", 2: "packet too big", 3: "time exceeded",
        4: "parameter problem", 128: "echo request", 129: "echo reply",
        130: "multicast listener query", 131: "multicast listener report",
        132: "multicast listener done", 133: "router solicitation",
        134: "router advertisement", 135: "neighbour solicitation",
        136: "neighbour advertisement", 137: "redirect",
        143: "multicast listener report v2",
    },
}  # fmt: skip

_CODES = {
    ("icmp", 3): (
        "network unreachable", "host unreachable", "protocol unreachable", "port unreachable",
        "fragmentation needed", "source route failed", "network unknown", "host unknown",
        "source host isolated", "network prohibited", "host prohibited",
        "network unreachable for TOS", "host unreachable for TOS",
        "administratively prohibited", "host precedence violation", "precedence cutoff",
    ),
    ("icmp", 5): ("for network", "for host", "for TOS and network", "for TOS and host"),
    ("icmp", 11): ("TTL exceeded in transit", "fragment reassembly time exceeded"),
    ("icmpv6", 1): (
        "no route", "administratively prohibited", "beyond scope of source address",
        "address unreachable", "port unreachable", "source address failed policy",
        "reject route",
    ),
    ("icmpv6", 3): ("hop limit exceeded in transit", "fragment reassembly time exceeded"),
    ("icmpv6", 4): ("erroneous header", "unrecognised next header", "unrecognised option"),
}  # fmt: skip

_NEIGHBOUR_TYPES = (135, 136)


def description(family: str, kind: int, code: int, data: bytes) -> str:
    """Put a message into words; `family` is `icmp` or `icmpv6`, `data` begins with its header.

    `data` may be cut: then ids, MTU and targets are left out.
    """
    codes = _CODES.get((family, kind), ())
    words = _TYPES[family].get(kind, f"type {kind}")
    if codes:
        words = codes[code] if code < len(codes) else f"{words} code {code}"
    elif code:
        words += f" code {code}"
    return words + _detail(family, kind, code, data)


def _detail(family: str, kind: int, code: int, data: bytes) -> str:
    if len(data) < 8:  # noqa: PLR2004 - struct icmphdr
        return ""
    ident, sequence = struct.unpack_from("!HH", data, 4)
    if _TYPES[family].get(kind, "").startswith("echo"):
        return f" id {ident} seq {sequence}"
    if (family, kind, code) == ("icmp", 3, 4):
        return f", mtu {sequence}"
    if (family, kind) == ("icmpv6", 2):
        return f", mtu {ident << 16 | sequence}"
    if family == "icmpv6" and kind in _NEIGHBOUR_TYPES and len(data) >= 24:  # noqa: PLR2004
        return f" for {inet_ntop(AF_INET6, data[8:24])}"
    return ""
