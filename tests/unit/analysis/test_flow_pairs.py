"""Connections: both directions in one record, each packet counted once."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
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

from tracer.analysis.connections import added, no_details
from tracer.analysis.drops import Context
from tracer.analysis.flow_aggregate import aggregate, grouping
from tracer.analysis.flow_both_ways import connection_tables
from tracer.analysis.flow_cache import FlowCache, Timeouts
from tracer.analysis.flow_columns import flow_table
from tracer.analysis.flow_pairs import here
from tracer.analysis.selection import PodSelection
from tracer.flow_table import concat, records
from tracer.model import Device, Node, Pod

FAR = "192.0.2.7"
UDP = 17
NODE = Node(
    "n1",
    1,
    pods={
        "a": Pod("a", "shop", "web-1", 7, addresses=(A,)),
        "b": Pod("b", "shop", "db-0", 8, addresses=(B,)),
    },
    pod_by_netns={7: "a", 8: "b"},
    pod_by_address={A: "a", B: "b"},
    devices={(9, 2): Device(9, 2, "eth0", addresses=("10.9.0.9",))},
)
ALL = PodSelection()
TO_SERVICE = entry_of((A, VIP, 4000, 80), (B, NODE_ADDRESS, 8080, 61000))
SIDES = (
    (7, OUT, A, VIP, 4000, 80),
    (8, IN, NODE_ADDRESS, B, 61000, 8080),
    (8, OUT, B, NODE_ADDRESS, 8080, 61000),
    (7, IN, VIP, A, 80, 4000),
)


def counts_of(*packets, **fields):
    """(n,) flow_count: each with 100 bytes a packet, one after another."""
    counts = np.zeros(len(packets), STRUCTS["flow_count"])
    counts["packets"], counts["bytes"] = packets, np.array(packets) * 100
    counts["first_ns"] = np.arange(1, len(packets) + 1) * 10
    counts["last_ns"] = counts["first_ns"] + 5
    for name, values in fields.items():
        counts[name] = values
    return counts


def told(keys, counts, *entries, selection=ALL, waiting=(), details=None):
    """Records of connections."""
    details = details or (details_of(*entries) if entries else no_details())
    own = here(NODE, selection, keys_of(*waiting))
    context = Context(NODE, {}, str, 0)
    return records(concat(list(connection_tables(keys, counts, context, details, own))))


def test_a_connection_through_a_service_is_one_record():
    keys = keys_of(*SIDES)
    counts = counts_of(7, 7, 5, 5, tcp_flags=(2, 2, 18, 18), resets=(0, 0, 1, 1))
    (record,) = told(keys, counts, TO_SERVICE)
    expected = {
        "direction": "egress", "netns": 7, "k8s.pod.name": "web-1",
        "src.address": A, "src.port": 4000, "dst.address": VIP, "dst.port": 80,
        "k8s.client.pod.name": "web-1", "k8s.backend.pod.name": "db-0",
        "service.address": VIP, "service.port": 80,
        "nat.src.address": NODE_ADDRESS, "nat.dst.address": B, "nat.dst.port": 8080,
        "conntrack.direction": "original",
        "packets": 7, "bytes": 700, "tcp.flags": "SYN",
        "flow.reverse.packets": 5, "flow.reverse.bytes": 500, "flow.reverse.tcp.flags": "SYN,ACK",
        "flow.reverse.tcp.resets": 1, "flow.both_here": True,
        "time": "1970-01-01T00:00:00.000000010Z", "end_time": "1970-01-01T00:00:00.000000045Z",
    }  # fmt: skip
    assert record.items() >= expected.items()
    assert "tcp.resets" not in record


@pytest.mark.parametrize("seen", [0, 3])
def test_what_was_not_seen_is_nothing(seen):
    """Whichever direction it is, the record's ends are those of the client and whom it asked."""
    keys = keys_of(SIDES[seen])
    (record,) = told(keys, counts_of(3, tcp_flags=16), TO_SERVICE)
    forward = seen == 0
    assert (record["src.address"], record["dst.address"]) == (A, VIP)
    assert (record["src.port"], record["direction"]) == (4000, "egress")
    assert (record["packets"], record["bytes"]) == ((3, 300) if forward else (0, 0))
    assert record["flow.reverse.packets"] == (0 if forward else 3)
    assert ("tcp.flags" in record, "flow.reverse.tcp.flags" in record) == (forward, not forward)
    assert record["conntrack.direction"] == "original"
    assert record["time"] == "1970-01-01T00:00:00.000000010Z"


def test_without_the_client_the_servers_end_counts():
    away = entry_of((FAR, NODE_ADDRESS, 4000, 30080), (B, FAR, 8080, 4000))
    keys = keys_of((8, IN, FAR, B, 4000, 8080), (8, OUT, B, FAR, 8080, 4000))
    (record,) = told(keys, counts_of(3, 2), away)
    assert (record["direction"], record["k8s.pod.name"]) == ("ingress", "db-0")
    assert (record["src.address"], record["dst.address"]) == (FAR, B)
    assert (record["service.address"], record["service.port"]) == (NODE_ADDRESS, 30080)
    assert (record["packets"], record["flow.reverse.packets"]) == (3, 2)
    assert "flow.both_here" not in record


