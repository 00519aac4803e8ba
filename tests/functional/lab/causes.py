"""Ways to lose packets: each loses some of them for one cause, between `left`, router and `right`.

Each is a function of the topology that sends and waits until the kernel has dropped; what has to
be put back, an ExitStack does that it is given.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

from lab import tc, wire
from lab.rules import iptables
from lab.traffic import new_port, send_udp

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from lab.namespaces import Namespace
    from lab.topology import Routed

    Provoke = Callable[[Routed, ExitStack], object]

TCP_MD5SIG, IP_MINTTL, TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_TIMESTAMP = (
    14,
    21,
    19,
    20,
    21,
    24,
)
SO_ATTACH_FILTER = 26
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_VXLAN, _VNI_5 = 4789, b"\x08\0\0\0\0\0\x05\0"
_SOMEBODY = b"\x02\0\0\0\0\x09"
"""A MAC address that nobody has."""


def _set(stack: ExitStack, where: Namespace, key: str, value: object) -> None:
    """A setting, until the test ends."""
    before = where.sysctl(key, value)
    stack.callback(where.sysctl, key, before)


def _link(stack: ExitStack, where: Namespace, name: str, words: str) -> None:
    """A device, up, until the test ends."""
    where.ip(f"link add {name} {words}")
    stack.callback(where.ip, f"link delete {name}")
    where.ip(f"link set {name} up")


def _datagram(src: str, dst: str, port: int, payload: bytes = bytes(16)) -> bytes:
    return wire.ip(src, dst, 17, wire.udp(src, dst, (port, port), payload))


def _frames(routed: Routed, packet: bytes, *, to: bytes = b"", source: bytes = b"") -> None:
    """Frames from `left` to the router's device; other MAC addresses where they are given."""
    to = to or wire.mac_of(routed.router, "to-left")
    source = source or wire.mac_of(routed.left.where, "eth0")
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    wire.send_frames(routed.left.where, "eth0", to + source + kind + packet, 3)


def _listener(stack: ExitStack, where: Namespace, port: int, backlog: int = 8) -> socket.socket:
    made = stack.enter_context(where.socket(socket.AF_INET, socket.SOCK_STREAM))
    made.bind(("", port))
    made.listen(backlog)
    return made


def _connection(routed: Routed, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A TCP connection: its end at `left`, and at `right`."""
    port = new_port()
    listener = _listener(stack, routed.right.where, port)
    client = stack.enter_context(routed.left.where.socket(socket.AF_INET, socket.SOCK_STREAM))
    client.connect((routed.right.ip4, port))
    server, _ = listener.accept()
    return client, stack.enter_context(server)


def _sequence(end: socket.socket) -> int:
    """The number of the next byte that this end will send."""
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, 2)
    found = end.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ)
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, -1)
    return found & 0xFFFFFFFF


def _forged(
    routed: Routed,
    ports: tuple[int, int],
    flags: int,
    numbers: tuple[int, int] = (1, 1),
    options: bytes = b"",
) -> None:
    """Three segments as a client at `left` might send them; `numbers`: sequence and ack."""
    left, right = routed.left, routed.right
    words = (number & 0xFFFFFFFF for number in numbers)
    offset = (5 + len(options) // 4) << 4
    body = struct.pack("!HHIIBBHHH", *ports, *words, offset, flags, 8192, 0, 0) + options
    body = wire.with_checksum(body, 16, left.ip4, right.ip4, socket.IPPROTO_TCP)
    wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_TCP, body), 3)


def _forged_within(
    routed: Routed,
    stack: ExitStack,
    flags: int,
    beyond: tuple[int, int] = (0, 0),
    older: int = 0,
) -> None:
    """The same within an open connection, from its next numbers, or from `beyond` these, on.

    With a timestamp that is so much `older` than the connection's, in milliseconds.
    """
    client, server = _connection(routed, stack)
    ports = client.getsockname()[1], client.getpeername()[1]
    numbers = _sequence(client) + beyond[0], _sequence(server) + beyond[1]
    options = b""
    if older:
        now = client.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP) & 0xFFFFFFFF
        options = struct.pack("!HBBII", 0x0101, 8, 10, (now - older) & 0xFFFFFFFF, 0)
    _forged(routed, ports, flags, numbers, options)


# Addresses


def invalid_source(routed: Routed, _: ExitStack) -> None:
    """A multicast address sends."""
    _frames(routed, _datagram("224.1.1.1", routed.right.ip4, new_port()))


def local_source(routed: Routed, _: ExitStack) -> None:
    """The router's own address comes in from the wire."""
    _frames(routed, _datagram("10.246.1.1", "10.246.1.1", new_port()))


def unicast_in_broadcast(routed: Routed, stack: ExitStack) -> None:
    """An address of one host in a frame to all."""
    _set(stack, routed.router, "ipv4/conf/to-left/drop_unicast_in_l2_multicast", 1)
    _set(stack, routed.router, "ipv4/conf/all/drop_unicast_in_l2_multicast", 1)
    _frames(routed, _datagram(routed.left.ip4, "10.246.1.1", new_port()), to=b"\xff" * 6)


def ipv6_disabled(routed: Routed, stack: ExitStack) -> None:
    """IPv6 comes to a device that shall not speak it."""
    _set(stack, routed.router, "ipv6/conf/lo/disable_ipv6", 0)
    _link(stack, routed.router, "mute0", "type veth peer name mute1")
    routed.router.ip("link set mute1 up")
    routed.router.sysctl("ipv6/conf/mute0/disable_ipv6", 1)
    to, source = (wire.mac_of(routed.router, name) for name in ("mute0", "mute1"))
    packet = _datagram(routed.left.ip6, routed.right.ip6, new_port())
    wire.send_frames(routed.router, "mute1", to + source + b"\x86\xdd" + packet, 3)


# Sockets


def socket_filter(routed: Routed, stack: ExitStack) -> None:
    """A program that wants nothing."""
    port = new_port()
    taker = stack.enter_context(routed.right.where.socket(socket.AF_INET, socket.SOCK_DGRAM))
    taker.bind(("", port))
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    taker.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program))
    )
    send_udp(routed.left.where, (routed.right.ip4, port), 3)


