"""Many senders at once: data of packets lies where that of others did, and none is mixed up.

Every datagram begins with a serial number that no other has, and hop records hold its first bytes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter

import numpy as np
import pytest
from lab import runner
from lab.traffic import new_port, udp_listener
from lab.ways import UNSURE

from tracer.analysis.paths import Assembler
from tracer.layout import layout
from tracer.recording import Recording

SENDERS = 64
EACH = 101
PAUSE_S = 0.015
"""Between two packets of a sender: a ring that overflows proves nothing about joins."""
UDP_PAYLOAD_AT = 14 + 20 + 8
ACCURACY = 0.9999
HOPS = 15
"""Sent (4), through the bridge (7), received (4); without those that may or may not be."""


def serials(hops):
    """Of each hop record the serial number in its packet's first bytes."""
    data = hops["packet"][:, UDP_PAYLOAD_AT : UDP_PAYLOAD_AT + 4]
    return np.ascontiguousarray(data).view(">u4").ravel()


def blast(sockets, to, barrier):
    """Threads that each send EACH datagrams, numbered over all."""

    def send(number):
        barrier.wait()
        for each in range(EACH):
            sockets[number].sendto((number * EACH + each).to_bytes(4, "big") + bytes(28), to)
            time.sleep(PAUSE_S)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(len(sockets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def drain(listener, count):
    """Read `count` datagrams in a thread of its own, so that buffers go round."""

    def read():
        got = 0
        while got < count:
            try:
                listener.recv(100)
            except TimeoutError:
                return
            got += 1

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def crowd(cluster, cri_env, tmp_path_factory):
    """JSON records and hop records of SENDERS × EACH datagrams from a pod to another."""
    path = tmp_path_factory.mktemp("crowd") / "recording"
    port, total = new_port(), SENDERS * EACH
    client, web = cluster.client, cluster.web
    arguments = ("trace", f"udp port {port}", "-o", "json", "--record", str(path))
    with udp_listener(web.where, port) as listener, runner.running(*arguments, env=cri_env) as live:
        sockets = [client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SENDERS)]
        reader = drain(listener, total)
        blast(sockets, (web.ip4, port), threading.Barrier(SENDERS))
        for made in sockets:
            made.close()
        reader.join(10)
        runner.until_quiet(live, 1.5, 20)
        done = live.stop()
    assert "Traceback" not in done.err
    batches = [one.events for one in Recording(path) if getattr(one, "kind", "") == "hops"]
    return done.records, np.concatenate(batches)


def seen(hops):
    """Those that hold the packet's bytes: a routing decision tells only whom it was about."""
    return hops[hops["hop"] != layout().enums["hop"].HOP_ROUTE]


def test_no_two_packets_are_mixed_up(crowd):
    """Every id that the kernel gave has one serial, and every serial one id."""
    _, hops = crowd
    told = seen(hops)
    pairs = np.unique(np.stack([told["packet_id"], serials(told)], 1), axis=0)
    assert len(np.unique(told["head"])) < SENDERS * EACH / 2, "addresses were reused"
    assert len(np.unique(pairs[:, 0])) == len(pairs), "a packet with two serials"
    assert len(np.unique(pairs[:, 1])) == len(pairs), "a serial with two packets"


def test_no_path_is_joined_of_two_packets(crowd):
    """The same of the paths that are put together from these records."""
    _, hops = crowd
    assembler = Assembler()
    assembler.add(hops, np.empty(0, layout().structs["drop_event"]))
    paths = assembler.take(int(hops["time_ns"].max()), everything=True)
    each = [np.unique(serials(seen(path.rows))) for path in paths]
    assert all(len(some) == 1 for some in each), "a path with two serials"
    assert len({int(some[0]) for some in each}) == len(paths), "a serial with two paths"


def test_every_path_is_whole(crowd):
    """Of packets whose records all arrived, at least ACCURACY are told hop by hop."""
    records, hops = crowd
    packets = [record for record in records if record["type"] == "packet"]
    (end,) = [record for record in records if record["type"] == "end"]
    lost = sum(end["lost"].values())
    assert lost < len(hops) / 100, "so many were lost that this proves nothing"
    assert SENDERS * EACH - lost <= len(packets) <= SENDERS * EACH
    ways = Counter(
        (record["verdict"], *(hop["hook"] for hop in record["hops"] if hop["hook"] not in UNSURE))
        for record in packets
    )
    usual, count = ways.most_common(1)[0]
    assert (usual[0], usual[-1], len(usual)) == ("delivered", "nf ip INPUT", 1 + HOPS)
    assert len(packets) - count <= lost + (1 - ACCURACY) * len(packets), (lost, ways)
