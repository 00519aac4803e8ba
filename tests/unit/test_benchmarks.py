"""The overhead harness: its figures, and that a missed bar is told."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import figures
import iperf
import overhead_report
import traffic
from overhead import Direct, Samples
from traffic import Reading


def reading(speed, *, p99_ns=0, node_cpu_ns=1000.0):
    return Reading(speed, p99_ns, node_cpu_ns)


def samples(speed, *, direct_ns=None):
    made = Samples({kind: [reading(speed)] * 5 for kind in traffic.MAIN}, [1.0], 60_000_000, 0.1)
    if direct_ns is not None:
        made.direct = {mode: Direct(2.0, direct_ns) for mode in ("udp", "udp-rr")}
    return made


def test_the_interval_holds_the_median_and_is_repeatable():
    values = [float(value) for value in range(100)]
    one = figures.estimate(values)
    assert one == figures.estimate(values)
    assert one.median == 49.5
    assert 30 < one.low < 49.5 < one.high < 70


def test_an_outlier_does_not_move_the_estimate():
    assert figures.estimate([1.0] * 14 + [1000.0]) == figures.Estimate(1.0, 1.0, 1.0)


def test_slower_is_formed_round_by_round():
    off, tool = samples(1), samples(1)
    off.readings["udp"] = [reading(speed) for speed in (100.0, 200.0, 400.0)]
    tool.readings["udp"] = [reading(speed) for speed in (90.0, 180.0, 360.0)]
    assert overhead_report.ratios("slower_percent", "udp", tool, off).median == pytest.approx(10)


def test_a_round_trip_and_the_node_are_compared_where_they_were_measured():
    off, tool = samples(1), samples(1)
    off.readings["udp-rr"] = [reading(1, p99_ns=1000, node_cpu_ns=100.0)] * 3
    tool.readings["udp-rr"] = [reading(1, p99_ns=1500, node_cpu_ns=120.0)] * 3
    found = overhead_report.report({"off": off, "flows": tool}, None)["tools"]["flows"]
    assert found["p99_percent"]["udp-rr"]["median"] == pytest.approx(50)
    assert found["node_cpu_percent"]["udp-rr"]["median"] == pytest.approx(20)
    assert "udp" not in found["p99_percent"]


def test_the_best_burst_is_the_speed_and_what_all_used_is_shared_out(monkeypatch):
    busy_ns = iter((5e9, 8e9))
    monkeypatch.setattr(traffic, "_busy_ns", lambda: next(busy_ns))
    bursts = [traffic.Blast(1000, 64_000, 2_000_000, 90), traffic.Blast(2000, 128_000, 2_000_000)]
    packets = next(kind for kind in traffic.KINDS if kind.name == "udp")
    assert traffic.read(packets, lambda: bursts) == Reading(1e6, 0, 1e6)


def test_iperf_tells_datagrams_or_bytes():
    udp = {"sum": {"packets": 100, "lost_packets": 40, "bytes": 6400, "seconds": 2.0}}
    assert iperf.moved(udp).units_per_s == 50
    tcp = {"sum_received": {"bytes": 5000, "seconds": 0.5}}
    assert iperf.moved(tcp).bytes_per_s == 10_000


def test_what_is_within_the_bars_passes():
    off = samples(1e6)
    result = overhead_report.report({"off": off, "flows": samples(0.98e6, direct_ns=20)}, 30.0)
    assert result["baseline"]["udp"]["ns_per_unit"] == 1000
    assert result["tools"]["flows"]["direct"]["udp"]["percent_of_baseline"] == 2
    assert result["tools"]["flows"]["direct"]["udp"]["ns_per_run"] == 10
    assert overhead_report.judge(result) == []
    assert "| flows | 2.0 [2.0, 2.0] |" in overhead_report.tables(result)


def test_each_missed_bar_is_told():
    slow = samples(0.9e6, direct_ns=200)
    slow.rss_bytes, slow.idle_cpu_percent = 130_000_000, 0.7
    missed = overhead_report.judge(overhead_report.report({"off": samples(1e6), "flows": slow}, 30))
    assert missed == [
        "flows: slower_percent of udp 10.00 is over 5",
        "flows: slower_percent of udp-two 10.00 is over 3",
        "flows: percent_of_baseline of udp 20.00 is over 5",
        "flows: ns_per_run of udp 100.00 is over 90",
        "flows: rss_mb 130.00 is over 120",
        "flows: idle_cpu_percent 0.70 is over 0.5",
    ]


def test_what_was_not_measured_misses_no_bar():
    found = Samples({"churn": [reading(1.0)]}, [1.0])
    result = overhead_report.report({"off": found, "flows": found}, None)
    assert overhead_report.judge(result) == []
    assert "| flows | – | – | – | 1.0 | – | 0 |" in overhead_report.tables(result)
