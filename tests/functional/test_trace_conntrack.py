"""What `trace` tells of conntrack: what is left alone or invalid, zones, marks."""

from __future__ import annotations

import socket

import pytest
from lab import runner, ways, wire
from lab.traffic import ask, new_port, send_udp, udp_listener

COUNT = 3
PORTS = "udp portrange 20001-29999 or tcp portrange 20001-29999"
ROUTER = "trt-router"
UNTRACKED, ZONED, MARKED = (new_port() for _ in range(3))
RULES = f"""
table ip trc {{
    chain first {{
        type filter hook prerouting priority raw;
        udp dport {UNTRACKED} notrack;
        udp dport {ZONED} ct zone set 7;
    }}
    chain second {{
        type filter hook forward priority filter;
        ct state new udp dport {MARKED} ct mark set 0x44;
    }}
}}
"""


@pytest.fixture(scope="module")
def _ruled(routed):
    """The rules go with the router."""
    routed.router.run("nft", "-f", "-", stdin=RULES)


@pytest.fixture(scope="module")
def trace(_ruled, cri_env):
    """One `tracer trace` for the module."""
    with runner.whole("trace", PORTS, "-o", "json", env=cri_env) as live:
        yield live


def sent(routed, packets, port):
    """Datagrams to a port, and what is told of them."""
    send_udp(routed.left.where, (routed.right.ip4, port), COUNT)
    return packets.expect(COUNT, {"dst.port": port, "transport": "udp"})


def at_first(record):
    """What the router's conntrack made of it."""
    return ways.changes(record, ROUTER, "nf ip PREROUTING")


def test_left_alone(routed, packets):
    for record in sent(routed, packets, UNTRACKED):
        assert at_first(record) == ["conntrack untracked"]
        assert record["conntrack.state"] == "untracked"


def test_zone(routed, packets):
    first, *others = sent(routed, packets, ZONED)
    assert at_first(first) == ["conntrack new zone 7"]
    for record in (first, *others):
        assert record["conntrack.zone"] == 7


def test_mark(routed, packets):
    """A rule sets it on the first packet; the answer finds it there."""
    with udp_listener(routed.right.where, MARKED) as server:
        ask(routed.left.where, (routed.right.ip4, MARKED), [server], 1)
        (there,) = packets.expect(1, {"dst.port": MARKED})
        (back,) = packets.expect(1, {"src.port": MARKED})
    assert at_first(there) == ["conntrack new"]
    assert "conntrack mark 0x0 → 0x44" in ways.changes(there, ROUTER, "nf ip FORWARD")
    assert at_first(back) == ["conntrack established reply mark 0x44"]
    assert back["flow"] == there["flow"]


def test_invalid(routed, packets):
    """No entry, though another packet has just got one there."""
    left, right, port = routed.left, routed.right, new_port()
    sent(routed, packets, port)
    segment = wire.tcp(left.ip4, right.ip4, (port, port), flags=wire.FIN | wire.SYN)
    wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_TCP, segment), COUNT)
    found = packets.expect(COUNT, {"dst.port": port, "tcp.flags": "FIN,SYN"})
    for record in found:
        assert at_first(record) == ["conntrack invalid (inferred)"]
        assert record["conntrack.state"] == "invalid"
