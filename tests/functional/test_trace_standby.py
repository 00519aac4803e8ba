"""`trace --standby`: one hook chooses; the others come with the first packet that is chosen."""

from __future__ import annotations

import pytest
from lab import runner, ways
from lab.leftovers import netfilter_links
from lab.shell import until
from lab.traffic import new_port, send_numbered, udp_listener

COUNT = 7


@pytest.fixture(scope="module", autouse=True)
def _made(cluster, routed):
    """The cluster first: it sweeps away what a killed run left, and `routed` looks the same."""


@pytest.mark.usefixtures("nothing_left")
def test_hooks_come_with_the_first_packet(routed, cri_env):
    """Nothing is attached for packets that nobody chose; a packet that came before says so."""
    chosen, other = new_port(), new_port()
    with (
        runner.running(
            "trace", f"udp port {chosen}", "--standby", "-o", "json", env=cri_env
        ) as live,
        udp_listener(routed.right.where, chosen) as listener,
        udp_listener(routed.right.where, other),
    ):
        send_numbered(routed.left.where, (routed.right.ip4, other), COUNT)
        assert not netfilter_links()
        send_numbered(routed.left.where, (routed.right.ip4, chosen), 1)
        listener.recv(100)
        until(netfilter_links, "the other hooks are attached")
        until(lambda: len(live.records()) == 1, "the first packet is told")
        send_numbered(routed.left.where, (routed.right.ip4, chosen), COUNT)
        for _ in range(COUNT):
            listener.recv(100)
        done = live.stop()
    assert done.code == 0, done.err
    first, *later = [record for record in done.records if record["type"] == "packet"]
    assert "standby" in first["incomplete"]
    assert first["dst.port"] == chosen
    through = ways.forwarded("trt-router", ("to-left", "to-right"))
    way = ways.sent("trt-left") + through + ways.received("trt-right")
    assert len(later) == COUNT
    for record in later:
        ways.check(record, way, "delivered")
        assert "incomplete" not in record
