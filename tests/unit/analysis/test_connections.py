"""Flows that are one connection find each other, and what the kernel told of it."""

import numpy as np
from connection_rows import (
    ICMP,
    IN,
    NODE_ADDRESS,
    OUT,
    STRUCTS,
    VIP,
    A,
    B,
    details_of,
    entry_of,
    keys_of,
    transit_of,
)

from tracer.analysis.connections import added, handshakes_ns, link, wanted_by
from tracer.analysis.drops import Context
from tracer.analysis.flow_columns import drop_table, flow_table
from tracer.flow_table import records
from tracer.model import Node, Pod


def linked(keys, details):
    return link(keys, np.zeros(len(keys), np.uint64), details)


TO_SERVICE = entry_of((A, VIP, 4000, 80), (B, NODE_ADDRESS, 8080, 61000), zone=3, mark=9, status=2)
ALL_SIDES = (
    (7, OUT, A, VIP, 4000, 80),
    (8, IN, NODE_ADDRESS, B, 61000, 8080),
    (8, OUT, B, NODE_ADDRESS, 8080, 61000),
    (7, IN, VIP, A, 80, 4000),
)


def test_an_entry_is_found_from_all_four_sides():
    other = keys_of(
        (7, OUT, A, VIP, 4001, 80), (8, OUT, A, VIP, 80, 4000), (7, 0, A, VIP, 4000, 80)
    )
    keys = np.concatenate((keys_of(*ALL_SIDES), other))
    found = linked(keys, details_of(TO_SERVICE))
    assert found.entry.tolist() == [0, 0, 0, 0, -1, -1, -1]
    assert found.reply.tolist()[:4] == [False, False, True, True]
    assert len(set(found.flow_id.tolist()[:4])) == 1


def test_numbers_differ_and_stay():
    """Files of other nodes and of other days are joined by them."""
    answers = (B, A, 80, 4000)
    entries = [
        entry_of((A, B, 4000, 80), answers),
        entry_of((A, B, 4001, 80), (B, A, 80, 4001)),
        entry_of((A, B, 4000, 80, 17), (*answers, 17)),
        entry_of((B, A, 4000, 80), (A, B, 80, 4000)),
        entry_of((A, B, 4002, 80), (B, A, 80, 4002), zone=1),
    ]
    keys = keys_of(
        (7, OUT, A, B, 4000, 80),
        (7, OUT, A, B, 4001, 80),
        (7, OUT, A, B, 4000, 80, 17),
        (7, OUT, B, A, 4000, 80),
        (7, OUT, A, B, 4002, 80),
        (7, OUT, A, B, 4003, 80),
    )
    numbers = linked(keys, details_of(*entries)).flow_id
    assert numbers.tolist() == [
        1496778736095929, 4618442675379135, 1691787963587891, 5937452761035123, 4840589323928201, 0,
    ]  # fmt: skip
    assert max(numbers) < 1 << 53


def test_echoes_are_one_connection():
    asked, told = (A, VIP, 8, 0, ICMP), (B, A, 0, 0, ICMP)
    keys = keys_of((7, OUT, *asked), (8, IN, A, B, 8, 0, ICMP), (8, OUT, *told))
    found = linked(keys, details_of(entry_of(asked, told)))
    assert found.entry.tolist() == [0, 0, 0]
    assert found.reply.tolist() == [False, False, True]


def test_the_newest_entry_wins_and_only_those_of_waiting_flows_stay():
    before = entry_of((A, VIP, 4000, 80), (B, NODE_ADDRESS, 8080, 61000), mark=1)
    other = entry_of((A, VIP, 4001, 80), (B, NODE_ADDRESS, 8080, 61001))
    both = added(details_of(before, other), details_of(TO_SERVICE))
    keys = keys_of(ALL_SIDES[1])
    assert both.entries["mark"][linked(keys, both).entry].tolist() == [9]
    assert wanted_by(both, keys).entries["mark"].tolist() == [9]
    assert len(wanted_by(both, keys_of()).entries) == 0


def test_transits_are_summed_by_flow_and_place():
    keys = keys_of((8, IN, A, B, 1, 2), (9, IN, A, B, 1, 2), (8, IN, A, B, 1, 3))
    told = transit_of(keys[[0, 0, 1]], (3000, 2000, {10: 2}), (5000, 5000, {12: 1}), (1, 1, {0: 1}))
    found = linked(keys, told)
    assert found.transit.tolist() == [0, 1, -1]
    assert found.transits["sum_ns"].tolist() == [8000, 1]
    assert found.transits["max_ns"].tolist() == [5000, 1]
    assert wanted_by(told, keys[2:]).transits.tolist() == []
    waiting = wanted_by(told, keys[:1])
    assert linked(keys, waiting).transits.tobytes() == found.transits.tobytes()
    assert len(waiting.transits) == 2


