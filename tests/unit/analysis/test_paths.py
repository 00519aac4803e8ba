"""Paths put together from made-up hop records: what real runs show too rarely."""

from dataclasses import replace

import numpy as np
import pytest
from hop_rows import (
    CLIENT,
    CLONE,
    CONSUMED,
    COPIED,
    DROPPED,
    ENTER,
    FIRST,
    FORWARD,
    GONE,
    GSO,
    IN,
    JOINED,
    LEAVE,
    NETIF_RX,
    NODE_NETNS,
    OUT,
    POST,
    PRE,
    QUEUE,
    RETRANSMIT,
    ROUTE,
    RX,
    SERVER,
    TCP,
    XMIT,
    A,
    B,
    context,
    drop,
    hop,
    no_drops,
    rows,
)  # fmt: skip

from tracer.analysis.assemble import PACE_NS, QUIET_NS
from tracer.analysis.latency import Latency
from tracer.analysis.paths import Assembler, path_record, path_records

MS = 1_000_000
S = 1_000_000_000


def taken(hops, drops=None):
    assembler = Assembler()
    assembler.add(hops, no_drops() if drops is None else drops)
    return path_records(assembler.take(0, everything=True), context())


def one(*hops, drops=None):
    (record,) = taken(rows(*hops), drops)
    return record


def sent(packet=1, at=100, **given):
    """A pod's packet up to its device."""
    place = {"packet": packet, "netns": CLIENT, **given}
    return (
        hop(ENTER, at, nf=OUT, flags=FIRST, **place),
        hop(LEAVE, at + 10, nf=OUT, **place),
        hop(QUEUE, at + 20, **place),
        hop(XMIT, at + 30, **place),
    )


def received(packet=1, at=200, **given):
    place = {"packet": packet, "netns": SERVER, **given}
    return (
        hop(NETIF_RX, at, **place),
        hop(RX, at + 10, **place),
        hop(ENTER, at + 20, nf=IN, **place),
        hop(LEAVE, at + 30, nf=IN, **place),
    )


def test_interleaved_packets_are_not_mixed_up():
    many = [part for number in range(1, 9) for part in (*sent(number, number), *received(number))]
    packets = taken(rows(*many))
    assert [packet["hops"][0]["time"][-5:-1] for packet in packets] == [
        f"{n:04d}" for n in range(1, 9)
    ]
    assert all(len(packet["hops"]) == 6 for packet in packets)
    assert all(packet["verdict"] == "delivered" for packet in packets)


def test_hops_say_where_and_when():
    record = one(*sent(), *received())
    first, *_, last = record["hops"]
    assert first == {
        "hook": "nf ip OUTPUT", "verdict": "accept", "interface.name": "eth0", "interface.index": 2,
        "netns": CLIENT, "netns.name": "cni-c", "k8s.pod.namespace": "shop",
        "k8s.pod.name": "client-0", "time": "1970-01-01T00:00:00.000000100Z", "duration_ns": 10,
    }  # fmt: skip
    assert last["delta_ns"] == 10
    assert record["duration_ns"] == 130
    assert record["k8s.dst.pod.name"] == "web-0"
    assert [hop["changes"] for hop in record["hops"] if "changes" in hop] == [
        ["crossed into pod shop/web-0"]
    ]


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ([hop(XMIT, 300, ifindex=9)], "forwarded"),
        ([hop(XMIT, 300, ifindex=9), hop(CONSUMED, 310, netns=0)], "forwarded"),
        ([hop(XMIT, 300, ifindex=2)], "unknown"),
        ([hop(RX, 300), hop(CONSUMED, 310)], "consumed"),
        ([hop(COPIED, 300, netns=SERVER)], "delivered"),
        ([*received(at=300), hop(DROPPED, 400, netns=SERVER, argument=5)], "delivered"),
        ([*received(at=300), hop(DROPPED, 400, netns=SERVER, argument=3)], "dropped"),
    ],
)
def test_verdicts(ends, verdict):
    assert one(*sent(), *ends)["verdict"] == verdict


def test_a_drop_brings_its_explanation():
    record = one(*sent(), hop(DROPPED, 300, argument=3), drops=drop(300))
    assert record["drop.reason"] == record["hops"][-1]["drop.reason"] == "NO_SOCKET"
    assert record["explanation"]
    assert record["interface.name"] == "vc"
    paths = Assembler()
    paths.add(rows(*sent(), hop(DROPPED, 300)), drop(300))
    (path,) = paths.take(0, everything=True)
    assert path.died
    told = path_record(path, context(), lambda drop: {**drop, "explanation": "so", "hint": "do"})
    assert (told["explanation"], told["hint"]) == ("so", "do")


