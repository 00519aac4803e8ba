"""Packets that reach their host and die there: sockets, checksums, protocols, devices, queues."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from lab import wire
from lab.expect import at, destination, owner, place, say, source, tcp, udp
from lab.shell import until
from lab.topology import meet
from lab.traffic import family_of, new_port, open_tcp, send_udp, tcp_listener, udp_listener

COUNT = 7
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def pair(cluster, version):
    """(client's address, web's address)."""
    client, web = cluster.client, cluster.web
    return (client.ip4, web.ip4) if version == 4 else (client.ip6, web.ip6)


def at_web(cluster, reason):
    """What a record says of a packet from client that died in web's namespace."""
    web = cluster.web
    return {
        "drop.reason": reason,
        **owner(web, "ingress"),
        **source(cluster.client),
        **destination(web),
        **place(web.where),
    }


@FAMILIES
def test_closed_udp_port(cluster, watch, version):
    port, (src, dst) = new_port(), pair(cluster, version)
    send_udp(cluster.client.where, (dst, port), COUNT)
    found = watch.expect(COUNT, udp(src, dst, port))
    say(found, at_web(cluster, "NO_SOCKET"), str(port))


@FAMILIES
def test_closed_tcp_port(cluster, watch, version):
    port, (src, dst) = new_port(), pair(cluster, version)
    for _ in range(COUNT):
        assert isinstance(open_tcp(cluster.client.where, (dst, port)), ConnectionRefusedError)
    found = watch.expect(COUNT, tcp(src, dst, port))
    say(found, at_web(cluster, "NO_SOCKET") | {"tcp.flags": "SYN"}, str(port))


def drain(listener):
    """How many datagrams wait in a socket."""
    received = 0
    listener.settimeout(0)
    with suppress(BlockingIOError):
        while listener.recv(2000):
            received += 1
    return received


