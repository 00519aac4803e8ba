"""`trace` of packets that die: in each netfilter hook, and the first copy that TCP sends again."""

from __future__ import annotations

import socket

import pytest
from lab import rules, runner, ways
from lab.traffic import family_of, new_port, send_udp, tcp_listener

COUNT = 5
PORTS = "udp portrange 20001-29999 or tcp portrange 20001-29999"
PAYLOAD = b"x" * 99


@pytest.fixture(scope="module", autouse=True)
def _made(cluster, routed):
    """The cluster first: it sweeps away what a killed run left, and `routed` looks the same."""


@pytest.fixture(scope="module")
def trace(_made, cri_env):
    """One `tracer trace` for the module."""
    with runner.whole("trace", PORTS, "-o", "json", env=cri_env) as live:
        yield live


def whole(version):
    """The way from left to right."""
    return [
        *ways.sent("trt-left", version),
        *ways.forwarded("trt-router", ("to-left", "to-right"), version),
        *ways.received("trt-right", version),
    ]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("place", "hook", "device"),
    [
        ("left", "output", "eth0"),
        ("left", "postrouting", "eth0"),
        ("router", "prerouting", "to-left"),
        ("router", "forward", "to-right"),
        ("router", "postrouting", "to-right"),
        ("right", "input", "eth0"),
    ],
)
def test_drop_in_a_hook(routed, packets, version, place, hook, device):
    """The way ends in the hook, which says so; all before it is told."""
    port, to = new_port(), routed.right.ip(version)
    where = routed.router if place == "router" else getattr(routed, place).where
    family = "ip" if version == 4 else "ip6"
    with rules.nft(where, family, hook, f"udp dport {port} drop"):
        send_udp(routed.left.where, (to, port), COUNT)
        found = packets.expect(COUNT, {"dst.port": port, "dst.address": to})
    way = whole(version)
    last = f"{where.name} {device} nf {family} {hook.upper()}"
    for record in found:
        end = ways.told(record)[-1]
        assert (end.split()[0], end.split()[-1]) == (where.name, "kfree_skb")
        ways.check(record, [*way[: way.index(last) + 1], end], "dropped")
        died_in = next(hop for hop in reversed(record["hops"]) if hop["hook"].startswith("nf "))
        assert died_in["verdict"] == "drop"
        assert record["drop.reason"] == "NETFILTER_DROP"
        assert record["netfilter.hook"] == hook.upper()
        assert record["netns.name"] == where.name


@pytest.mark.parametrize("version", [4, 6])
def test_retransmission(routed, packets, version):
    """The first copy dies in the router; the second is told as what it is, a packet of its own."""
    port, to = new_port(), routed.right.ip(version)
    rule = f"tcp dport {port} tcp flags & psh == psh limit rate 1/day burst 1 packets drop"
    with (
        rules.nft(routed.router, "ip" if version == 4 else "ip6", "forward", rule),
        tcp_listener(routed.right.where, port, family_of(to)) as listener,
        routed.left.where.socket(family_of(to), socket.SOCK_STREAM) as client,
    ):
        client.connect((to, port))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            client.sendall(PAYLOAD)
            assert accepted.recv(200) == PAYLOAD
        found = packets.expect(2, {"dst.port": port, "tcp.flags": "PSH,ACK"})
    first, second = found
    assert first["tcp.seq"] == second["tcp.seq"]
    assert (first["verdict"], second["verdict"]) == ("dropped", "delivered")
    assert first["netfilter.hook"] == "FORWARD"
    assert second["tcp.retransmission"] is True
    assert "tcp.retransmission" not in first
    way = whole(version)
    died = way.index(f"trt-router to-right nf {'ip' if version == 4 else 'ip6'} FORWARD")
    assert [x for x in ways.told(first) if "retransmit" not in x][: died + 1] == way[: died + 1]
    assert ways.told(second)[: len(way)] == way


@pytest.mark.parametrize(
    ("version", "kind", "last"),
    [
        (4, "unreachable", "unreachable route in table main"),
        (4, "blackhole", "blackhole route in table main"),
        (4, "", "no route in table main"),
        (6, "prohibit", "prohibit route in table main"),
        (6, "blackhole", "blackhole route in table main"),
        (6, "", "no route in table main"),
    ],
)
def test_no_way_to_go(routed, packets, version, kind, last):
    """The decision says why, and what is looked up for the ICMP error is no hop of the packet."""
    net, to = (
        ("10.247.9.0/24", "10.247.9.1") if version == 4 else ("fd00:99:9::/64", "fd00:99:9::1")
    )
    if kind:
        routed.router.ip(f"route add {kind} {net}")
    try:
        port = new_port()
        send_udp(routed.left.where, (to, port), COUNT)
        found = packets.expect(COUNT, {"dst.port": port, "dst.address": to})
    finally:
        if kind:
            routed.router.ip(f"route del {kind} {net}")
    for record in found:
        asked = [hop for hop in record["hops"] if hop["hook"] == "fib_table_lookup"]
        told = [change for hop in asked for change in hop["changes"] if "table" in change]
        assert told[-1] == last
        # IPv6 asks one table after the other, IPv4 too where there are rules.
        assert told[:-1] in ([], ["no route in table local"])
        assert not any("route.interface.name" in hop for hop in asked)
        assert record["verdict"] == "dropped"
