"""What tells one packet from another at one moment: its headers, without what a hop changes."""

from __future__ import annotations

_IPV4, _IPV6 = 4, 6
_EXTENSIONS = frozenset((0, 43, 44, 51, 60, 135))
"""IPv6 headers behind which the transport header is not at a fixed place."""
_TRANSPORT_BYTES = 8
"""Ports, and TCP's sequence number or UDP's length and checksum."""


def header_key(network: bytes, transport: bytes) -> bytes:
    """A key of a packet's network header and the beginning of its transport header.

    Holds what identifies it (addresses, protocol, identification, length, ports, sequence),
    not type of service, TTL and checksum. Empty for what is not IP.
    """
    version = network[0] >> 4 if network else 0
    if version == _IPV4 and len(network) >= 20:  # noqa: PLR2004 - struct iphdr
        first_fragment = not (network[6] & 0x1F or network[7])
        own = network[2:8] + network[9:10] + network[12:20]
        return own + (transport[:_TRANSPORT_BYTES] if first_fragment else b"")
    if version == _IPV6 and len(network) >= 40:  # noqa: PLR2004 - struct ipv6hdr
        own = network[4:7] + network[8:40]
        return own + (b"" if network[6] in _EXTENSIONS else transport[:_TRANSPORT_BYTES])
    return b""


def packet_key(packet: bytes) -> bytes:
    """`header_key` of a packet's bytes from its network header on."""
    version = packet[0] >> 4 if packet else 0
    size = (packet[0] & 0xF) * 4 if version == _IPV4 else 40
    return header_key(packet[:size], packet[size:])
