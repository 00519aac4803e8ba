"""`trace` shows that a packet had to wait until its next hop's link address was known."""

from __future__ import annotations

import pytest
from lab import runner, topology
from lab.traffic import family_of, new_port, send_numbered, udp_listener

COUNT = 5
ASKED = "asks for the next hop's link address"
WAITED = "waited for the next hop's link address"


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
