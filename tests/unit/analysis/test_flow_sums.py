"""Flows summed by what they share, flows that wait for their timeouts, and what made a pod."""

import collections

import numpy as np
import pytest
from flow_tables import table_of

from tracer.analysis.flow_aggregate import GROUPS, aggregate, grouping
from tracer.analysis.flow_cache import FlowCache, Timeouts
from tracer.analysis.workload import workload
from tracer.errors import TracerError
from tracer.flow_table import (
    FlowTable,
    coded,
    concat,
    lost_table,
    powers_of,
    powers_text,
    records,
    take,
)
from tracer.layout import layout
from tracer.model import Pod

FLOW = {"type": "flow", "verdict": "forwarded", "direction": "egress", "k8s.pod.name": "web-0"}
ROWS = [
    {**FLOW, "time": 30, "end_time": 40, "packets": 3, "bytes": 300, "dst.port": 80,
     "tcp.flags": "SYN,ACK", "k8s.dst.pod.name": "db-0"},
    {**FLOW, "time": 10, "end_time": 90, "packets": 4, "bytes": 400, "dst.port": 81,
     "tcp.flags": "FIN,ACK", "k8s.dst.pod.name": "db-0"},
    {**FLOW, "time": 20, "end_time": 20, "packets": 5, "bytes": 500, "dst.port": 80},
    {**FLOW, "verdict": "dropped", "time": 20, "end_time": 20, "packets": 6, "bytes": 600},
]  # fmt: skip


def test_flows_of_the_same_pods_become_one():
    summed = records(aggregate(table_of(*ROWS), grouping("pod")))
    assert [row["packets"] for row in summed] == [7, 5, 6]
    assert [row["bytes"] for row in summed] == [700, 500, 600]
    assert summed[0]["tcp.flags"] == "FIN,SYN,ACK"
    assert (summed[0]["time"], summed[0]["end_time"]) == (
        "1970-01-01T00:00:00.000000010Z",
        "1970-01-01T00:00:00.000000090Z",
    )
    assert summed[0]["k8s.dst.pod.name"] == "db-0"
    assert "dst.port" not in summed[0]
    assert "tcp.flags" not in summed[1]


def test_any_fields_can_be_summed_by():
    summed = records(aggregate(table_of(*ROWS), grouping("dst.port,k8s.pod")))
    assert [(row.get("dst.port"), row["packets"]) for row in summed] == [
        (80, 8),
        (81, 4),
        (None, 6),
    ]


def test_round_trips_are_means_and_ways_across_the_node_are_added_up():
    rows = [
        {**FLOW, "packets": 1, "tcp.rtt_ns": 1000, "tcp.handshake_ns": 10, "transit.count": 3,
         "transit.sum_ns": 9000, "transit.max_ns": 5000, "transit.histogram": "2048:2,4096:1"},
        {**FLOW, "packets": 9, "tcp.rtt_ns": 3000, "tcp.handshake_ns": 30, "transit.count": 6,
         "transit.sum_ns": 90_000, "transit.max_ns": 40_000,
         "transit.histogram": "4096:1,8192:4,32768:1"},
        {**FLOW, "packets": 1000},
        {**FLOW, "packets": 1, "k8s.pod.name": "web-1"},
        {**FLOW, "packets": 0, "k8s.pod.name": "web-2", "tcp.rtt_ns": 7000},
    ]  # fmt: skip
    times = {"time": 1, "end_time": 2}
    one, other, silent = records(
        aggregate(table_of(*({**times, **row} for row in rows)), grouping("pod"))
    )
    assert (one["packets"], one["tcp.rtt_ns"], one["tcp.handshake_ns"]) == (1010, 2800, 20)
    assert (one["transit.count"], one["transit.sum_ns"], one["transit.max_ns"]) == (
        9,
        99_000,
        40_000,
    )
    assert one["transit.histogram"] == "2048:2,4096:2,8192:4,32768:1"
    assert not [name for name in other if name.startswith(("tcp.", "transit."))]
    assert (silent["tcp.rtt_ns"], silent["packets"]) == (7000, 0)


