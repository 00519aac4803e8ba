"""Bytes of one packet, from its network header on → flat record fields, and one line of text.

Captures are short and packets may be broken: whatever cannot be read is left out, and
nothing here raises on any input. Field names and units are those of docs/formats.md.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from typing import TYPE_CHECKING

from tracer.analysis.icmp import ICMP_ERRORS, description

if TYPE_CHECKING:
    from tracer.model import Record

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_VLAN_TAGS = (0x8100, 0x88A8)
_NETWORK_TYPES = {
    ETH_P_IP: "ipv4", ETH_P_ARP: "arp", ETH_P_IPV6: "ipv6", 0x8035: "rarp", 0x8847: "mpls",
    0x8863: "pppoe-discovery", 0x8864: "pppoe", 0x888E: "eapol", 0x88CC: "lldp", 0x88F7: "ptp",
}  # fmt: skip
_ETH_P_802_3_MIN = 0x600
"""Below this the field is a length, and an LLC header follows."""

_ICMP, _TCP, _UDP, _ICMPV6, _SCTP = 1, 6, 17, 58, 132
_TRANSPORTS = {
    _ICMP: "icmp", 2: "igmp", 4: "ipip", _TCP: "tcp", _UDP: "udp", 33: "dccp", 41: "ipv6",
    47: "gre", 50: "esp", 51: "ah", _ICMPV6: "icmpv6", 59: "none", 89: "ospf", 103: "pim",
    112: "vrrp", _SCTP: "sctp", 136: "udplite",
}  # fmt: skip
_WITH_PORTS = frozenset((_TCP, _UDP, 33, _SCTP, 136))
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "NS")
_SCTP_CHUNKS = {
    0: "DATA", 1: "INIT", 2: "INIT_ACK", 3: "SACK", 4: "HEARTBEAT", 5: "HEARTBEAT_ACK",
    6: "ABORT", 7: "SHUTDOWN", 8: "SHUTDOWN_ACK", 9: "ERROR", 10: "COOKIE_ECHO",
    11: "COOKIE_ACK", 14: "SHUTDOWN_COMPLETE",
}  # fmt: skip
_ARP_OPERATIONS = {1: "request", 2: "reply", 3: "rarp request", 4: "rarp reply"}

_IPV6_FRAGMENT, _IPV6_AUTHENTICATION = 44, 51
_IPV6_EXTENSIONS = frozenset((0, 43, _IPV6_FRAGMENT, _IPV6_AUTHENTICATION, 60, 135))


def parse(ethertype: int, data: bytes) -> Record:
    """Fields of the packet whose network header begins `data`, of the given EtherType.

    `data` may be cut anywhere. A VLAN tag in front of the network header is unwrapped.
    The field `packet` holds all of it in one line (`describe`).
    """
    record: Record = {}
    while ethertype in _VLAN_TAGS and len(data) >= 4:  # noqa: PLR2004 - a tag's size
        tag, ethertype = struct.unpack_from("!HH", data)
        record["vlan.id"] = tag & 0xFFF
        data = data[4:]
    record["network.type"] = network_type(ethertype)
    if ethertype == ETH_P_IP:
        _parse_ipv4(data, record)
    elif ethertype == ETH_P_IPV6:
        _parse_ipv6(data, record)
    elif ethertype == ETH_P_ARP:
        _parse_arp(data, record)
    record["packet"] = describe(record)
    return record


@lru_cache(maxsize=512)
def tcp_flags(bits: int) -> str:
    """`SYN,ACK` for the low nine bits of a TCP header's flags word, in header order."""
    return ",".join(name for bit, name in enumerate(TCP_FLAGS) if bits >> bit & 1)


def transport(protocol: int) -> str:
    """Name of an IP protocol number, the number itself where it has no common name."""
    return _TRANSPORTS.get(protocol) or str(protocol)


