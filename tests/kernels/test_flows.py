"""`tracer flows` counts what was sent, each way of attaching the same."""

from __future__ import annotations

import socket

import pytest
from lab import runner
from lab.rules import counted, nft
from lab.traffic import converse, family_of, new_port, tcp_listener, udp_listener
from ways import attached, forced, kinds_of

SENT, BACK, SIZE = 301, 77, 100
HEADERS = {4: 20 + 8, 6: 40 + 8}


def total(records, **wanted):
    """(packets, bytes) of the flow records that match."""
    wanted = {name.replace("_", "."): value for name, value in wanted.items()}
    found = [record for record in records if runner.matches(record, wanted)]
    return sum(r["packets"] for r in found), sum(r["bytes"] for r in found)


def talk(routed, version, port):
    """SENT datagrams from left to right, BACK of them answered; nft's count at the router."""
    left, right = routed.left, routed.right
    with (
        nft(routed.router, "inet", "forward", f"udp sport {port} counter"),
        udp_listener(right.where, port, family_of(right.ip(version))) as server,
        udp_listener(left.where, port, family_of(left.ip(version))) as client,
    ):
        for _ in range(SENT):
            client.sendto(bytes(SIZE), (right.ip(version), port))
        for _ in range(BACK):
            server.sendto(bytes(SIZE), (left.ip(version), port))
        return counted(routed.router, "inet")


@pytest.mark.parametrize("kind", kinds_of("flows"))
def test_flows_are_exact(routed, kind, record_property):
    record_property("way", kind)
    ports = {4: new_port(), 6: new_port()}
    with runner.running("flows", "--interval", "500ms", *forced("flows", kind)) as live:
        attached(live, "flows", kind)
        for version, port in ports.items():
            assert talk(routed, version, port) == SENT + BACK
        done = live.stop()
    assert done.code == 0, done.err
    for version, port in ports.items():
        one_bytes = SIZE + HEADERS[version]
        for host, sent, received in ((routed.left, SENT, BACK), (routed.right, BACK, SENT)):
            here = {"netns": host.where.inode, "interface_name": "eth0", "src_port": port}
            out = total(done.records, **here, verdict="forwarded", direction="egress")
            into = total(done.records, **here, verdict="forwarded", direction="ingress")
            assert out == (sent, sent * one_bytes), (version, host.ip4)
            assert into == (received, received * one_bytes), (version, host.ip4)


@pytest.mark.parametrize("kind", kinds_of("flows"))
def test_dropped_flows_are_exact(routed, kind, record_property):
    record_property("way", kind)
    port, count = new_port(), 33
    right = (routed.right.ip4, port)
    with (
        runner.running("flows", "--interval", "500ms", *forced("flows", kind)) as live,
        nft(routed.router, "inet", "forward", f"udp dport {port} drop"),
        routed.left.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(count):
            sender.sendto(bytes(SIZE), right)
        done = live.stop()
    dropped = total(done.records, netns=routed.router.inode, verdict="dropped", dst_port=port)
    assert dropped == (count, count * (SIZE + HEADERS[4]))


@pytest.mark.parametrize("kind", kinds_of("flows"))
def test_tcp_is_timed(routed, kind, record_property):
    record_property("way", kind)
    port, left, right = new_port(), routed.left, routed.right
    with (
        tcp_listener(right.where, port) as listener,
        runner.running("flows", "--interval", "1m", *forced("flows", kind)) as live,
    ):
        converse(left.where, (right.ip4, port), listener)
        done = live.stop()
    assert done.code == 0, done.err
    for host, name in ((left, "dst.port"), (right, "src.port")):
        about = {name: port, "netns": host.where.inode, "direction": "egress"}
        sent = next(r for r in done.records if runner.matches(r, about))
        for field in ("tcp.rtt_ns", "tcp.handshake_ns"):
            assert 0 < sent[field] < 60 * 10**9, (host.ip4, field)
