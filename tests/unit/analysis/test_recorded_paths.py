"""Paths of real packets, recorded on a real kernel (tests/data/paths/record.py)."""

import numpy as np
import orjson
import pytest
from hop_rows import no_drops, recording

from tracer.analysis.paths import Assembler, path_records

SENDING = ["nf ip OUTPUT", "nf ip POSTROUTING", "net_dev_queue", "net_dev_start_xmit"]
CROSSING = ["netif_rx", "netif_receive_skb"]
RECEIVING = [*CROSSING, "nf ip PREROUTING", "fib_table_lookup", "nf ip INPUT"]
BRIDGING = [*CROSSING, "nf ip PREROUTING", "nf ip FORWARD", "nf ip POSTROUTING", *SENDING[2:]]
ROUTING = [*CROSSING, "nf ip PREROUTING", "fib_table_lookup", "nf ip FORWARD", *SENDING[1:]]


def records(name):
    hops, drops, context = recording(name)
    assembler = Assembler()
    assembler.add(hops, drops)
    return path_records(assembler.take(0, everything=True), context)


def hooks(record):
    return [hop["hook"] for hop in record["hops"]]


def told(record):
    return [text for hop in record["hops"] for text in hop.get("changes", ())]


def test_three_questions_and_answers_over_a_bridge():
    packets = records("bridge")
    assert len(packets) == 6
    for packet in packets:
        # The kernel caches a socket's route: some packets are looked up, others not.
        seen = [hook for hook in hooks(packet) if hook != "fib_table_lookup"]
        assert seen == [hook for hook in SENDING + BRIDGING + RECEIVING if "fib" not in hook]
        assert packet["verdict"] == "delivered"
        assert "incomplete" not in packet
        assert "nat.src.address" not in packet
    ends = [(packet["k8s.src.pod.name"], packet["k8s.dst.pod.name"]) for packet in packets]
    assert sorted(ends) == [("client-0", "web-0")] * 3 + [("web-0", "client-0")] * 3
    assert len({packet["flow"] for packet in packets}) == 1
    assert len({packet["network.community_id"] for packet in packets}) == 1
    assert told(packets[0])[0] == "crossed into node"
    assert "crossed into pod shop/web-0" in told(packets[0])


def test_times_add_up():
    for packet in records("bridge"):
        parts = (hop.get("delta_ns", 0) + hop.get("duration_ns", 0) for hop in packet["hops"])
        assert sum(parts) == packet["duration_ns"]


def test_a_service_both_ways():
    packets = records("service")
    assert len({packet["flow"] for packet in packets}) == 1
    assert packets[0]["flow"].endswith("→ 10.96.0.10:80 TCP")
    syn, answer = packets[:2]
    assert (syn["tcp.flags"], answer["tcp.flags"]) == ("SYN", "SYN,ACK")
    assert hooks(syn)[: len(SENDING + ROUTING)] == SENDING + ROUTING
    assert syn["dst.address"] == "10.96.0.10"
    assert (syn["nat.dst.address"], syn["nat.dst.port"]) == ("10.244.2.2", 8080)
    assert syn["nat.src.address"] == "10.244.2.1"
    assert syn["k8s.dst.pod.name"] == "web-0"
    assert syn["conntrack.orig.dst.address"] == "10.96.0.10"
    port = syn["src.port"]
    for text in (
        "DNAT 10.96.0.10:80 → 10.244.2.2:8080",
        f"SNAT 10.244.1.2:{port} → 10.244.2.1:{port}",
        "mark 0x0 → 0x4000",
        "conntrack new SYN_SENT",
        "conntrack confirmed",
        "ttl 64 → 63",
        "data copied",
    ):
        assert text in told(syn), text
    assert (answer["src.address"], answer["src.port"]) == ("10.244.2.2", 8080)
    assert (answer["nat.src.address"], answer["nat.src.port"]) == ("10.96.0.10", 80)
    assert answer["nat.dst.address"] == "10.244.1.2"
    assert f"un-SNAT 10.244.2.1:{port} → 10.244.1.2:{port}" in told(answer)
    assert "un-DNAT 10.244.2.2:8080 → 10.96.0.10:80" in told(answer)
    assert answer["conntrack.direction"] == "reply"