def endpoint(address: str, port: int | None) -> str:
    """`10.1.0.2:80`, `[fd00::2]:80`, or the bare address without a port."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


_DETAILS = ("tcp.flags", "sctp.chunk", "arp.operation", "icmp.description")


def describe(record: Record) -> str:
    """One short line: `10.1.0.2:4000 → 10.96.0.10:80 TCP SYN`."""
    words: list[str] = []
    if "src.address" in record:
        source = endpoint(record["src.address"], record.get("src.port"))
        goal = endpoint(record["dst.address"], record.get("dst.port"))
        words.append(f"{source} → {goal}")
    kind: str = record.get("transport") or record.get("network.type") or "unknown packet"
    words.append(kind if kind.startswith("0x") else kind.upper())
    words += [detail for detail in map(record.get, _DETAILS) if detail]
    if record.get("ip.fragment.offset"):
        words.append(f"fragment at byte {record['ip.fragment.offset']}")
    if "icmp.inner" in record:
        words.append(f"(about {record['icmp.inner']})")
    return " ".join(words)


def network_type(ethertype: int) -> str:
    """Name of an EtherType, its number as `0x88b5` where it has no common name."""
    """Name of an EtherType, the number in hex where it has no common name."""
    if ethertype < _ETH_P_802_3_MIN:
        return "llc" if ethertype else "unknown"
    return _NETWORK_TYPES.get(ethertype, f"{ethertype:#06x}")


_IPHDR = struct.Struct("!BBHHHBB")
_address = lru_cache(maxsize=65536)(inet_ntop)


def _parse_ipv4(data: bytes, record: Record) -> None:
    if len(data) < 20:  # noqa: PLR2004 - struct iphdr
        return
    first, _, length, ident, fragment, ttl, protocol = _IPHDR.unpack_from(data)
    record |= {
        "transport": transport(protocol),
        "src.address": _address(AF_INET, data[12:16]),
        "dst.address": _address(AF_INET, data[16:20]),
        "ip.ttl": ttl,
        "ip.id": ident,
        "ip.length": length,
        "ip.df": bool(fragment & 0x4000),
    }
    offset = _note_fragment(record, (fragment & 0x1FFF) * 8, more=bool(fragment & 0x2000))
    if offset == 0:
        _parse_transport(protocol, data[(first & 0xF) * 4 :], record)


def _parse_ipv6(data: bytes, record: Record) -> None:
    if len(data) < 40:  # noqa: PLR2004 - struct ipv6hdr
        return
    length, following, hop_limit = struct.unpack_from("!HBB", data, 4)
    record |= {
        "src.address": _address(AF_INET6, data[8:24]),
        "dst.address": _address(AF_INET6, data[24:40]),
        "ip.ttl": hop_limit,
        "ip.length": 40 + length,
    }
    at, offset = 40, 0
    while following in _IPV6_EXTENSIONS and len(data) >= at + 8 and offset == 0:
        size = data[at + 1]
        if following == _IPV6_FRAGMENT:
            bits, record["ip.id"] = struct.unpack_from("!HI", data, at + 2)
            offset = _note_fragment(record, bits & 0xFFF8, more=bool(bits & 1))
            step = 8
        elif following == _IPV6_AUTHENTICATION:
            step = (size + 2) * 4
        else:
            step = (size + 1) * 8
        following, at = data[at], at + step
    record["transport"] = transport(following)
    if offset == 0:
        _parse_transport(following, data[at:], record)


def _note_fragment(record: Record, offset: int, *, more: bool) -> int:
    if offset or more:
        record["ip.fragment.offset"] = offset
        record["ip.fragment.more"] = more
    return offset


def _parse_transport(protocol: int, data: bytes, record: Record) -> None:
    if protocol in _WITH_PORTS and len(data) >= 4:  # noqa: PLR2004 - two ports
        record["src.port"], record["dst.port"] = struct.unpack_from("!HH", data)
    if protocol == _TCP and len(data) >= 14:  # noqa: PLR2004 - up to the flags
        record["tcp.seq"], record["tcp.ack"], bits = struct.unpack_from("!IIH", data, 4)
        record["tcp.flags"] = tcp_flags(bits & 0x1FF)
    elif protocol == _SCTP and len(data) > 12:  # noqa: PLR2004 - its common header
        record["sctp.chunk"] = _SCTP_CHUNKS.get(data[12], str(data[12]))
    elif protocol in (_ICMP, _ICMPV6) and len(data) >= 2:  # noqa: PLR2004 - type and code
        _parse_icmp(data, record)


def _parse_icmp(data: bytes, record: Record) -> None:
    family, kind, code = record["transport"], data[0], data[1]
    record |= {
        "icmp.type": kind,
        "icmp.code": code,
        "icmp.description": description(family, kind, code, data),
    }
    if kind in ICMP_ERRORS[family] and len(data) >= 28:  # noqa: PLR2004 - with an inner header
        inner = parse(ETH_P_IP if family == "icmp" else ETH_P_IPV6, data[8:])
        if "src.address" in inner:
            record["icmp.inner"] = inner["packet"]


def _parse_arp(data: bytes, record: Record) -> None:
    if len(data) < 8:  # noqa: PLR2004 - struct arphdr
        return
    _, protocol, hardware_size, address_size, operation = struct.unpack_from("!HHBBH", data)
    record["arp.operation"] = _ARP_OPERATIONS.get(operation, str(operation))
    known = protocol == ETH_P_IP and address_size == 4 and hardware_size == 6  # noqa: PLR2004
    if known and len(data) >= 28:  # noqa: PLR2004 - Ethernet and IPv4 addresses
        record |= {
            "src.address": _address(AF_INET, data[14:18]),
            "dst.address": _address(AF_INET, data[24:28]),
            "arp.sender.mac": data[8:14].hex(":"),
            "arp.target.mac": data[18:24].hex(":"),
        }