def test_only_of_selected_pods_the_ends_count():
    """The client is a pod of the node, but nobody counts at its device."""
    (record,) = told(
        keys_of(*SIDES[1:3]), counts_of(3, 2), TO_SERVICE, selection=PodSelection(pods=("db-0",))
    )
    assert (record["direction"], record["packets"], record["flow.reverse.packets"]) == (
        "ingress", 3, 2,
    )  # fmt: skip


def test_a_client_whose_flows_wait_for_a_name_counts_later():
    new = "10.244.0.99"
    side = (8, IN, new, B, 4000, 80)
    assert told(keys_of(side), counts_of(3), waiting=[(77, OUT, new, B, 4000, 80)]) == []
    assert told(keys_of(side), counts_of(3), waiting=[(77, IN, B, new, 80, 4000)]) == []
    assert [r["packets"] for r in told(keys_of(side), counts_of(3))] == [3]


def test_namespaces_without_a_pod_count_too():
    keys = keys_of((9, OUT, "10.9.0.9", B, 4000, 80), (8, IN, "10.9.0.9", B, 4000, 80))
    assert [(r["netns"], r["packets"]) for r in told(keys, counts_of(3, 3))] == [(9, 3)]


def test_a_packet_between_two_intervals_counts_once():
    """The sender's end counted it before, and conntrack's entry came with the receiver's end."""
    first = told(keys_of(SIDES[0]), counts_of(1))
    second = told(keys_of(SIDES[1]), counts_of(1), TO_SERVICE)
    assert [r["packets"] for r in first + second] == [1]


def test_without_an_entry_the_higher_port_is_the_clients():
    keys = keys_of(
        (7, OUT, A, B, 80, 4000), (7, IN, B, A, 4000, 80),
        (8, IN, A, B, 80, 4000), (8, OUT, B, A, 4000, 80),
    )  # fmt: skip
    (record,) = told(keys, counts_of(2, 3, 2, 3))
    assert (record["src.address"], record["packets"], record["flow.reverse.packets"]) == (B, 3, 2)
    assert "conntrack.direction" not in record


def test_echoes_pair_with_their_answers_and_errors_with_nothing():
    ask, answer, unreachable = (8, 0, ICMP), (0, 0, ICMP), (3, 3, ICMP)
    keys = keys_of(
        (7, OUT, A, FAR, *ask), (7, IN, FAR, A, *answer),
        (7, IN, FAR, A, *ask), (7, OUT, A, FAR, *answer), (7, IN, FAR, A, *unreachable),
        (7, IN, NODE_ADDRESS, A, *answer),
    )  # fmt: skip
    found = {
        (r["src.address"], r["dst.address"], r["icmp.type"]): (
            r["packets"], r["flow.reverse.packets"], r["direction"],
        )
        for r in told(keys, counts_of(1, 2, 3, 4, 5, 6))
    }  # fmt: skip
    assert found == {
        (A, FAR, 8): (1, 2, "egress"),
        (FAR, A, 8): (3, 4, "ingress"),
        (FAR, A, 3): (5, 0, "ingress"),
        (A, NODE_ADDRESS, 8): (0, 6, "egress"),
    }


def test_what_has_no_addresses_stays_as_it_is():
    keys = keys_of((7, OUT, A, B, 0, 0), (7, IN, A, B, 0, 0))
    keys["tuple"] = np.zeros(1, keys["tuple"].dtype)
    keys["tuple"]["ethertype"] = 0x0806
    found = told(keys, counts_of(1, 2))
    assert [(r["direction"], r["packets"], r["flow.reverse.packets"]) for r in found] == [
        ("egress", 1, 0),
        ("ingress", 2, 0),
    ]


def test_a_group_address_is_never_the_client():
    keys = keys_of((7, OUT, A, "224.0.0.251", 5353, 5353, UDP))
    (record,) = told(keys, counts_of(3))
    assert (record["dst.address"], record["packets"]) == ("224.0.0.251", 3)


def test_what_only_the_other_end_knows_is_told():
    keys = keys_of(*SIDES)
    counts = counts_of(7, 7, 5, 5, retransmits=(1, 0, 2, 0), rtt_us=(30, 0, 40, 0))
    timed = transit_of(keys[[1, 3]], (5000, 4000, {10: 1, 11: 1}), (900, 900, {9: 1}))
    details = added(timed, details_of(TO_SERVICE))
    (record,) = told(keys, counts, details=details)
    assert (record["tcp.retransmits"], record["flow.reverse.tcp.retransmits"]) == (1, 2)
    assert (record["tcp.rtt_ns"], record["flow.reverse.tcp.rtt_ns"]) == (30_000, 40_000)
    assert (record["transit.sum_ns"], record["flow.reverse.transit.sum_ns"]) == (5000, 900)
    assert record["flow.reverse.transit.histogram"] == "512:1"
    # Of what the client's end saw nothing of, its packets wait to be counted there.
    (alone,) = told(keys[2:3], counts[2:3], TO_SERVICE)
    assert (alone["packets"], alone["flow.reverse.packets"]) == (0, 0)
    assert alone["flow.reverse.tcp.retransmits"] == 2