def test_data_that_is_read_and_an_end_that_is_not():
    packets = records("service")
    read = [p for p in packets if "skb_copy_datagram_iovec" in hooks(p)]
    assert [hop["copied_bytes"] for p in read for hop in p["hops"] if "copied_bytes" in hop] == [
        50, 3000,
    ]  # fmt: skip
    purged = [p for p in packets if any(hop.get("drop.reason") for hop in p["hops"])]
    assert [p["verdict"] for p in purged] == ["delivered"]


def test_a_drop_in_forward():
    packets = records("forward_drop")
    assert len(packets) == 3
    for packet in packets:
        assert packet["verdict"] == "dropped"
        assert hooks(packet) == [*SENDING, *ROUTING[:5], "kfree_skb"]
        assert packet["hops"][-2]["verdict"] == "drop"
        assert packet["hops"][-1]["drop.reason"] == "NETFILTER_DROP"
        assert (packet["netfilter.hook"], packet["netfilter.mechanism"]) == ("FORWARD", "nf_tables")
        assert "FORWARD" in packet["explanation"]
        assert "k8s.dst.pod.name" not in packet
        assert "drop.stack" not in packet


def test_a_broadcast_is_branches():
    packets = records("flood")
    assert len(packets) == 2
    for packet in packets:
        branches = {}
        for at, hop in enumerate(packet["hops"]):
            branches.setdefault(hop["branch"], []).append((at, hop))
        assert len(branches) == 4
        ends = {number: some[-1][1] for number, some in branches.items()}
        places = sorted((hop["netns.name"], hop["interface.name"]) for hop in ends.values())
        assert places == [("node", "br0"), ("tpc", "eth0"), ("tpo", "eth0"), ("tps", "eth0")]
        # Both copies that the bridge made come from where it had the packet, not one from another.
        forks = [some[0][1] for number, some in branches.items() if number]
        origins = [packet["hops"][hop["after"]] for hop in forks]
        assert [(hop["branch"], hop["hook"]) for hop in origins] == [
            (0, "nf ip OUTPUT"), (0, "nf ip PREROUTING"), (0, "nf ip PREROUTING"),
        ]  # fmt: skip
        assert all("clone" in hop["changes"] for hop in forks)


def test_segments_and_what_is_sent_again():
    packets = records("retransmit")
    again = [packet for packet in packets if packet.get("tcp.retransmission")]
    lost = [packet for packet in packets if packet["verdict"] == "dropped"]
    assert len(again) == len(lost) == 1
    assert again[0]["tcp.seq"] == lost[0]["tcp.seq"]
    assert "GSO 5 segments" in told(again[0])
    assert again[0]["inferred"] is True  # its data was copied on the way: the kernel's new id


@pytest.mark.parametrize("name", ["bridge", "service", "forward_drop", "flood", "retransmit"])
def test_order_and_batches_make_no_difference(name):
    hops, drops, context = recording(name)
    wanted = [{**r, "hops": len(r["hops"])} for r in records(name)]
    random = np.random.default_rng(7)
    assembler = Assembler()
    for part in np.array_split(random.permutation(len(hops)), 7):
        assembler.add(hops[part], no_drops())
    assembler.add(hops[:0], drops[::-1])
    paths = assembler.take(0, everything=True)
    assert [{**r, "hops": len(r["hops"])} for r in path_records(paths, context)] == wanted
    assert assembler.take(0, everything=True) == []


@pytest.mark.parametrize("name", ["bridge", "service", "forward_drop", "flood", "retransmit"])
def test_every_record_is_json(name):
    for record in records(name):
        assert orjson.loads(orjson.dumps(record)) == record
