"""Fields of a packet, as rules ask for them: `ip saddr`, `ct state`, `fib daddr type`.

A value is a number or a word; None where it is not known; ABSENT where this packet has no
such thing (a rule that asks for it does not match, whatever it asks); a frozenset where it
is one of several.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from tracer.analysis.ruleset import values

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.analysis.ruleset.model import Host, Packet, Tuple


class Absent:
    """The type of ABSENT."""


ABSENT: Final = Absent()
Value = int | str | frozenset[Any] | Absent | None

_ICMP, _ICMPV6 = 1, 58
_WITH_PORTS = frozenset((6, 17, 33, 132, 136))
_TRANSPORTS = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}
_ETHER_TYPES = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}
_NF_FAMILIES = {"ip": 2, "ip6": 10}
_NO_ENTRY = frozenset({"invalid", "untracked"})
_NOT_LOCAL = {
    # IPv4 asks the table of local addresses only, IPv6 that of routes.
    "ip": frozenset({"unicast", "broadcast"}),
    "ip6": frozenset({"unicast", "anycast", "unreachable", "blackhole", "prohibit", "unspec"}),
}
_LOOPBACK = values.network("127.0.0.0/8")
_BROADCAST_NUMBERS = (0, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class View:
    """A packet where a chain sees it."""

    packet: Packet
    host: Host
    tracked: bool = True
    """Whether conntrack has seen it before this chain."""


def field(name: str, view: View) -> Value:
    """What the packet has under this name; None where that is not known."""
    getter = _GETTERS.get(name)
    if getter:
        return getter(view)
    kind, _, rest = name.partition(" ")
    if kind == "ct":
        return _tuple_field(rest, view)
    if kind == "fib" and rest.endswith(" type"):
        return _address_type(rest.split(), view)
    return None


def assigned(name: str, value: Value, view: View) -> Packet:
    """The packet after `name set value`; as it was where nothing here models that field."""
    packet = view.packet
    if name == "ct mark" and _has_no_entry(view):
        return packet
    known = value if isinstance(value, int | str) else None
    changed: dict[str, Any]
    if name in _ADDRESSES:
        changed = {_ADDRESSES[name]: None if known is None else str(ip_address(known))}
        return replace(packet, **changed)
    if name == "ct state":
        state = next((word for word, bit in values.CT_STATES.items() if bit == known), None)
        return replace(packet, ct=replace(packet.ct, state=state))
    if name == "ct mark":
        changed = {"mark": known}
        return replace(packet, ct=replace(packet.ct, **changed))
    changed = {_ASSIGNED[name]: known} if name in _ASSIGNED else {}
    return replace(packet, **changed)


def _network(family: str, attribute: str) -> Callable[[View], Value]:
    def getter(view: View) -> Value:
        if view.packet.family != family:
            return ABSENT
        value: Value = getattr(view.packet, attribute)
        return values.address(value) if attribute in ("saddr", "daddr") and value else value

    return getter


def _plain(attribute: str) -> Callable[[View], Value]:
    def getter(view: View) -> Value:
        found: Value = getattr(view.packet, attribute)
        return found

    return getter


def _protocol(view: View) -> Value:
    return view.packet.protocol if view.packet.family in _NF_FAMILIES else ABSENT


def _transport(protocol: int, attribute: str) -> Callable[[View], Value]:
    def getter(view: View) -> Value:
        packet = view.packet
        if packet.family not in _NF_FAMILIES:
            return ABSENT
        if packet.protocol is None or packet.fragment_offset is None:
            return None
        if packet.protocol != protocol or packet.fragment_offset:
            return ABSENT
        found: Value = getattr(packet, attribute)
        return found

    return getter


def _any_port(attribute: str) -> Callable[[View], Value]:
    def getter(view: View) -> Value:
        packet = view.packet
        if packet.fragment_offset or packet.family not in _NF_FAMILIES:
            return ABSENT
        # Of a protocol without ports it is whatever stands there.
        found: Value = getattr(packet, attribute)
        return found if packet.protocol in _WITH_PORTS else None

    return getter


def _ct(
    attribute: str, convert: Callable[[Any], Value] = lambda value: value
) -> Callable[[View], Value]:
    """Of the conntrack entry; a packet without one has none of it."""

    def getter(view: View) -> Value:
        if _has_no_entry(view):
            return ABSENT
        found = getattr(view.packet.ct, attribute)
        return None if found is None else convert(found)

    return getter


def _has_no_entry(view: View) -> bool:
    return not view.tracked or view.packet.ct.state in _NO_ENTRY


def _ct_state(view: View) -> Value:
    state = view.packet.ct.state
    # Who asks before conntrack has seen the packet reads "invalid", unless a rule untracked it.
    known = state if view.tracked or state == "untracked" else "invalid"
    return values.CT_STATES[known] if known else None


def _status_bits(words: frozenset[str]) -> int:
    return sum(values.CT_STATUS.get(word, 0) for word in words)


def _tuple_field(name: str, view: View) -> Value:
    """`original saddr`, `reply proto-dst`; with `ip` or `ip6` between, of that family only."""
    direction, *family, word = name.split()
    if _has_no_entry(view):
        return ABSENT
    if family and family[0] != view.packet.family:
        return ABSENT
    known = {"original": view.packet.ct.original, "reply": view.packet.ct.reply}.get(direction)
    return _of_tuple(known, word) if known else None


def _of_tuple(known: Tuple, word: str) -> Value:
    if word == "proto-src":
        return known.sport
    if word == "proto-dst":
        return known.dport
    address = {"saddr": known.saddr, "daddr": known.daddr}.get(word)
    return values.address(address) if address else None


def _address_type(words: list[str], view: View) -> Value:
    """What the routing table says of an address: `local`, or one of what it may be."""
    text = view.packet.saddr if "saddr" in words else view.packet.daddr
    if text is None:
        return None
    host, number, v6 = view.host, values.address(text), ":" in text
    not_local = _NOT_LOCAL["ip6" if v6 else "ip"]
    if number == 1 if v6 else _LOOPBACK.low <= number <= _LOOPBACK.high:  # type: ignore[operator]
        known = True
    elif ip_address(text).is_multicast:
        return "multicast"
    elif not v6 and (number in _BROADCAST_NUMBERS or text in host.broadcast_addresses):
        return "broadcast"
    elif host.local_addresses is None:
        return not_local | {"local"}
    else:
        known = text in host.local_addresses
    if not known:
        return not_local - {"broadcast"} if host.broadcast_addresses else not_local
    # Asked for one device only, it may be local on another.
    return not_local | {"local"} if {"iif", "oif"} & set(words) else "local"


def _ether_type(view: View) -> Value:
    known = view.packet.ether_type
    return _ETHER_TYPES.get(view.packet.family) if known is None else known


_ADDRESSES = {
    "ip saddr": "saddr", "ip daddr": "daddr", "ip6 saddr": "saddr", "ip6 daddr": "daddr",
}  # fmt: skip
_ASSIGNED = {
    "meta mark": "mark", "ip dscp": "dscp", "ip6 dscp": "dscp", "ip ttl": "ttl",
    "ip6 hoplimit": "ttl", "meta pkttype": "packet_type", "tcp sport": "sport",
    "tcp dport": "dport", "udp sport": "sport", "udp dport": "dport", "th sport": "sport",
    "th dport": "dport",
}  # fmt: skip
_GETTERS: dict[str, Callable[[View], Value]] = {
    **{name: _network(name.split()[0], attribute) for name, attribute in _ADDRESSES.items()},
    "arp saddr ip": _network("arp", "saddr"),
    "arp daddr ip": _network("arp", "daddr"),
    "arp operation": _network("arp", "arp_operation"),
    "arp saddr ether": _network("arp", "arp_saddr"),
    "arp daddr ether": _network("arp", "arp_daddr"),
    "ip protocol": _network("ip", "protocol"),
    "ip ttl": _network("ip", "ttl"),
    "ip dscp": _network("ip", "dscp"),
    "ip length": _network("ip", "length_bytes"),
    "ip fragment": _plain("fragment_offset"),
    "ip version": lambda view: 4 if view.packet.family == "ip" else ABSENT,
    "ip6 version": lambda view: 6 if view.packet.family == "ip6" else ABSENT,
    "ip6 hoplimit": _network("ip6", "ttl"),
    "ip6 dscp": _network("ip6", "dscp"),
    "meta l4proto": _protocol,
    "meta nfproto": lambda view: _NF_FAMILIES.get(view.packet.family, 0),
    "meta protocol": _ether_type,
    "meta mark": _plain("mark"),
    "meta iif": _plain("iif"),
    "meta oif": _plain("oif"),
    "meta iifname": _plain("iif"),
    "meta oifname": _plain("oif"),
    "meta length": _plain("length_bytes"),
    "meta pkttype": _plain("packet_type"),
    "meta skuid": _plain("uid"),
    "meta skgid": _plain("gid"),
    "ether saddr": _plain("ether_saddr"),
    "ether daddr": _plain("ether_daddr"),
    "ether type": _ether_type,
    "physdev in": _plain("physin"),
    "physdev out": _plain("physout"),
    "icmp type": _transport(_ICMP, "icmp_type"),
    "icmp code": _transport(_ICMP, "icmp_code"),
    "icmpv6 type": _transport(_ICMPV6, "icmp_type"),
    "icmpv6 code": _transport(_ICMPV6, "icmp_code"),
    "tcp flags": _transport(_TRANSPORTS["tcp"], "tcp_flags"),
    "th sport": _any_port("sport"),
    "th dport": _any_port("dport"),
    **{
        f"{word} {port}": _transport(number, port)
        for word, number in _TRANSPORTS.items()
        for port in ("sport", "dport")
    },
    "ct state": _ct_state,
    "ct status": _ct("status", _status_bits),
    "ct mark": _ct("mark"),
    "ct zone": _ct("zone"),
    "ct direction": _ct("direction", values.WORDS["ct_dir"].get),
}  # fmt: skip
"""Field → how it is read. What is not here is not known of any packet."""