def test_a_netfilter_hook_that_lets_nothing_out():
    def last(*after):
        return one(*sent(), hop(ENTER, 300, nf=FORWARD), *after)["hops"][3]["verdict"]

    assert last(hop(DROPPED, 310)) == "drop"
    assert last(hop(CONSUMED, 310)) == "stolen"
    assert last() == "stolen or queued"


def test_ipvs_takes_a_packet_out_of_input():
    came = hop(ENTER, 300, nf=IN)
    record = one(*sent(), came, hop(ENTER, 310, nf=OUT), hop(LEAVE, 320, nf=OUT))
    assert [each["verdict"] for each in record["hops"][-2:]] == ["stolen", "accept"]
    assert "incomplete" not in record


def test_lost_records_are_told():
    begin, _, *rest = sent()
    assert one(begin, *rest)["incomplete"] == "at least 1 of its hop records are missing"
    assert one(begin, *rest)["hops"][0]["verdict"] == "unknown"
    assert one(*received())["incomplete"] == "its beginning was lost, or shown before"
    left = hop(LEAVE, 400, nf=POST)
    assert "1 of its" in one(*sent(), left)["incomplete"]
    assert "incomplete" not in one(*sent())


@pytest.mark.parametrize(
    ("absent", "missing"),
    [((), 0), ((XMIT,), 1), ((RX,), 1), ((NETIF_RX, RX), 1), ((XMIT, NETIF_RX), 1),
     ((XMIT, NETIF_RX, RX), 2)],
)  # fmt: skip
def test_what_the_kernel_did_not_tell_between_two_devices_is_missed(absent, missing):
    into = (hop(ENTER, 215, netns=SERVER, nf=PRE), hop(LEAVE, 216, netns=SERVER, nf=PRE))
    way = (*sent(), *received()[:2], *into, *received()[2:])
    record = one(*(each for each in way if each["hop"] not in absent))
    told = f"at least {missing} of its hop records are missing" if missing else None
    assert record.get("incomplete") == told


def test_a_queue_behind_a_queue_and_a_consumed_whole_miss_nothing():
    begin = sent()[:3]
    assert "incomplete" not in one(*begin, hop(QUEUE, 130, ifindex=5), hop(XMIT, 140, ifindex=5))
    assert "incomplete" not in one(*begin, hop(CONSUMED, 130, flags=GONE))


def test_losses_mark_the_packets_that_were_under_way():
    assembler = Assembler()
    assembler.note_losses(0, 1 * S)
    assembler.add(rows(*sent(1, 500), *sent(2, 2 * S), *sent(3, 4 * S)), no_drops())
    assembler.note_losses(3, 3 * S)
    records = path_records(assembler.take(0, everything=True), context())
    assert ["incomplete" in record for record in records] == [False, True, False]
    assert records[1]["incomplete"].startswith("3 hop records were lost meanwhile")


def test_a_packet_is_given_back_once_it_has_ended():
    assembler = Assembler()
    assembler.add(rows(*sent(), hop(CONSUMED, 300)), no_drops())
    assert assembler.take(400) == []  # others hold its data
    assembler.add(rows(hop(CONSUMED, 310, flags=GONE)), no_drops())
    assert len(assembler.take(400)) == 1
    assert assembler.take(10 * S) == []


def test_a_packet_is_given_back_once_it_is_quiet():
    assembler = Assembler()
    assembler.add(rows(*sent(1, 100), *sent(2, S)), no_drops())
    (path,) = assembler.take(200 + QUIET_NS)
    assert path.begin_ns == 100
    (path,) = assembler.take(2 * S + QUIET_NS)
    assert path.begin_ns == S


def test_a_death_waits_for_its_reason():
    assembler = Assembler()
    assembler.add(rows(*sent(), hop(DROPPED, 300, flags=GONE)), no_drops())
    assert assembler.take(400) == []
    assembler.add(rows(), drop(300))
    (path,) = assembler.take(500)
    assert path.drop["reason"] == 3


def test_a_death_waits_for_its_reason_though_a_clone_outlives_it():
    """As of an echo reply: ping reads a clone, the kernel drops the packet itself before that."""
    clone = hop(COPIED, 310, skb=5), hop(CONSUMED, 320, skb=5, flags=GONE)
    assembler = Assembler()
    assembler.add(rows(*sent(), hop(DROPPED, 300), *clone), no_drops())
    assert assembler.take(400) == []
    assembler.add(rows(), drop(300))
    (path,) = assembler.take(500)
    assert path.drop["reason"] == 3
    assert assembler.take(400 + 2 * QUIET_NS, everything=True) == []