@FAMILIES
def test_full_receive_buffer(cluster, watch, version):
    """What the socket took and what was dropped add up to what was sent."""
    sent, port, (src, dst) = 31, new_port(), pair(cluster, version)
    with udp_listener(cluster.web.where, port, family_of(dst)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send_udp(cluster.client.where, (dst, port), sent, bytes(1000))
        received = drain(listener)
    assert 0 < received < sent
    found = watch.expect(sent - received, udp(src, dst, port))
    say(found, at_web(cluster, "SOCKET_RCVBUFF"), "buffer")


@FAMILIES
def test_bad_udp_checksum(cluster, watch, version):
    port, (src, dst) = new_port(), pair(cluster, version)
    packet = wire.ip(src, dst, 17, wire.udp(src, dst, (port, port), b"broken", spoil=1))
    with udp_listener(cluster.web.where, port, family_of(dst)):
        wire.send(cluster.client.where, packet, COUNT)
        found = watch.expect(COUNT, udp(src, dst, port))
    say(found, at_web(cluster, "UDP_CSUM"), "checksum")


@FAMILIES
def test_bad_tcp_checksum(cluster, watch, version):
    port, (src, dst) = new_port(), pair(cluster, version)
    packet = wire.ip(src, dst, 6, wire.tcp(src, dst, (port, port), wire.SYN, spoil=1))
    with tcp_listener(cluster.web.where, port, family_of(dst)):
        wire.send(cluster.client.where, packet, COUNT)
        found = watch.expect(COUNT, tcp(src, dst, port))
    say(found, at_web(cluster, "TCP_CSUM"), "checksum")


@FAMILIES
@pytest.mark.parametrize("protocol", [wire.UNASSIGNED_PROTOCOL, wire.SCTP])
def test_protocol_that_nobody_speaks(cluster, watch, version, protocol):
    port, (src, dst) = new_port(), pair(cluster, version)
    wire.send(cluster.client.where, wire.ip(src, dst, protocol, wire.sctp((port, port))), COUNT)
    name = "sctp" if protocol == wire.SCTP else str(protocol)
    found = watch.expect(COUNT, {"src.address": src, "dst.address": dst, "transport": name})
    say(found, at_web(cluster, "IP_NOPROTO"), "protocol")


def frame_to_router(routed, packet, to=b""):
    """An Ethernet frame from `left` to the router, or to another hardware address."""
    head = to or wire.mac_of(routed.router, "to-left")
    return head + wire.mac_of(routed.left.where, "eth0") + b"\x08\x00" + packet


def through(routed, port):
    src, dst = routed.left.ip4, routed.right.ip4
    return wire.ip(src, dst, 17, wire.udp(src, dst, (port, port), b"frame"))


def test_bad_ip_header_checksum(routed, watch):
    port = new_port()
    packet = bytearray(through(routed, port))
    packet[10] ^= 0xFF
    wire.send_frames(routed.left.where, "eth0", frame_to_router(routed, bytes(packet)), COUNT)
    found = watch.expect(COUNT, udp(routed.left.ip4, routed.right.ip4, port))
    say(found, {"drop.reason": "IP_CSUM", **place(routed.router, "to-left")}, "checksum")


def test_frame_for_another_host(routed, watch):
    port = new_port()
    frame = frame_to_router(routed, through(routed, port), bytes.fromhex("020000000099"))
    wire.send_frames(routed.left.where, "eth0", frame, COUNT)
    found = watch.expect(COUNT, udp(routed.left.ip4, routed.right.ip4, port))
    say(found, {"drop.reason": "OTHERHOST", **place(routed.router, "to-left")}, "mac")


def test_truncated_ip_header(routed, watch):
    wire.send_frames(routed.left.where, "eth0", frame_to_router(routed, b"\x45" + bytes(14)), COUNT)
    about = {"type": "drop", "drop.reason": "IP_INHDR", "netns": routed.router.inode}
    found = watch.expect(COUNT, about | at("ip_rcv_core"))
    say(found, place(routed.router, "to-left"), "header")


def test_unknown_ethertype(routed, watch):
    head = wire.mac_of(routed.router, "to-left") + wire.mac_of(routed.left.where, "eth0")
    wire.send_frames(routed.left.where, "eth0", head + b"\x88\xb5" + bytes(46), COUNT)
    about = {"drop.reason": "UNHANDLED_PROTO", "netns": routed.router.inode}
    say(watch.expect(COUNT, about), place(routed.router, "to-left") | {"network.type": "0x88b5"})


@FAMILIES
def test_device_is_down(routed, watch, version):
    """The far end of the wire goes down: the router still has a neighbour, but no carrier."""
    port, dst = new_port(), routed.right.ip(version)
    mac = wire.mac_of(routed.right.where, "eth0").hex(":")
    routed.router.ip(f"neigh replace {dst} lladdr {mac} dev to-right nud permanent")
    routed.right.where.ip("link set eth0 down")
    try:
        until(lambda: "NO-CARRIER" in routed.router.ip("link show to-right"), "no carrier")
        send_udp(routed.left.where, (dst, port), COUNT)
        found = watch.expect(COUNT, udp(routed.left.ip(version), dst, port))
    finally:
        restore(routed)
        routed.router.ip(f"neigh delete {dst} dev to-right")
    say(found, {"drop.reason": "QDISC_DROP", **place(routed.router, "to-right")}, "down")


def restore(routed):
    """Bring the link up again; the kernel forgot its routes, and IPv6 its address."""
    right = routed.right
    right.where.ip("link set eth0 up")
    right.where.ip(f"address replace {right.ip6}/64 dev eth0 nodad")
    for gateway in (right.ip4[:-1] + "1", right.ip6[:-1] + "1"):
        right.where.ip(f"route replace default via {gateway}")
    meet(routed.left.where, right.where, right.ip4)


def test_queue_is_full(routed, watch):
    """The qdisc's own count of drops is the referee."""
    port, left = new_port(), routed.left
    shaper = "dev eth0 root tbf rate 8kbit burst 1600 limit 3000"
    left.where.run("tc", "qdisc", "add", *shaper.split())
    try:
        send_udp(left.where, (routed.right.ip4, port), 31, bytes(1000))
        words = left.where.run("tc", "-s", "qdisc", "show", "dev", "eth0").split()
        dropped = int(words[words.index("(dropped") + 1].rstrip(","))
        about = udp(left.ip4, routed.right.ip4, port) | {"drop.reason": "QDISC_DROP"}
        found = watch.expect(dropped, about)
    finally:
        left.where.run("tc", "qdisc", "delete", "dev", "eth0", "root")
    assert 0 < dropped < 31
    say(found, place(left.where, "eth0"), "queue")
