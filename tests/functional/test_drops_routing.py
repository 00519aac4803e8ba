"""Packets that a router, a pod's node or a neighbour cannot pass on, IPv4 and IPv6."""

from __future__ import annotations

import socket

import pytest
from lab import wire
from lab.expect import at, owner, place, say, source, udp
from lab.traffic import family_of, new_port, send_udp

COUNT = 7
FAMILIES = pytest.mark.parametrize("version", [4, 6])
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PROBE = 10, 23, 3
"""linux/in.h, linux/in6.h: set DF, and do not look at the path MTU known so far."""


@pytest.fixture
def setting(routed):
    """Set a sysctl of the router for this test."""
    before = {}

    def set_it(key, value):
        before.setdefault(key, routed.router.sysctl(key, value))

    yield set_it
    for key, value in before.items():
        routed.router.sysctl(key, value)


@pytest.fixture
def route(routed):
    """Add a route to the router for this test."""
    added = []

    def add(words):
        routed.router.ip(f"route add {words}")
        added.append(words)

    yield add
    for words in added:
        routed.router.ip(f"route delete {words}")


def pass_through(routed, watch, dst, reason, function):
    """COUNT datagrams from `left` to `dst` that die in the router; their records."""
    port = new_port()
    src = routed.left.ip6 if ":" in dst else routed.left.ip4
    send_udp(routed.left.where, (dst, port), COUNT)
    found = watch.expect(COUNT, udp(src, dst, port))
    wanted = {"drop.reason": reason, **at(function), "netns": routed.router.inode}
    return found, wanted | {"netns.name": routed.router.name}


def test_ip_forward_is_off(routed, watch, setting):
    setting("ipv4/ip_forward", 0)
    found = pass_through(routed, watch, routed.right.ip4, "IP_INADDRERRORS", "ip_error")
    say(*found, "ip_forward")


def test_ipv6_forwarding_is_off(routed, watch, setting):
    setting("ipv6/conf/all/forwarding", 0)
    found = pass_through(routed, watch, routed.right.ip6, "IP_INADDRERRORS", "ip6_forward")
    say(*found, "forwarding")


def test_no_route(routed, watch):
    say(*pass_through(routed, watch, "10.247.1.1", "IP_INNOROUTES", "ip_error"), "route")


def test_no_route_for_ipv6(routed, watch):
    found = pass_through(routed, watch, "fd00:99::1", "IP_INNOROUTES", "ip6_pkt_discard")
    say(*found, "route")


@pytest.mark.parametrize(
    ("subnet", "function"), [("10.247.2.0/24", "ip_error"), ("fd00:98::/64", "dst_discard_out")]
)
def test_blackhole_route(routed, watch, route, subnet, function):
    route(f"blackhole {subnet}")
    dst = subnet.split("/")[0][:-1] + ("0:1" if ":" in subnet else "1")
    dst = "fd00:98::1" if ":" in subnet else dst
    say(*pass_through(routed, watch, dst, "NOT_SPECIFIED", function), "route")


def test_rp_filter(routed, watch, setting, route):
    """The way back to the source leads out of another device than the packet came in by."""
    setting("ipv4/conf/to-left/rp_filter", 1)
    route(f"10.246.99.0/24 via {routed.right.ip4}")
    found = spoofed(routed, watch, "10.246.99.9")
    wanted = {"drop.reason": "IP_RPFILTER", **place(routed.router, "to-left")}
    say(found, wanted, "rp_filter")


def test_martian_source(routed, watch):
    found = spoofed(routed, watch, "127.0.0.5")
    say(found, {"drop.reason": "IP_LOCALNET", **place(routed.router, "to-left")}, "127")


def spoofed(routed, watch, src):
    port, dst = new_port(), routed.right.ip4
    datagram = wire.udp(src, dst, (port, port), b"spoofed")
    wire.send(routed.left.where, wire.ip(src, dst, socket.IPPROTO_UDP, datagram), COUNT)
    return watch.expect(COUNT, udp(src, dst, port))


@FAMILIES
def test_ttl_exceeded_after_a_pod(cluster, watch, version):
    port, client = new_port(), cluster.client
    src, dst = (
        (client.ip4, cluster.outside_ip4) if version == 4 else (client.ip6, cluster.outside_ip6)
    )
    datagram = wire.udp(src, dst, (port, port), b"short-lived")
    wire.send(client.where, wire.ip(src, dst, socket.IPPROTO_UDP, datagram, ttl=1), COUNT)
    found = watch.expect(COUNT, udp(src, dst, port))
    wanted = {"drop.reason": "IP_INHDR", "ip.ttl": 1} | owner(client, "egress") | source(client)
    say(
        found,
        wanted | at("ip_forward" if version == 4 else "ip6_forward"),
        "ttl" if version == 4 else "hop",
    )


@FAMILIES
def test_too_big_for_the_next_link(routed, watch, version):
    for where, device in ((routed.router, "to-right"), (routed.right.where, "eth0")):
        where.ip(f"link set {device} mtu 1280")
    port, src, dst = new_port(), routed.left.ip(version), routed.right.ip(version)
    with routed.left.where.socket(family_of(dst), socket.SOCK_DGRAM) as sender:
        if version == 4:
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PROBE)
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PROBE)
        for _ in range(COUNT):
            sender.sendto(bytes(1400), (dst, port))
    try:
        found = watch.expect(COUNT, udp(src, dst, port))
    finally:
        for where, device in ((routed.router, "to-right"), (routed.right.where, "eth0")):
            where.ip(f"link set {device} mtu 1500")
    length = 20 + 8 + 1400 if version == 4 else 40 + 8 + 1400
    wanted = {"drop.reason": "PKT_TOO_BIG", "netns": routed.router.inode, "ip.length": length}
    say(found, wanted, "mtu")


@pytest.mark.parametrize(
    ("dst", "reason"),
    [("10.246.2.77", "NEIGH_FAILED"), ("fd00:10:246:2::77", "NOT_SPECIFIED")],
)
def test_neighbour_does_not_answer(routed, watch, setting, dst, reason):
    family = "ipv6" if ":" in dst else "ipv4"
    setting(f"{family}/neigh/to-right/retrans_time_ms", 50)
    found, wanted = pass_through(routed, watch, dst, reason, "neigh_invalidate")
    say(found, wanted, "neighbour")


def test_neighbour_of_a_pod_does_not_answer(cluster, watch):
    client, port = cluster.client, new_port()
    client.where.sysctl("ipv4/neigh/eth0/retrans_time_ms", 50)
    send_udp(client.where, ("10.244.77.99", port), COUNT)
    found = watch.expect(COUNT, udp(client.ip4, "10.244.77.99", port))
    wanted = {
        "drop.reason": "NEIGH_FAILED",
        **owner(client, "egress"),
        **place(client.where, "eth0"),
    }
    say(found, wanted, "neighbour")