def test_what_is_freed_later_took_no_longer():
    later = replace(context(), symbol=lambda _: "skb_defer_free_flush+0x70")
    paths = Assembler()
    read = hop(COPIED, 300, skb=5, netns=SERVER)
    paths.add(rows(*sent(), *received(at=200), read, hop(CONSUMED, S, netns=SERVER)), no_drops())
    (path,) = paths.take(S, everything=True)
    record = path_record(path, later)
    assert record["duration_ns"] == 200
    assert record["hops"][-1]["changes"] == ["was done with before"]
    assert path_record(path, context())["duration_ns"] == S - 100
    latency = Latency()
    latency.add([record])
    assert max(row["max_ns"] for row in latency.records()) == 200


def test_a_netlink_message_in_the_memory_of_a_packet_is_no_hop_of_it():
    message = hop(COPIED, 300, skb=5), hop(CONSUMED, 310, skb=5), hop(DROPPED, 320, skb=6)
    died = drop(320, skb=6)
    for one_of_it in (*message, died):
        one_of_it["tuple"] = 0
    record = one(*sent(), *message, drops=died)
    assert record["hops"][-1]["hook"] == "net_dev_start_xmit"
    assert "drop.reason" not in record
    alone = Assembler()
    alone.add(rows(*message), died)
    assert alone.take(S, everything=True) == []


def test_a_death_of_which_nothing_else_is_known():
    assembler = Assembler()
    assembler.add(rows(), rows(drop(300), drop(400, packet=0)))
    assert assembler.take(400) == []
    (path,) = assembler.take(400 + QUIET_NS)
    record = path_record(path, context())
    assert record["drop.reason"] == "NO_SOCKET"
    assert [hop["hook"] for hop in record["hops"]] == ["kfree_skb"]
    assert "beginning" in record["incomplete"]
    assert record["src.address"] == "10.1.0.2"


def test_many_waiting_hops_are_not_looked_through_at_every_turn():
    assembler = Assembler()
    assembler.take(1 * S)
    many = np.tile(rows(*sent()), 3000)
    many["packet_id"] = np.arange(len(many)) // 4 + 1
    many["flags"][3::4] = GONE
    many["hop"][3::4] = CONSUMED
    assembler.add(many, no_drops())
    assert assembler.take(1 * S + PACE_NS - 1) == []
    assert len(assembler.take(1 * S + PACE_NS)) == 3000


def test_moved_data_is_recognised_by_its_signature():
    same = {"protocol": TCP, "signature": 99, "skb": 7}
    before = sent(1, 100, **same)
    after = hop(ENTER, 200, 2, nf=FORWARD, flags=FIRST, **same)
    record = one(*before, after, hop(LEAVE, 210, 2, nf=FORWARD, **same))
    assert record["inferred"] is True
    assert "data copied" in record["hops"][-1]["changes"]
    assert len(taken(rows(*before, hop(RX, 200 + 2 * MS, 2, flags=FIRST, **same)))) == 2
    other = {**same, "signature": 97}
    assert len(taken(rows(*before, hop(RX, 200, 2, flags=FIRST, **other)))) == 2
    ended = hop(CONSUMED, 150, **same)
    assert len(taken(rows(*before, ended, hop(RX, 200, 2, flags=FIRST, **same)))) == 2


def test_the_kernel_says_that_it_recognised_a_packet():
    record = one(*sent(), hop(RX, 200, flags=JOINED))
    assert record["inferred"] is True
    assert "data copied" in record["hops"][-1]["changes"]
    assert "inferred" not in one(*sent(), hop(RX, 200))


def test_a_joined_packet_is_complete_when_its_copy_has_ended():
    same = {"protocol": TCP, "signature": 99, "skb": 7, "flags": CLONE}
    assembler = Assembler()
    moved = hop(RX, 200, 2, **{**same, "flags": FIRST}), hop(CONSUMED, 300, 2, **same)
    assembler.add(rows(*sent(1, 100, signature=99, skb=7, protocol=TCP), *moved), no_drops())
    assert assembler.take(400) == []
    assembler.add(rows(hop(CONSUMED, 310, 2, **{**same, "flags": GONE})), no_drops())
    assert len(assembler.take(400)) == 1