def queue_purge(routed: Routed, _: ExitStack) -> None:
    """A capture is closed before it has read what it caught."""
    with routed.router.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)):
        send_udp(routed.left.where, (routed.right.ip4, new_port()), 3)
        time.sleep(0.1)


def packet_socket(routed: Routed, stack: ExitStack) -> None:
    """A capture without room."""
    taker = routed.router.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    stack.enter_context(taker)
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    send_udp(routed.left.where, (routed.right.ip4, new_port()), 20, bytes(1000))


def icmp_of_no_type(routed: Routed, _: ExitStack) -> None:
    """An ICMP type that is not assigned."""
    body = struct.pack("!BBHHH", 44, 0, 0, 1, 1) + bytes(8)
    body = body[:2] + struct.pack("!H", wire.checksum(body)) + body[4:]
    wire.send(routed.left.where, wire.ip(routed.left.ip4, routed.right.ip4, 1, body), 3)


def icmp_checksum(routed: Routed, _: ExitStack) -> None:
    """An echo request whose checksum is wrong."""
    body = bytearray(wire.echo(routed.left.ip4, routed.right.ip4, 7))
    body[2] ^= 0xFF
    wire.send(routed.left.where, wire.ip(routed.left.ip4, routed.right.ip4, 1, bytes(body)), 3)


def broadcast_timestamp(routed: Routed, stack: ExitStack) -> None:
    """An ICMP timestamp request to everybody."""
    _set(stack, routed.router, "ipv4/icmp_echo_ignore_broadcasts", 1)
    body = struct.pack("!BBHHH", 13, 0, 0, 1, 1) + bytes(12)
    body = body[:2] + struct.pack("!H", wire.checksum(body)) + body[4:]
    _frames(routed, wire.ip(routed.left.ip4, "10.246.1.255", 1, body), to=b"\xff" * 6)


def too_small(routed: Routed, _: ExitStack) -> None:
    """Its header says that it is longer than it is."""
    packet = bytearray(_datagram(routed.left.ip4, routed.right.ip4, new_port(), bytes(40)))
    packet[2:4] = struct.pack("!H", 200)
    packet[10:12] = b"\0\0"
    packet[10:12] = struct.pack("!H", wire.checksum(bytes(packet[:20])))
    _frames(routed, bytes(packet))


# TCP


def receive_buffer(routed: Routed, stack: ExitStack) -> None:
    """A reader that does not read."""
    client, server = _connection(routed, stack)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(0)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            client.send(bytes(60000))
        except BlockingIOError:
            time.sleep(0.05)


