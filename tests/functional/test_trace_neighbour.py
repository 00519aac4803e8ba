"""`trace` shows that a packet had to wait until its next hop's link address was known."""

from __future__ import annotations

import time

import pytest
from lab import runner, topology
from lab.traffic import family_of, new_port, send_numbered, udp_listener

COUNT = 5
ASKED = "asks for the next hop's link address"
WAITED = "waited for the next hop's link address"
TRIES, IN_TIME_S = 9, 0.6
"""A packet that is not heard of for a second counts as complete: on a stalled machine, again."""


@pytest.mark.parametrize("version", [4, 6])
def test_first_packet_asks(cluster, cri_env, version):  # noqa: ARG001 - it sweeps what was left
    """Once for all that follow, and it still arrives."""
    trace = ("trace", "udp portrange 20001-29999", "-o", "json")
    with topology.routed("-nb") as routed, runner.whole(*trace, env=cri_env) as live:
        packets, port = runner.watch(live), new_port()
        left, to = routed.left.where, (routed.right.ip(version), port)
        place = left.inode
        left.ip("neigh flush dev eth0")
        with udp_listener(routed.right.where, port, family_of(to[0])) as listener:
            send_numbered(left, to, 1)
            assert listener.recv(100)[:4] == bytes(4)
            send_numbered(left, to, COUNT)
            found = packets.expect(1 + COUNT, {"dst.port": port})
    asking = [
        [one for one in record["hops"] if ASKED in one.get("changes", ())] for record in found
    ]
    first, *later = sorted(zip((one["time"] for one in found), asking, strict=True))
    (hop,) = first[1]
    assert (hop["hook"], hop["netns"]) == ("consume_skb", place)
    assert [where(record) for record in found if waited(record)] == [["net_dev_queue"]]
    assert not any(hops for _, hops in later)
    assert {record["verdict"] for record in found} == {"delivered"}


def waited(record):
    """Hops of a packet that had to wait for an address."""
    return [hop for hop in record["hops"] if WAITED in hop.get("changes", ())]


def where(record):
    return [hop["hook"] for hop in waited(record)]


def send_before_the_answer(routed):
    """COUNT datagrams while the router keeps silent; the port, and how long they were held up."""
    left, to = routed.left.where, (routed.right.ip(4), new_port())
    left.ip("neigh flush dev eth0")
    with udp_listener(routed.right.where, to[1]) as listener:
        routed.router.sysctl("ipv4/conf/to-left/arp_ignore", 8)
        begun_s = time.monotonic()
        send_numbered(left, to, COUNT)
        routed.router.sysctl("ipv4/conf/to-left/arp_ignore", 0)
        for number in range(COUNT):
            assert listener.recv(100)[:4] == number.to_bytes(4, "big")
        return to[1], time.monotonic() - begun_s


def test_who_waits_behind_the_first(cluster, cri_env):  # noqa: ARG001 - it sweeps what was left
    """They ask nothing themselves, and wait for the same answer."""
    trace = ("trace", "udp portrange 20001-29999", "-o", "json")
    with topology.routed("-nw") as routed, runner.whole(*trace, env=cri_env) as live:
        routed.left.where.sysctl("ipv4/neigh/eth0/retrans_time_ms", 100)
        packets = runner.watch(live)
        for _ in range(TRIES):
            port, held_s = send_before_the_answer(routed)
            if held_s < IN_TIME_S:
                break
        found = packets.expect(COUNT, {"dst.port": port})
    asking = [
        record for record in found if any(ASKED in hop.get("changes", ()) for hop in record["hops"])
    ]
    assert asking
    # Packets that are told later than the one that asked do not know of it.
    assert all(where(record) == ["net_dev_queue"] for record in asking)
    assert all(where(record) in (["net_dev_queue"], []) for record in found)
    assert {record["verdict"] for record in found} == {"delivered"}
