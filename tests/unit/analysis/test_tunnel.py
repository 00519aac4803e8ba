"""Finding the packet inside a tunnel's; the same as bpf/tunnel.bpf.h does in the kernel."""

import struct

import pytest

from tracer.analysis.tunnel import inner_frame, tunnel_of

MACS = bytes(range(12))
IP, IPV6, TEB = b"\x08\x00", b"\x86\xdd", b"\x65\x58"
INNER4 = b"\x45" + bytes(19) + b"inner four"
INNER6 = b"\x60" + bytes(39) + b"inner six"
FRAME = bytes(12) + IP + INNER4
VXLAN, GENEVE = struct.pack("!HHHH", 1, 4789, 0, 0), struct.pack("!HHHH", 1, 6081, 0, 0)


def ip4(protocol, body, options=b"", offset=0):
    first = 0x45 + len(options) // 4
    head = struct.pack("!BBHHHBBH", first, 0, 0, 0, offset, 64, protocol, 0)
    return IP + head + bytes(8) + options + body


def ip6(protocol, body):
    return IPV6 + struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + bytes(32) + body


@pytest.mark.parametrize(
    ("packet", "inner"),
    [
        (ip4(4, INNER4), IP + INNER4),
        (ip4(4, INNER4, options=bytes(8)), IP + INNER4),
        (ip4(41, INNER6), IPV6 + INNER6),
        (ip6(4, INNER4), IP + INNER4),
        (ip6(41, INNER6), IPV6 + INNER6),
        (ip6(60, b"\x04\0\x04\x01\x04\x01\0\0" + INNER4), IP + INNER4),
        (ip4(47, b"\0\0" + IP + INNER4), IP + INNER4),
        (ip4(47, b"\xb0\0" + IPV6 + bytes(12) + INNER6), IPV6 + INNER6),
        (ip4(47, b"\0\0" + TEB + FRAME), IP + INNER4),
        (ip4(17, VXLAN + bytes(8) + FRAME), IP + INNER4),
        (ip6(17, VXLAN.replace(b"\x12\xb5", b"\x21\x18") + bytes(8) + FRAME), IP + INNER4),
        (ip4(17, GENEVE + b"\0\0" + TEB + bytes(4) + FRAME), IP + INNER4),
        (ip4(17, GENEVE + b"\x03\0" + TEB + bytes(4 + 12) + FRAME), IP + INNER4),
        (ip4(17, GENEVE + b"\0\0" + IPV6 + bytes(4) + INNER6), IPV6 + INNER6),
    ],
)
def test_each_tunnel(packet, inner):
    assert inner_frame(MACS + packet) == MACS + inner


@pytest.mark.parametrize(
    ("packet", "told"),
    [
        (ip4(4, INNER4), ("ipip", None)),
        (ip4(41, INNER6), ("sit", None)),
        (ip6(4, INNER4), ("ip4ip6", None)),
        (ip6(60, b"\x29\0\x04\x01\x04\x01\0\0" + INNER6), ("ip6ip6", None)),
        (ip4(47, b"\0\0" + IP + INNER4), ("gre", None)),
        (ip4(47, b"\x20\0" + IP + b"\0\0\1\2" + INNER4), ("gre", 258)),
        (ip4(47, b"\xb0\0" + IPV6 + b"\xff\xff\0\0\0\0\0\7" + bytes(4) + INNER6), ("gre", 7)),
        (ip4(17, VXLAN + b"\x08\0\0\0\0\1\0\0" + FRAME), ("vxlan", 256)),
        (ip6(17, GENEVE + b"\0\0" + TEB + b"\0\0\x2a\0" + FRAME), ("geneve", 42)),
        (ip4(17, VXLAN + bytes(4)), ("vxlan", None)),
        (ip4(6, bytes(40)), ("", None)),
    ],
)
def test_the_name_of_a_tunnel(packet, told):
    assert tunnel_of(int.from_bytes(packet[:2], "big"), packet[2:]) == told


@pytest.mark.parametrize(
    "packet",
    [
        ip4(6, bytes(40)),
        ip4(17, struct.pack("!HHHH", 4789, 53, 0, 0) + bytes(8) + FRAME),
        ip4(47, b"\0\1" + IP + bytes(12) + INNER4),  # version 1, as PPTP's
        ip4(47, b"\0\0\x88\x47" + bytes(40)),  # MPLS
        ip4(4, INNER4, offset=185),  # a later fragment
        b"\x08\x06" + bytes(28),
        b"",
    ],
)
def test_what_is_no_tunnels_packet(packet):
    assert inner_frame(MACS + packet) is None


def test_frames_cut_anywhere_do_no_harm():
    for packet in (
        ip4(17, GENEVE + b"\x03\0" + TEB + bytes(16) + FRAME),
        ip6(60, b"\4\0" + bytes(6) + INNER4),
    ):
        for size in range(len(MACS + packet)):
            found = inner_frame((MACS + packet)[:size])
            assert found is None or found.startswith(MACS)
