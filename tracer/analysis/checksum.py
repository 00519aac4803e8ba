"""Whether the checksum of a packet's transport header holds."""

from __future__ import annotations

import struct

_IPV4, _IPV6 = 4, 6
_AT = {6: 16, 17: 6, 58: 2}
"""Protocol → where its checksum stands: those with a pseudo header."""
_UDP = 17


def is_wrong(packet: bytes) -> bool:
    """Whether it is wrong; `packet` from its network header on, whole.

    False where it cannot be told: other protocols, fragments, IPv6 extensions. A checksum that is
    left to the device holds the sum of the pseudo header alone, and is not wrong.
    """
    if len(packet) < 20:  # noqa: PLR2004 - struct iphdr
        return False
    if packet[0] >> 4 == _IPV4:
        start, protocol, ends = (packet[0] & 0xF) * 4, packet[9], packet[12:20]
        if struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:  # a fragment
            return False
    elif packet[0] >> 4 == _IPV6:
        start, protocol, ends = 40, packet[6], packet[8:40]
    else:
        return False
    data, at = packet[start:], _AT.get(protocol)
    if at is None or len(data) < at + 2:
        return False
    told = struct.unpack_from("!H", data, at)[0]
    pseudo = _sum(ends + struct.pack("!IxxxB", len(data), protocol))
    if told == pseudo or (protocol == _UDP and not told):
        return False
    return _folded(pseudo + _sum(data)) != 0xFFFF  # noqa: PLR2004 - all ones


def _sum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    return _folded(sum(struct.unpack(f"!{len(padded) // 2}H", padded)))


def _folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