def test_an_answers_routing_decision_is_not_the_dead_packets():
    record = one(*sent(), hop(DROPPED, 300), hop(ROUTE, 310))
    assert record["hops"][-1]["hook"] == "kfree_skb"
    route = one(*sent(), hop(ROUTE, 310, argument=254, out_ifindex=9, error=0))["hops"][-1]
    assert (route["changes"], route["route.interface.name"]) == (
        ["crossed into node", "table main"], "ens3",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "table", "text"),
    [
        (-11, 255, "no route in table local"),
        (-113, 254, "unreachable route in table main"),
        (-13, 100, "prohibit route in table 100"),
        (-22, 254, "blackhole route in table main"),
        (-12, 254, "error -12 in table main"),
    ],
)
def test_a_routing_table_says_no(error, table, text):
    failed = one(*sent(), hop(ROUTE, 310, argument=table, error=error, netns=CLIENT))["hops"][-1]
    assert failed["changes"] == [text]


def test_a_hop_without_a_namespace_is_where_the_packet_was():
    record = one(*received(), hop(CONSUMED, 400, netns=0))
    assert record["hops"][-1]["k8s.pod.name"] == "web-0"


def test_a_capture_is_a_branch_and_no_delivery():
    tap = hop(COPIED, 135, skb=5, netns=CLIENT)
    record = one(*sent(), tap, hop(XMIT, 300, ifindex=9))
    assert record["verdict"] == "forwarded"
    assert [hop["branch"] for hop in record["hops"]] == [0, 0, 0, 1, 0]
    assert record["hops"][3]["after"] == 0


def test_an_skb_address_that_comes_back_is_another_branch():
    hops = (hop(RX, 140, flags=FIRST), hop(QUEUE, 150, skb=5), hop(CONSUMED, 160, skb=5))
    record = one(*hops, hop(QUEUE, 170, skb=5), hop(XMIT, 180))
    assert [hop["branch"] for hop in record["hops"]] == [0, 1, 1, 2, 0]
    assert [hop.get("after") for hop in record["hops"]] == [None, 0, None, 0, None]


def test_changes_without_conntrack():
    other = ("10.1.0.9", 99)
    begin = (hop(ENTER, 100, nf=PRE, flags=FIRST), hop(LEAVE, 110, nf=PRE, goal=other, mark=4))
    record = one(*begin, hop(QUEUE, 200, goal=other, mark=4, bytes=80))
    assert record["hops"][0]["changes"] == [
        "destination 10.1.0.3:53 → 10.1.0.9:99", "mark 0x0 → 0x4",
    ]  # fmt: skip
    assert record["hops"][1]["changes"] == ["100 → 80 bytes"]
    assert record["nat.dst.address"] == "10.1.0.9"


def test_a_packet_chosen_behind_its_translation_is_told_as_it_was_sent():
    service = ("10.96.0.10", 80)
    client, web = ("10.1.0.2", 4000), ("10.1.0.3", 53)
    entry = {"orig": (client, service), "reply": (web, client), "status": 0x120}
    record = one(hop(QUEUE, 100, flags=FIRST, ct=entry))
    assert (record["dst.address"], record["dst.port"]) == service
    assert record["packet"] == "10.1.0.2:4000 → 10.96.0.10:80 UDP"
    assert (record["nat.dst.address"], record["nat.dst.port"]) == web
    answer = one(hop(QUEUE, 100, flags=FIRST, source=service, goal=client, ct={**entry, "info": 3}))
    assert (answer["src.address"], answer["nat.src.address"]) == ("10.1.0.3", "10.96.0.10")
    assert answer["flow"] == record["flow"] == "10.1.0.2:4000 → 10.96.0.10:80 UDP"


def test_a_tunnel():
    ends = {"source": ("172.16.0.1", 5555), "goal": ("172.16.0.2", 4789), "bytes": 150}
    record = one(*sent(), hop(QUEUE, 200, **ends), hop(XMIT, 210, ifindex=9, **ends))
    vxlan = f"vxlan {record['tunnel.id']}"
    assert record["hops"][3]["changes"] == [
        "crossed into node", f"encapsulated in {vxlan} 172.16.0.1:5555 → 172.16.0.2:4789 UDP",
    ]  # fmt: skip
    assert record["tunnel.packet"] == "172.16.0.1:5555 → 172.16.0.2:4789 UDP"
    assert record["tunnel.type"] == "vxlan"
    assert record["packet"].startswith("10.1.0.2:4000")
    assert not any(name.startswith("nat.") for name in record)
    inward = one(hop(RX, 100, flags=FIRST, ifindex=9, **ends), hop(RX, 200, ifindex=3))
    assert inward["packet"] == "10.1.0.2:4000 → 10.1.0.3:53 UDP"
    assert inward["flow"] == record["flow"]
    assert "decapsulated from" in inward["hops"][1]["changes"][0]


