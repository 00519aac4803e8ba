"""One key for both directions of a connection and for both sides of its NAT."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import dataclass

from tracer.analysis.addresses import MAPPED, address_text
from tracer.analysis.packet import endpoint, transport

ADDRESS_BYTES = 16
KEY_BYTES = 39
"""Of a `struct tuple`: addresses, ports, EtherType, protocol; without the padding."""
KNOWN_FLOWS = 65536
_ICMP, _ICMPV6 = 1, 58
_WITH_PORTS = frozenset((_ICMP, 6, 17, 33, _ICMPV6, 132, 136))
REQUEST_OF = {
    _ICMP: {0: 8, 9: 10, 14: 13, 16: 15, 18: 17},
    _ICMPV6: {129: 128, 131: 130, 134: 133, 136: 135, 140: 139, 145: 144},
}
"""ICMP's protocol → type of an answer → type of what is answered (Community ID 1.0)."""
_ANSWERS = {
    protocol: {**types, **{request: answer for answer, request in types.items()}}
    for protocol, types in REQUEST_OF.items()
}
"""ICMP type → type of its counterpart, of the types that have one."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection, as its opener wrote it."""

    text: str
    """`10.244.1.2:4000 → 10.96.0.10:80 TCP`."""
    community_id: str
    """`1:…` (https://github.com/corelight/community-id-spec); empty unless IPv4 or IPv6."""


@dataclass(frozen=True, slots=True, order=True)
class _End:
    address: bytes
    port: int


def _ends(key: bytes) -> tuple[_End, _End, int, bool]:
    """Source, destination, protocol, and whether answers look like the reverse of it."""
    protocol = key[38]
    ports = [int.from_bytes(key[at : at + 2], "little") for at in (32, 34)]
    two_way = True
    if protocol in _ANSWERS:
        answer = _ANSWERS[protocol].get(ports[0])
        two_way = answer is not None
        ports[1] = ports[1] if answer is None else answer
    return _End(key[:16], ports[0]), _End(key[16:32], ports[1]), protocol, two_way


def community_id(key: bytes) -> str:
    """Community ID 1.0 with seed 0 of the first KEY_BYTES of a `struct tuple`."""
    if not (key[36] or key[37]) or not any(key[:32]):
        return ""
    source, destination, protocol, two_way = _ends(key)
    first, second = source, destination
    if two_way and destination < source:
        first, second = destination, source
    data = bytes(2) + _short(first.address) + _short(second.address) + bytes((protocol, 0))
    if protocol in _WITH_PORTS:
        data += first.port.to_bytes(2, "big") + second.port.to_bytes(2, "big")
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    return f"1:{b64encode(digest).decode()}"


def _short(address: bytes) -> bytes:
    return address[12:] if address.startswith(MAPPED) else address


def _flow(key: bytes) -> Flow:
    source, destination, protocol, _ = _ends(key)
    if not any(key[:32]):
        return Flow("", "")
    has_ports = protocol in _WITH_PORTS and protocol not in _ANSWERS
    has_ports = has_ports and bool(source.port or destination.port)
    sides = (
        endpoint(address_text(end.address), end.port if has_ports else None)
        for end in (source, destination)
    )
    return Flow(f"{' → '.join(sides)} {transport(protocol).upper()}", community_id(key))


class Flows:
    """Remembers connections, so that packets that carry no conntrack entry find theirs.

    What NAT made of a connection is told by any packet of it that carries its entry. Without
    one, the first packet seen is taken for the opener's.
    """

    def __init__(self, size: int = KNOWN_FLOWS) -> None:
        self._size = size
        self._flows: dict[object, Flow] = {}

    def find(self, key: bytes) -> Flow:
        """The flow of a packet with these first KEY_BYTES of a `struct tuple`."""
        flow = self._flows.get(key)
        if flow is None:
            canonical = _canonical(key)
            flow = self._flows.get(canonical) or _flow(key)
            self._remember(canonical, flow)
            self._remember(key, flow)
        return flow

    def learn(self, orig: bytes, reply: bytes) -> Flow:
        """The flow of a conntrack entry, by its two tuples."""
        flow = self._flows.get((orig, reply))
        if flow is None:
            known = self._flows.get(_canonical(orig))
            flow = known if known and known.text == _flow(orig).text else _flow(orig)
            self._remember((orig, reply), flow)
            for key in (orig, reply):
                self._remember(_canonical(key), flow)
                self._flows.pop(key, None)
        return flow

    def _remember(self, key: object, flow: Flow) -> None:
        if len(self._flows) >= self._size:
            del self._flows[next(iter(self._flows))]
        self._flows[key] = flow


def _canonical(key: bytes) -> object:
    """The same for both directions."""
    source, destination, protocol, two_way = _ends(key)
    if two_way and destination < source:
        source, destination = destination, source
    return source, destination, protocol