# Sums


def random_keys(rng, count):
    """Any flows, sensible or not: few addresses, ports and places, so that many belong together."""
    addresses = (A, B, VIP, "224.0.0.251")
    rows = {
        (
            int(rng.integers(7, 10)),
            int(rng.integers(1, 3)),
            *rng.choice(addresses, 2).tolist(),
            *rng.choice((0, 8, 80, 4000), 2).tolist(),
            int(rng.choice((ICMP, 6, UDP))),
        )
        for _ in range(count)
    }
    return keys_of(*sorted(rows))


@pytest.mark.parametrize("seed", range(20))
def test_where_no_end_is_left_out_all_flows_are_in_the_sums(seed):
    rng = np.random.default_rng(seed)
    keys = random_keys(rng, 600)
    counts = counts_of(*rng.integers(1, 1000, len(keys)).tolist())
    entries = [TO_SERVICE, entry_of((B, A, 80, 4000), (A, B, 4000, 80))]
    context, details = Context(NODE, {}, str, 0), details_of(*entries)
    nobody = here(NODE, PodSelection(pods=("none",)), keys[:0])
    whole = records(concat(list(connection_tables(keys, counts, context, details, nobody))))
    plain = records(flow_table(keys, counts, context, details))
    for name in ("packets", "bytes"):
        both = sum(r[name] + r[f"flow.reverse.{name}"] for r in whole)
        assert both == sum(r[name] for r in plain)
    assert len(whole) < len(plain)


HOSTS = {A: 7, B: 8, "10.9.0.9": 9, FAR: None}


def conversation(rng, port):
    """Packets there and back of one connection, and how each end and conntrack see it."""
    client, server = rng.choice([*HOSTS], 2, replace=False).tolist()
    there, back = rng.integers(0, 5, 2).tolist()
    through_service, masked = rng.random(2) < 0.5
    asked, answers = (VIP, 80) if through_service else (server, 8080), (server, 8080)
    seems = (NODE_ADDRESS, port + 1) if through_service and masked else (client, port)
    sides = []
    for host, ends in ((HOSTS[client], ((client, port), asked)), (HOSTS[server], (seems, answers))):
        if host is None:
            continue
        (one, one_port), (other, other_port) = ends
        at_client = ends[1] == asked and ends[0] == (client, port) and host == HOSTS[client]
        out = (host, OUT if at_client else IN, one, other, one_port, other_port)
        into = (host, IN if at_client else OUT, other, one, other_port, one_port)
        sides += [(out, there), (into, back)]
    entry = entry_of((client, asked[0], port, asked[1]), (server, seems[0], 8080, seems[1]))
    known = through_service or rng.random() < 0.5
    return sides, entry if known else None, (there, back)


@pytest.mark.parametrize("seed", range(20))
def test_each_packet_is_counted_once(seed):
    """Connections of pods, a namespace and the world; some through a Service, some without entry.

    Of a connection without an entry both ends see the same addresses.
    """
    rng = np.random.default_rng(seed)
    flows, entries, expected = [], [], Counter()
    for port in range(20000, 20400, 2):
        sides, entry, (there, back) = conversation(rng, port)
        flows += [(key, packets) for key, packets in sides if packets]
        entries += [entry] if entry is not None else []
        if sides:
            expected[port] += there + back
    order = rng.permutation(len(flows))
    keys = keys_of(*(flows[at][0] for at in order))
    found = Counter()
    for record in told(keys, counts_of(*(flows[at][1] for at in order)), *entries):
        port = record["client.port"] if "client.port" in record else record["src.port"]
        found[port] += record["packets"] + record["flow.reverse.packets"]
    assert found == +expected


def test_aggregates_sum_both_directions():
    keys = keys_of(
        (7, OUT, A, FAR, 4000, 80), (7, IN, FAR, A, 80, 4000), (7, OUT, A, FAR, 4001, 80)
    )
    context = Context(NODE, {}, str, 0)
    counts = counts_of(1, 2, 4, tcp_flags=(2, 18, 2))
    own = here(NODE, ALL, keys[:0])
    whole = concat(list(connection_tables(keys, counts, context, no_details(), own)))
    (record,) = records(aggregate(whole, grouping("pod")))
    assert (record["packets"], record["flow.reverse.packets"]) == (5, 2)
    assert record["flow.reverse.tcp.flags"] == "SYN,ACK"


def test_both_directions_wait_for_the_same_time():
    cache = FlowCache(Timeouts(active_s=1), 100, both_ways=True)
    keys = keys_of(*SIDES)
    counts = counts_of(1, 1, 1, 1, first_ns=(0, 10**9, 10**9, 10**9))
    due, _ = cache.due(keys, counts, 10**9 + 1)
    assert sorted(due["netns"].tolist()) == [7, 7]
    assert len(cache) == 2


def test_a_host_network_pod_has_no_end_of_its_own():
    pods = {"a": replace(NODE.pods["a"], host_network=True)}
    assert len(here(replace(NODE, pods=pods, devices={}), ALL, keys_of())) == 0
