"""`trace` shows a packet's stay in a queueing discipline, where a device has one."""

from __future__ import annotations

import pytest
from lab import runner, topology, ways
from lab.traffic import new_port, send_numbered, udp_listener

COUNT = 5
TBF = "tbf rate 8mbit burst 2kb latency 200ms"
"""A token bucket: every packet is kept, if only until the next line of code."""


@pytest.fixture(scope="module")
def routed(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    with topology.routed("-qd") as made:
        left = made.left.where
        left.run("tc", "qdisc", "add", "dev", "eth0", "root", *TBF.split())
        yield made


@pytest.fixture
def packets(routed, cri_env):  # noqa: ARG001 - all is there before it looks
    with runner.whole("trace", "udp portrange 20001-29999", "-o", "json", env=cri_env) as live:
        yield runner.watch(live)


def test_kept_and_let_go_by_the_first_device_alone(routed, packets):
    """Hops between queue and driver of the device that has one; the others have none."""
    left, right, port = routed.left, routed.right, new_port()
    with udp_listener(right.where, port) as listener:
        send_numbered(left.where, (right.ip4, port), COUNT)
        found = packets.expect(COUNT, {"dst.port": port})
        for number in range(COUNT):
            assert listener.recv(100)[:4] == number.to_bytes(4, "big")
    place = left.where.name
    *before, last = ways.sent(place)
    kept = [f"{place} eth0 {hook}" for hook in ("qdisc_enqueue", "qdisc_dequeue")]
    for record in found:
        told = ways.told(record)
        assert told[: len(before) + 3] == [*before, *kept, last]
        assert not any("qdisc" in hop for hop in told[len(before) + 3 :])
        assert ways.changes(record, place, "qdisc_enqueue") == ["kept by tbf"]
        assert record["verdict"] == "delivered"


def test_answers_meet_no_qdisc(routed, packets):
    left, right, port = routed.left, routed.right, new_port()
    with udp_listener(left.where, port):
        send_numbered(right.where, (left.ip4, port), COUNT)
        found = packets.expect(COUNT, {"dst.port": port})
    assert not any("qdisc" in hop for record in found for hop in ways.told(record))
