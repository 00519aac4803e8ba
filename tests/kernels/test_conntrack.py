"""`tracer conntrack` in this kernel: each entry's birth and end, and what conntrack fails at."""

from __future__ import annotations

import socket

import pytest
from lab import namespaces, runner, wire
from lab.shell import until
from lab.tracking import events, failures, following, send_flows, tracking
from lab.traffic import new_port, udp_listener
from ways import WAIT_S

COUNT = 7


@pytest.fixture
def router(routed):
    """The router, which tracks; entries of UDP end after a second."""
    key = "netfilter/nf_conntrack_udp_timeout"
    with tracking(routed.router):  # loads conntrack, which brings the setting
        before = routed.router.sysctl(key, 1)
        yield routed.router
        routed.router.sysctl(key, before)


@pytest.mark.usefixtures("nothing_left")
def test_births_and_deaths(routed, router):
    port = new_port()
    with udp_listener(routed.right.where, port), following(router) as live:
        ports = send_flows(routed.left.where, (routed.right.ip4, port), COUNT)

        def all_ended():
            router.run("conntrack", "-L")  # the kernel ends what it finds to be too old
            return len(events(live, event="destroy", dst_port=port)) >= COUNT

        until(all_ended, f"{COUNT} entries end", WAIT_S)
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    for event in ("new", "destroy"):
        found = events(live, event=event, dst_port=port)
        assert sorted(record["src.port"] for record in found) == sorted(ports)
        here = {"netns": router.inode, "src.address": routed.left.ip4, "transport": "udp"}
        assert all(runner.matches(record, here) for record in found)
    ended = events(live, event="destroy", dst_port=port)
    assert {record["conntrack.destroy.reason"] for record in ended} == {"timeout"}
    end = done.records[-1]
    assert (end["births"], end["deaths"], end["alive"], end["lost"]) == (COUNT, COUNT, 0, {})


def test_invalid(routed, router):
    """Datagrams whose checksum is wrong are refused, and counted."""
    left, right, port = routed.left, routed.right, new_port()
    datagram = wire.udp(left.ip4, right.ip4, (port, port), bytes(32), spoil=1)
    with following(router) as live:
        wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_UDP, datagram), COUNT)
        done = live.stop()
    assert failures(done.records) == {"invalid": COUNT}
    assert done.code == 0


def test_table_full(routed, router):
    """Each packet makes an entry, or finds no room and is counted."""
    port, sent = new_port(), 41
    node = namespaces.node()
    before = node.sysctl("netfilter/nf_conntrack_max")
    with udp_listener(routed.right.where, port), following(router) as live:
        try:
            node.sysctl("netfilter/nf_conntrack_max", 10)
            send_flows(routed.left.where, (routed.right.ip4, port), sent)
        finally:
            node.sysctl("netfilter/nf_conntrack_max", before)
        done = live.stop()
    told = failures(done.records)
    born = sum(record.get("event") == "new" for record in done.records)
    assert born + told["table-full"] == sent
    assert told["table-full"] >= COUNT