def syn_with_fin(routed: Routed, stack: ExitStack) -> None:
    """To a listener."""
    port = new_port()
    _listener(stack, routed.right.where, port)
    _forged(routed, (port, port), wire.SYN | wire.FIN)


def syn_again(routed: Routed, stack: ExitStack) -> None:
    """A SYN within an open connection."""
    _forged_within(routed, stack, wire.SYN)


def out_of_sequence(routed: Routed, stack: ExitStack) -> None:
    """A segment far beyond the window."""
    _forged_within(routed, stack, wire.ACK, (1 << 30, 0))


def ack_of_unsent(routed: Routed, stack: ExitStack) -> None:
    """It acknowledges what was never sent."""
    _forged_within(routed, stack, wire.ACK, (0, 100000))


def old_timestamp(routed: Routed, stack: ExitStack) -> None:
    """Its timestamp is from long ago."""
    _forged_within(routed, stack, wire.ACK, older=1_000_000)


def two_signatures(routed: Routed, stack: ExitStack) -> None:
    """A SYN with two TCP MD5 options."""
    port = new_port()
    _listener(stack, routed.right.where, port)
    _forged(routed, (port, port), wire.SYN, options=(b"\x13\x12" + bytes(16)) * 2 + b"\x01" * 4)


def reset(routed: Routed, stack: ExitStack) -> None:
    """Of an open connection."""
    _forged_within(routed, stack, wire.RST)


def min_ttl(routed: Routed, stack: ExitStack) -> None:
    """A socket that only listens to neighbours."""
    port = new_port()
    listener = _listener(stack, routed.right.where, port)
    listener.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)
    client = stack.enter_context(routed.left.where.socket(socket.AF_INET, socket.SOCK_STREAM))
    client.settimeout(0)
    client.connect_ex((routed.right.ip4, port))


def md5_missing(routed: Routed, stack: ExitStack) -> None:
    """A server that wants signatures, a client that gives none."""
    port = new_port()
    listener = _listener(stack, routed.right.where, port)
    peer = struct.pack("!2xH4s120x", 0, socket.inet_aton(routed.left.ip4))
    peer = struct.pack("=H", socket.AF_INET) + peer[2:]
    option = peer + struct.pack("=BBHi80s", 0, 0, 4, 0, b"word")
    listener.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, option)
    client = stack.enter_context(routed.left.where.socket(socket.AF_INET, socket.SOCK_STREAM))
    client.settimeout(0)
    client.connect_ex((routed.right.ip4, port))


# Fragments


def _fragment(routed: Routed, number: int, offset: int, *, more: bool) -> bytes:
    packet = bytearray(wire.ip(routed.left.ip4, routed.right.ip4, 17, bytes(64)))
    packet[4:6] = struct.pack("!H", number)
    packet[6:8] = struct.pack("!H", offset // 8 | (0x2000 if more else 0))
    packet[10:12] = b"\0\0"
    packet[10:12] = struct.pack("!H", wire.checksum(bytes(packet[:20])))
    return bytes(packet)


def fragment_twice(routed: Routed, _: ExitStack) -> None:
    """The same fragment again."""
    wire.send(routed.left.where, _fragment(routed, 77, 64, more=True), 3)


def fragments_time_out(routed: Routed, stack: ExitStack) -> None:
    """The rest never comes."""
    _set(stack, routed.right.where, "ipv4/ipfrag_time", 1)
    wire.send(routed.left.where, _fragment(routed, 78, 0, more=True))
    time.sleep(1.2)


# IPv6 neighbours


def _solicitation(routed: Routed, target: str, hops: int) -> bytes:
    src, dst = routed.left.ip6, routed.left.ip6[:-1] + "1"
    body = struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, target)
    return wire.ip(src, dst, 58, wire.with_checksum(body, 2, src, dst, 58), ttl=hops)


def ndisc_from_afar(routed: Routed, _: ExitStack) -> None:
    """A neighbour solicitation that came through a router."""
    _frames(routed, _solicitation(routed, routed.left.ip6[:-1] + "1", 64))


def ndisc_for_another(routed: Routed, _: ExitStack) -> None:
    """Who has an address that nobody here has?"""
    _frames(routed, _solicitation(routed, "fd00:10:246:1::77", 255))