def test_round_trips_of_both_directions_weigh_by_their_own_packets():
    back = "flow.reverse."
    rows = [
        {**FLOW, "time": 1, "end_time": 2, "packets": there, f"{back}packets": again,
         "tcp.rtt_ns": 1000 * there, f"{back}tcp.rtt_ns": 1000 * again,
         f"{back}transit.max_ns": again, f"{back}transit.histogram": f"{again}:1"}
        for there, again in ((1, 8), (3, 2))
    ]  # fmt: skip
    (summed,) = records(aggregate(table_of(*rows), grouping("workload")))
    assert (summed["tcp.rtt_ns"], summed[f"{back}tcp.rtt_ns"]) == (2500, 6800)
    assert (summed[f"{back}transit.max_ns"], summed[f"{back}transit.histogram"]) == (8, "2:1,8:1")


def test_what_no_record_tells_is_missing_in_sums():
    """Also where a filter left only records without it."""
    rows = [{**FLOW, "time": 1, "end_time": 2, "packets": 1, "dst.port": port} for port in (1, 2)]
    told = {"tcp.rtt_ns": 5, "transit.max_ns": 5, "transit.histogram": "1024:1"}
    whole = table_of(rows[0], {**rows[1], **told})
    (summed,) = records(aggregate(take(whole, slice(0, 1)), grouping("pod")))
    assert not told.keys() & summed.keys()
    nothing = {**whole.columns, "transit.histogram": coded(["", ""])}
    (summed,) = records(aggregate(FlowTable(2, nothing), grouping("pod")))
    assert "transit.histogram" not in summed


def test_sums_of_many_random_histograms_and_round_trips():
    """The same by a loop."""
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(700):
        row = {**FLOW, "time": 1, "end_time": 2, "k8s.pod.name": f"p{rng.integers(9)}",
               "packets": int(rng.integers(1, 1 << 40))}  # fmt: skip
        if rng.random() < 0.6:
            row["tcp.rtt_ns"] = int(rng.integers(1, 1 << 33))
            row["transit.histogram"] = powers_text(
                (1 << power, int(rng.integers(0, 1 << 40))) for power in range(10, 40)
            )
        rows.append(row)
    for summed in records(aggregate(table_of(*rows), grouping("pod"))):
        mine = [row for row in rows if row["k8s.pod.name"] == summed["k8s.pod.name"]]
        told = [row for row in mine if "tcp.rtt_ns" in row]
        weighed = sum(row["tcp.rtt_ns"] * row["packets"] for row in told)
        assert summed["tcp.rtt_ns"] == pytest.approx(weighed / sum(r["packets"] for r in told))
        counts = collections.Counter()
        for row in told:
            counts.update(powers_of(row["transit.histogram"]))
        assert powers_of(summed["transit.histogram"]) == counts


def test_losses_are_summed_by_source():
    lost = [lost_table(source, 2, "n1", 5) for source in ("a", "b", "a")]
    summed = records(aggregate(concat([table_of(*ROWS), *lost]), grouping("pod")))
    told = {row["source"]: row["count"] for row in summed if row["type"] == "lost"}
    assert told == {"a": 4, "b": 2}
    assert sum(row.get("packets", 0) for row in summed) == 18


def test_random_tables_keep_their_totals():
    rng = np.random.default_rng(2)
    rows = [
        {**FLOW, "k8s.pod.name": f"p{rng.integers(9)}", "k8s.src.owner.name": f"o{rng.integers(3)}",
         "time": int(rng.integers(99)), "end_time": 100, "packets": int(rng.integers(50)),
         "bytes": 1}
        for _ in range(500)
    ]  # fmt: skip
    for by in GROUPS:
        summed = aggregate(table_of(*rows), grouping(by))
        assert int(summed.columns["packets"].values.sum()) == sum(row["packets"] for row in rows)
        assert int(summed.columns["bytes"].values.sum()) == 500
        keys = [tuple(row.get(name) for name in grouping(by)) for row in records(summed)]
        assert len(keys) == len(set(keys)) < 500