def test_segments_are_counted():
    begin = hop(QUEUE, 100, flags=FIRST | GSO, gso_segments=3, netns=CLIENT)
    record = one(begin, hop(RX, 200, gso_segments=1, netns=CLIENT))
    assert record["hops"][0]["changes"] == ["GSO 3 segments"]
    assert record["hops"][-1]["changes"] == ["GSO 3 → 1 segments"]


def test_the_kernel_says_that_a_packet_is_sent_again():
    again = hop(RETRANSMIT, 5 * MS, skb=99, bytes=40, netns=CLIENT, signature=0)
    again["tuple"] = 0
    record = one(*sent(protocol=TCP), hop(DROPPED, 300, protocol=TCP), again, drops=drop(300))
    assert [hop["hook"] for hop in record["hops"]][-2:] == ["kfree_skb", "tcp_retransmit_skb"]
    assert record["verdict"] == "dropped"
    assert "tcp.retransmission" not in record  # it is what is sent later that repeats
    assert "tunnel.packet" not in record
    assert "branch" not in record["hops"][-1]


def test_the_kernel_says_that_a_packet_was_a_retransmission():
    """It does so right after it has sent it."""
    again = hop(RETRANSMIT, 145, skb=99, bytes=40, netns=CLIENT, signature=0)
    again["tuple"] = 0
    record = one(*sent(protocol=TCP), again, *received(protocol=TCP))
    assert record["tcp.retransmission"] is True
    assert "tcp_retransmit_skb" not in [hop["hook"] for hop in record["hops"]]


def test_retransmission_by_sequence_numbers():
    def segment(packet, at, seq):
        return hop(QUEUE, at, packet, flags=FIRST, protocol=TCP, seq=seq, netns=NODE_NETNS)

    some = [segment(1, 100, 1000), segment(2, 200, 1060), segment(3, 300, 1000)]
    again = [record.get("tcp.retransmission", False) for record in taken(rows(*some))]
    assert again == [False, False, True]
    late = Assembler()  # complete later than one that was sent after it
    late.add(rows(some[1]), no_drops())
    late.take(0, everything=True)
    late.add(rows(some[0]), no_drops())
    assert not late.take(0, everything=True)[0].retransmitted


def test_a_route_of_a_packet_that_was_given_back_is_thrown_away():
    """The only hop that waits tells nothing of its packet: nothing to show, nothing to keep."""
    assembler = Assembler()
    assembler.add(rows(hop(ROUTE, 5)), no_drops())
    assert assembler.take(10) == []
    assert assembler.take(10_000_000_000) == []
    assert assembler._hops == []


def test_a_packet_that_is_read_late_is_no_second_one():
    """It was given back while it waited in its socket."""
    assembler = Assembler()
    assembler.add(rows(*sent(), hop(LEAVE, 300, nf=IN, netns=SERVER)), no_drops())
    assert len(assembler.take(300 + QUIET_NS + 1)) == 1
    assembler.add(rows(hop(COPIED, 5 * S, netns=SERVER), hop(CONSUMED, 5 * S + 1)), no_drops())
    assembler.add(hop(COPIED, 5 * S, packet=2, netns=SERVER), no_drops())
    (other,) = assembler.take(9 * S)
    assert other.rows["packet_id"].tolist() == [2]


def test_conntrack_of_a_masqueraded_packet_is_told_as_it_was_in_the_end():
    """DNAT is settled first: only after SNAT does the entry tell how answers look."""
    service, pod, gateway = ("10.96.0.10", 80), B, ("10.1.0.1", 999)
    entry = {"orig": (A, service), "info": 2}
    between = {"status": 0x20, "reply": (pod, A)} | entry
    settled = {"status": 0x30, "reply": (pod, gateway)} | entry
    record = one(
        *sent(goal=service),
        hop(ENTER, 200, nf=PRE, goal=service),
        hop(LEAVE, 210, nf=PRE, ct=between),
        hop(ENTER, 220, nf=POST, ct=between),
        hop(LEAVE, 230, nf=POST, source=gateway, ct=settled),
        hop(QUEUE, 240, source=gateway, ct=settled),
    )
    assert record["conntrack.reply.dst.address"] == gateway[0]
    assert record["conntrack.reply.dst.port"] == gateway[1]