# Policies, tc, queues


def xfrm_policy(routed: Routed, stack: ExitStack) -> None:
    """An IPsec policy that blocks."""
    words = f"dst {routed.right.ip4}/32 proto udp dir fwd"
    routed.router.ip(f"xfrm policy add {words} action block")
    stack.callback(routed.router.ip, f"xfrm policy delete {words}")
    send_udp(routed.left.where, (routed.right.ip4, new_port()), 3)


def tc_ingress(routed: Routed, stack: ExitStack) -> None:
    """A tc program where packets come in."""
    stack.enter_context(tc.dropping(routed.router, "to-left", tc.INGRESS))
    send_udp(routed.left.where, (routed.right.ip4, new_port()), 3)


def tc_egress(routed: Routed, stack: ExitStack) -> None:
    """A tc program where packets go out."""
    stack.enter_context(tc.dropping(routed.router, "to-right", tc.EGRESS))
    send_udp(routed.left.where, (routed.right.ip4, new_port()), 3)


def xdp_of_a_veth(routed: Routed, stack: ExitStack) -> None:
    """An XDP program that the device's own driver runs."""
    stack.enter_context(tc.xdp_dropping(routed.router, "to-left"))
    send_udp(routed.left.where, (routed.right.ip4, new_port()), 3)


def neighbour_queue(routed: Routed, stack: ExitStack) -> None:
    """More packets wait for a neighbour than may."""
    _set(stack, routed.router, "ipv4/neigh/to-right/unres_qlen", 1)
    send_udp(routed.left.where, (routed.right.ip4[:-1] + "77", new_port()), 9)


# Devices


def ring_is_full(routed: Routed, stack: ExitStack) -> None:
    """Nobody reads what goes into a tun device."""
    with routed.router.entered():
        made = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(made, _TUNSETIFF, struct.pack("16sH", b"full0", _IFF_TUN | _IFF_NO_PI))
    stack.callback(os.close, made)
    routed.router.ip("link set full0 txqueuelen 2 up")
    routed.router.ip("address add 10.246.9.1/24 dev full0")
    send_udp(routed.router, ("10.246.9.2", new_port()), 9)


def no_tunnel_goal(routed: Routed, stack: ExitStack) -> None:
    """A VXLAN device that knows nobody."""
    _link(stack, routed.router, "vx5", f"type vxlan id 5 dstport {_VXLAN} dev to-right")
    routed.router.ip("address add 10.246.8.1/24 dev vx5")
    routed.router.ip("neigh add 10.246.8.2 lladdr 02:00:00:00:00:08 dev vx5")
    send_udp(routed.router, ("10.246.8.2", new_port()), 3)


def tunnel_without_parameters(routed: Routed, stack: ExitStack) -> None:
    """An external VXLAN device, and a packet without its parameters."""
    _link(stack, routed.router, "vxe", f"type vxlan external dstport {_VXLAN}")
    routed.router.ip("address add 10.246.8.1/24 dev vxe")
    routed.router.ip("neigh add 10.246.8.2 lladdr 02:00:00:00:00:08 dev vxe")
    send_udp(routed.router, ("10.246.8.2", new_port()), 3)


def _vxlan_device(routed: Routed, stack: ExitStack) -> bytes:
    """A VXLAN device of the router with identifier 5; its MAC address."""
    _link(stack, routed.router, "vx5", f"type vxlan id 5 dstport {_VXLAN} local 10.246.1.1")
    return wire.mac_of(routed.router, "vx5")


def _vxlan(
    routed: Routed, stack: ExitStack, head: bytes = _VNI_5, tos: int = 0, source: bytes = b""
) -> None:
    """Encapsulated datagrams for that device."""
    mac = source or _vxlan_device(routed, stack)
    source = source or _SOMEBODY
    inner = mac + source + b"\x08\0" + _datagram("10.246.8.2", "10.246.8.1", 9)
    src, dst = routed.left.ip4, "10.246.1.1"
    packet = bytearray(wire.ip(src, dst, 17, wire.udp(src, dst, (9, _VXLAN), head + inner)))
    packet[1] = tos
    packet[10:12] = b"\0\0"
    packet[10:12] = struct.pack("!H", wire.checksum(bytes(packet[:20])))
    _frames(routed, bytes(packet))