def test_what_cannot_be_summed_by_is_told():
    with pytest.raises(TracerError, match="--aggregate 'pods': no such field"):
        grouping("pods")
    for text in ("packets", "time,end_time", "flow.reverse.bytes", "tcp.rtt_ns", "transit"):
        with pytest.raises(TracerError, match="a sum, nothing to sum by"):
            grouping(text)
    assert grouping("bytes,dscp")[-1] == "dscp"


def counted(*flows):
    """(number, first_s, last_s) each."""
    structs = layout().structs
    keys, counts = (
        np.zeros(len(flows), structs["flow_key"]),
        np.zeros(len(flows), structs["flow_count"]),
    )
    keys["ifindex"] = [flow[0] for flow in flows]
    counts["packets"] = 1
    counts["first_ns"] = [flow[1] * 10**9 for flow in flows]
    counts["last_ns"] = [flow[2] * 10**9 for flow in flows]
    return keys, counts


def told(cache, now_s, *flows, **options):
    keys, counts = cache.due(*counted(*flows), now_s * 10**9, **options)
    return dict(zip(keys["ifindex"].tolist(), counts["packets"].tolist(), strict=True))


def test_without_timeouts_flows_are_told_at_once():
    assert told(FlowCache(Timeouts(), 10), 5, (1, 1, 2), (1, 3, 4)) == {1: 1}
    keys, _ = FlowCache(Timeouts(), 10).due(*counted((1, 1, 2), (1, 3, 4)), 5)
    assert len(keys) == 2


def test_a_flow_that_goes_on_is_told_by_the_active_timeout():
    cache = FlowCache(Timeouts(active_s=30), 10)
    assert told(cache, 10, (1, 5, 10), (2, 9, 10)) == {}
    assert told(cache, 34, (1, 20, 34)) == {}
    assert told(cache, 36, (1, 35, 36)) == {1: 3}
    assert told(cache, 60, (1, 50, 60)) == {2: 1}
    assert told(cache, 61, everything=True) == {1: 1}
    assert told(cache, 99) == {}


def test_a_flow_that_ended_is_told_by_the_inactive_timeout():
    cache = FlowCache(Timeouts(active_s=1000, inactive_s=15), 10)
    assert told(cache, 10, (1, 5, 10), (2, 5, 6)) == {}
    assert told(cache, 22, (1, 20, 21)) == {2: 1}
    assert told(cache, 36) == {1: 2}


def test_more_than_may_wait_is_told():
    cache = FlowCache(Timeouts(inactive_s=15), 2)
    assert told(cache, 10, (1, 9, 9), (2, 9, 9)) == {}
    assert told(cache, 11, (3, 9, 9)) == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("name", "labels", "made_by"),
    [
        ("web-7d4b9c6f5d-x2x4z", {"pod-template-hash": "7d4b9c6f5d"}, ("Deployment", "web")),
        ("a-b-7d4b9c6f5d-x2x4z", {"pod-template-hash": "7d4b9c6f5d"}, ("Deployment", "a-b")),
        ("db-11", {"statefulset.kubernetes.io/pod-name": "db-11", "controller-revision-hash": "x"},
         ("StatefulSet", "db")),
        ("proxy-x2x4z", {"controller-revision-hash": "6f9"}, ("DaemonSet", "proxy")),
        ("backup-28123-abcde", {"job-name": "backup-28123"}, ("Job", "backup-28123")),
        ("web-0", {"app": "web"}, None),
        ("odd", {"pod-template-hash": "7d4b9c6f5d"}, None),
    ],
)  # fmt: skip
def test_what_made_a_pod_is_in_its_labels(name, labels, made_by):
    found = workload(Pod("u", "shop", name, labels=labels))
    assert (found and (found.kind, found.name)) == made_by
