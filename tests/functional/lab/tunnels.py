"""Tunnels' packets written by hand: this machine's kernel may have none of them."""

from __future__ import annotations

import socket
import struct

from lab import wire

ETHERNET = bytes(12)
"""Two addresses; what follows is an EtherType."""
IP, IPV6 = b"\x08\x00", b"\x86\xdd"
TEB = b"\x65\x58"
IPV6_IN_IP, GRE = 41, 47


def _udp(ends: tuple[str, str], port: int, payload: bytes) -> bytes:
    return wire.ip(*ends, socket.IPPROTO_UDP, wire.udp(*ends, (55555, port), payload))


def forms(ends: tuple[str, str], inner: bytes) -> dict[str, bytes]:
    """Name of a tunnel → `inner` (an IPv4 packet) in it, between `ends`."""
    frame = ETHERNET + IP + inner
    options = bytes(12)
    return {
        "ipip": wire.ip(*ends, socket.IPPROTO_IPIP, inner),
        "gre": wire.ip(*ends, GRE, b"\0\0" + IP + inner),
        "gre-keyed": wire.ip(*ends, GRE, struct.pack("!HHIII", 0xB000, 0x0800, 1, 7, 9) + inner),
        "gretap": wire.ip(*ends, GRE, b"\0\0" + TEB + frame),
        "vxlan": _udp(ends, 4789, struct.pack("!II", 1 << 27, 77 << 8) + frame),
        "geneve": _udp(ends, 6081, struct.pack("!BB2sI", 3, 0, TEB, 5 << 8) + options + frame),
    }