def unknown_vni(routed: Routed, stack: ExitStack) -> None:
    """Another network's identifier."""
    _vxlan(routed, stack, b"\x08\0\0\0\0\0\x06\0")


def vxlan_header(routed: Routed, stack: ExitStack) -> None:
    """A header without the flag that every one has."""
    _vxlan(routed, stack, b"\0\0\0\0\0\0\x05\0")


def tunnel_ecn(routed: Routed, stack: ExitStack) -> None:
    """Congestion outside, and no support for it inside."""
    _vxlan(routed, stack, tos=3)


def tunnel_echo(routed: Routed, stack: ExitStack) -> None:
    """What the VXLAN device itself has sent comes back."""
    _vxlan(routed, stack, source=_vxlan_device(routed, stack))


def tunnel_static_entry(routed: Routed, stack: ExitStack) -> None:
    """Its sender is known to be behind another remote, for good."""
    _vxlan_device(routed, stack)
    words = "fdb add 02:00:00:00:00:09 dev vx5 dst 10.246.1.99 static"
    routed.router.run("bridge", *words.split())
    _vxlan(routed, stack, source=_SOMEBODY)


def _bridge(stack: ExitStack, where: Namespace, words: str = "") -> None:
    """A bridge with one port, `in0`, whose other end is `in1`."""
    _link(stack, where, "br5", f"type bridge {words}")
    _link(stack, where, "in0", "type veth peer name in1")
    where.ip("link set in1 up")
    where.ip("link set in0 master br5")
    where.ip("address add 10.246.7.1/24 dev br5")


def _to_bridge(where: Namespace, to: bytes, source: bytes) -> None:
    packet = _datagram("10.246.7.2", "10.246.7.1", new_port())
    wire.send_frames(where, "in1", to + source + b"\x08\0" + packet, 3)


def bridge_source(routed: Routed, stack: ExitStack) -> None:
    """A multicast address as the sender."""
    _bridge(stack, routed.router)
    _to_bridge(routed.router, wire.mac_of(routed.router, "br5"), b"\x03\0\0\0\0\x07")


def xdp(routed: Routed, stack: ExitStack) -> None:
    """An XDP program at a device whose driver knows none."""
    _bridge(stack, routed.router)
    stack.enter_context(tc.xdp_dropping(routed.router, "br5"))
    _to_bridge(routed.router, wire.mac_of(routed.router, "br5"), b"\x02\0\0\0\0\x07")


def pause_frame(routed: Routed, stack: ExitStack) -> None:
    """An Ethernet pause frame."""
    _bridge(stack, routed.router)
    _to_bridge(routed.router, b"\x01\x80\xc2\0\0\x01", b"\x02\0\0\0\0\x07")


def blocked_port(routed: Routed, stack: ExitStack) -> None:
    """Spanning tree has not opened the port yet."""
    _bridge(stack, routed.router, "stp_state 1")
    _to_bridge(routed.router, wire.mac_of(routed.router, "br5"), b"\x02\0\0\0\0\x07")


def bad_extension(routed: Routed, _: ExitStack) -> None:
    """An IPv6 extension header that is longer than the packet."""
    packet = wire.ip(routed.left.ip6, routed.right.ip6, 60, b"\x11\x09" + bytes(14))
    wire.send(routed.left.where, packet, 3)


def unknown_option(routed: Routed, _: ExitStack) -> None:
    """An IPv6 option that nobody knows, which says that the packet is to be dropped then."""
    body = b"\x3b\x00" + b"\x5e\x04" + bytes(4)
    wire.send(routed.left.where, wire.ip(routed.left.ip6, routed.right.ip6, 60, body), 3)


def queue_without_program(routed: Routed, stack: ExitStack) -> None:
    """A rule hands packets to a program that is not there."""
    port = new_port()
    rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "NFQUEUE", "--queue-num", "99")
    stack.enter_context(iptables(routed.router, "iptables-legacy", *rule))
    send_udp(routed.left.where, (routed.right.ip4, port), 3)
    time.sleep(0.2)


def prohibited(routed: Routed, stack: ExitStack) -> None:
    """A prohibit route of IPv6."""
    routed.router.ip("route add prohibit fd00:97::/64")
    stack.callback(routed.router.ip, "route delete prohibit fd00:97::/64")
    send_udp(routed.left.where, ("fd00:97::1", new_port()), 3)
