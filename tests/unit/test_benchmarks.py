"""The overhead harness: its figures, and that a missed bar is told."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import figures
import overhead
from overhead import Direct, Samples


def samples(speed, *, direct_ns=None):
    made = Samples({mode: [speed] * 5 for mode in overhead.MODES}, [1.0], 60_000_000, 0.1)
    if direct_ns is not None:
        made.direct = {mode: Direct(4.0, direct_ns) for mode in overhead.MODES[:2]}
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
    off, tool = samples(0), samples(0)
    off.speeds["udp"], tool.speeds["udp"] = [100.0, 200.0, 400.0], [90.0, 180.0, 360.0]
    assert overhead.slower_percent(tool, off, "udp").median == pytest.approx(10)


def test_what_is_within_the_bars_passes():
    off = samples(1e6)
    result = overhead.report({"off": off, "flows": samples(0.97e6, direct_ns=20)}, 30.0)
    assert result["baseline_ns_per_packet"]["udp"] == 1000
    assert result["tools"]["flows"]["direct"]["udp"]["percent_of_baseline"] == 2
    assert overhead.judge(result) == []
    assert "| flows | 3.0 [3.0, 3.0] |" in overhead.table(result)


def test_each_missed_bar_is_told():
    slow = samples(0.9e6, direct_ns=80)
    slow.rss_bytes, slow.idle_cpu_percent = 130_000_000, 0.7
    missed = overhead.judge(overhead.report({"off": samples(1e6), "flows": slow}, 30.0))
    assert missed == [
        "flows: slower_percent 10.00 is over 5",
        "flows: direct_percent 8.00 is over 5",
        "flows: rss_mb 130.00 is over 120",
        "flows: idle_cpu_percent 0.70 is over 0.5",
    ]