def test_all_of_it_is_in_the_records():
    pods = {
        "a": Pod("a", "shop", "web-1", 7, addresses=(A,)),
        "b": Pod("b", "shop", "db-0", 8, addresses=(B,)),
    }
    by_address = {A: "a", B: "b"}
    node = Node("n1", 1, pods=pods, pod_by_netns={7: "a", 8: "b"}, pod_by_address=by_address)
    keys = np.concatenate((keys_of(*ALL_SIDES), keys_of((7, OUT, A, B, 1, 2, 17))))
    counts = np.zeros(len(keys), STRUCTS["flow_count"])
    counts["packets"], counts["first_ns"] = 1, range(1, 6)
    TO_SERVICE["tcp_state"] = 3
    told = transit_of(keys[1:2], (5000, 4000, {10: 1, 11: 1}))
    told = added(told, details_of(TO_SERVICE))
    *tracked, plain = records(flow_table(keys, counts, Context(node, {}, str, 0), told))
    expected = {
        "k8s.client.pod.name": "web-1", "k8s.backend.pod.name": "db-0",
        "client.address": A, "client.port": 4000, "service.address": VIP, "service.port": 80,
        "nat.src.address": NODE_ADDRESS, "nat.src.port": 61000,
        "nat.dst.address": B, "nat.dst.port": 8080,
        "conntrack.state": "established", "conntrack.tcp.state": "ESTABLISHED",
        "conntrack.zone": 3, "conntrack.mark": 9,
    }  # fmt: skip
    for record in tracked:
        assert record.items() >= expected.items()
    assert [r["conntrack.direction"] for r in tracked] == ["original"] * 2 + ["reply"] * 2
    assert (tracked[1]["transit.count"], tracked[1]["transit.histogram"]) == (2, "1024:1,2048:1")
    begins = ("conntrack", "nat", "client", "k8s.client", "k8s.backend", "service", "transit")
    assert not [name for name in plain if name.startswith(begins)]


def test_syn_and_its_answer_are_a_handshake_at_each_device():
    keys = keys_of(
        (7, OUT, A, B, 4000, 80),
        (7, IN, B, A, 80, 4000),
        (8, IN, A, B, 4000, 80),
        (8, OUT, B, A, 80, 4000),
        (7, OUT, A, B, 4001, 80),
        (7, IN, B, A, 81, 4001),
        (7, OUT, A, B, 4002, 80),
        (7, IN, B, A, 80, 4002),
    )
    syn_ns = np.array([100, 150, 110, 130, 200, 210, 300, 0], np.uint64)
    assert handshakes_ns(keys, syn_ns).tolist() == [50, 50, 20, 20, 0, 0, 0, 0]


def test_many_connections_keep_theirs():
    rng = np.random.default_rng(5)
    ports = rng.permutation(60000)[:2000].tolist()
    there = keys_of(*((7, OUT, A, B, port, 80) for port in ports))
    back = keys_of(*((7, IN, B, A, 80, port) for port in ports))
    keys = np.concatenate((there, back))
    begin = rng.integers(1, 10**9, 2000).astype(np.uint64)
    syn_ns = np.concatenate((begin, begin + np.arange(1, 2001, dtype=np.uint64)))
    mixed = rng.permutation(len(keys))
    found = np.empty(len(keys), np.uint64)
    found[mixed] = handshakes_ns(keys[mixed], syn_ns[mixed])
    assert found.tolist() == [*range(1, 2001)] * 2


def test_no_connection_opened_is_no_handshake():
    assert handshakes_ns(keys_of((7, OUT, A, B, 1, 2)), np.zeros(1, np.uint64)).tolist() == [0]
    assert len(handshakes_ns(keys_of(), np.zeros(0, np.uint64))) == 0


def test_what_died_has_the_number_of_its_flow():
    """Before NAT in the node's namespace, after it in a pod's; both directions; not the unknown."""
    places = (
        (1, 0, A, VIP, 4000, 80),  # on the node, as the client wrote it
        (1, OUT, B, NODE_ADDRESS, 8080, 61000),  # the answer, as the server wrote it
        (8, IN, NODE_ADDRESS, B, 61000, 8080),  # in the server's namespace
        (7, IN, VIP, A, 80, 4000),  # the answer in the client's
        (8, IN, A, VIP, 4000, 80),  # never looks so there
        (1, 0, A, VIP, 4001, 80),
    )
    keys = np.zeros(len(places), STRUCTS["flow_drop_key"])
    keys["flow"] = keys_of(*places)
    counts = np.ones((len(places), 1), STRUCTS["drop_count"])
    pods = {
        "a": Pod("a", "shop", "a", 7, addresses=(A,)),
        "b": Pod("b", "shop", "b", 8, addresses=(B,)),
    }
    node = Node("n", 1, pods, pod_by_netns={7: "a", 8: "b"}, pod_by_address={A: "a", B: "b"})
    context = Context(node, {}, str, 0)
    told = records(drop_table(keys, counts, context, (1, 2), TO_SERVICE))
    (number,) = set(linked(keys_of(*ALL_SIDES), details_of(TO_SERVICE)).flow_id.tolist())
    assert [one.get("flow.id") for one in told] == [*[number] * 4, None, None]
    ways = [one.get("conntrack.direction") for one in told]
    assert ways == ["original", "reply", "original", "reply", None, None]
    assert [one.get("conntrack.zone") for one in told] == [3, 3, 3, 3, None, None]
    for one in told[:4]:
        ends = one["k8s.client.pod.name"], one["k8s.backend.pod.name"], one["nat.dst.address"]
        assert ends == ("a", "b", B)
