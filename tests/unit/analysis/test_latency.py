"""Latencies by flow and step."""

import numpy as np
import pytest

from tracer.analysis.latency import BUCKETS, MAX_BITS, Latency, bucket_of, lower_bounds

WHERE = {"netns.name": "node", "interface.name": "eth0"}


def packet(delta_ns, flow="a → b UDP", duration_ns=0):
    return {
        "type": "packet", "flow": flow, "network.community_id": "1:x", "verdict": "delivered",
        "duration_ns": delta_ns + duration_ns,
        "hops": [
            {"hook": "nf ip OUTPUT", "duration_ns": duration_ns, **WHERE},
            {"hook": "net_dev_queue", "delta_ns": delta_ns, **WHERE},
        ],
    }  # fmt: skip


def row(latency, kind, flow="a → b UDP"):
    rows = [r for r in latency.records() if r.get("latency.of") == kind and r["flow"] == flow]
    assert len(rows) == 1
    return rows[0]


def test_buckets_have_no_gap_and_tell_one_sixteenth_apart():
    bounds = lower_bounds()
    assert len(bounds) == BUCKETS + 1
    assert bounds[-1] == 1 << MAX_BITS
    assert (np.diff(bounds) > 0).all()
    assert (bucket_of(bounds[:-1]) == np.arange(BUCKETS)).all()
    assert (bucket_of(bounds[1:] - 1) == np.arange(BUCKETS)).all()
    wide = bounds[16:]
    assert (np.diff(wide) <= wide[:-1] / 8).all()
    assert bucket_of(np.array([1 << 60])) == BUCKETS - 1


def test_percentiles_against_numpy():
    values = np.random.default_rng(3).lognormal(10, 2, 5000).astype(int)
    latency = Latency()
    for part in np.array_split(values, 7):
        latency.add([packet(int(value)) for value in part])
    step = row(latency, "step")
    assert step["packets"] == sum(step["histogram"].values()) == 5000
    for name, share in (("p50_ns", 50), ("p90_ns", 90), ("p99_ns", 99)):
        exact = np.percentile(values, share, method="inverted_cdf")
        assert step[name] == pytest.approx(exact, rel=1 / 16, abs=1)
    assert step["max_ns"] == values.max()
    power = 1 << int(values.max()).bit_length() - 1
    assert step["histogram"][str(power)] == (values >= power).sum()


def test_the_way_the_hook_and_the_step():
    latency = Latency()
    latency.add([packet(100, duration_ns=7), {"type": "end"}])
    assert row(latency, "hook")["max_ns"] == 7
    assert row(latency, "way")["max_ns"] == 107
    assert row(latency, "way")["latency.to"] == "delivered in node"
    step = row(latency, "step")
    assert (step["latency.from"], step["latency.to"]) == (
        "nf ip OUTPUT eth0 in node", "net_dev_queue eth0 in node",
    )  # fmt: skip
    assert step["network.community_id"] == "1:x"
    assert next(iter(latency.records()))["latency.of"] == "way"


def test_what_finds_no_room_is_counted_together():
    latency = Latency(max_steps=4)
    latency.add([packet(100, "first"), packet(200, "second"), packet(300, "third")])
    *known, other = latency.records()
    assert {record["flow"] for record in known} == {"first"}
    assert other["flow.other"] is True
    assert "flow" not in other
    assert sum(record["packets"] for record in (*known, other)) == 9


def test_branches_are_measured_along_themselves():
    hops = [
        {"hook": "a", "branch": 0, **WHERE},
        {"hook": "b", "branch": 0, "delta_ns": 1, **WHERE},
        {"hook": "c", "branch": 1, "after": 0, "delta_ns": 2, **WHERE},
        {"hook": "d", "branch": 0, "delta_ns": 3, **WHERE},
    ]
    latency = Latency()
    latency.add([{**packet(1), "hops": hops}])
    steps = {
        (r["latency.from"][0], r["latency.to"][0]): r["max_ns"]
        for r in latency.records()
        if r["latency.of"] == "step"
    }
    assert steps == {("a", "b"): 1, ("a", "c"): 2, ("b", "d"): 3}


def test_nothing_added_nothing_told():
    assert Latency().records() == []
