"""Sampling in bursts: how often, how long, at which rate, and what is not known of packets then."""

from __future__ import annotations

import pytest

from tracer.analysis.bursts import (
    EDGE_NS,
    GRACE_NS,
    LEAST_SAMPLE,
    OPEN_NS,
    SHARE,
    Burst,
    Schedule,
    cut_by,
)

MS = 1_000_000
S = 1000 * MS
ATTACH_NS, DETACH_NS = 8 * MS, 3 * MS


def looked(schedule, now_ns, attach_ns=ATTACH_NS, received=0):
    """A burst that begins now and goes as planned."""
    rate, chosen_ns = schedule.plan()
    opened = now_ns + attach_ns
    closed = opened + chosen_ns
    burst = Burst(rate, now_ns, opened, closed, closed + GRACE_NS + DETACH_NS, received)
    schedule.note(burst)
    return burst


def run(schedule, seconds):
    """Bursts, each when it is due."""
    schedule.begin(5 * S)
    bursts = []
    while schedule.due_ns < (5 + seconds) * S:
        bursts.append(looked(schedule, schedule.due_ns))
    return bursts


@pytest.mark.parametrize("sample", [LEAST_SAMPLE, 77, 100, 1000, 100_000])
def test_one_of_so_many_by_time_and_hooks_are_seldom_attached(sample):
    bursts = run(Schedule(sample), seconds=600)
    chosen_ns = sum((one.closed_ns - one.open_ns) / one.rate for one in bursts)
    elapsed_ns = bursts[-1].begin_ns - bursts[0].begin_ns
    assert chosen_ns * sample == pytest.approx(elapsed_ns, rel=0.02)
    attached_ns = sum(one.end_ns - one.begin_ns for one in bursts)
    assert attached_ns * SHARE == pytest.approx(elapsed_ns, rel=0.05)
    assert min(one.closed_ns - one.open_ns for one in bursts) >= OPEN_NS


def test_the_rarer_the_sample_the_fewer_of_a_burst():
    rates = [run(Schedule(sample), seconds=60)[-1].rate for sample in (50, 1000, 100_000)]
    assert rates == sorted(rates)
    assert rates[0] == 1
    assert rates[1] > 1


def test_what_was_missed_is_not_made_good():
    schedule = Schedule(100)
    run(schedule, seconds=5)
    late_ns = schedule.due_ns + 30 * S
    looked(schedule, late_ns)
    assert schedule.due_ns > late_ns + S // 10


def test_a_little_late_is_made_good():
    schedule = Schedule(100)
    run(schedule, seconds=5)
    due_ns = schedule.due_ns
    rate, chosen_ns = schedule.plan()
    looked(schedule, due_ns + 20 * MS)
    assert schedule.due_ns == pytest.approx(due_ns + 100 * chosen_ns / rate, abs=2)


def test_one_slow_burst_changes_nothing():
    schedule = Schedule(100)
    run(schedule, seconds=5)
    planned = schedule.plan()
    looked(schedule, schedule.due_ns, attach_ns=400 * MS)
    assert schedule.plan() == planned


def test_time_without_bursts_is_not_sampled_later():
    schedule = Schedule(100)
    run(schedule, seconds=5)
    schedule.begin(100 * S)
    assert schedule.due_ns == pytest.approx(100 * S, abs=2)


def test_the_rate_by_what_was_received():
    schedule = Schedule(100)
    assert schedule.rate is None
    burst = looked(schedule, 5 * S, received=50)
    schedule.received += 9_000
    assert schedule.rate == 9_000 * burst.rate / 50


BURST = Burst(1, 10 * MS, 20 * MS, 30 * MS, 40 * MS, 0)
LATER = Burst(1, 510 * MS, 520 * MS, 530 * MS, 540 * MS, 0)


@pytest.mark.parametrize(
    ("begin_ns", "end_ns", "sent", "ended", "words"),
    [
        (22 * MS, 23 * MS, False, True, ""),
        (20 * MS, 23 * MS, True, True, ""),
        (20 * MS + EDGE_NS // 2, 23 * MS, False, True, "before the burst"),
        (522 * MS, 523 * MS, False, False, "was over"),
        (29 * MS, 39 * MS, True, True, ""),
        (29 * MS, 523 * MS, True, True, "was over"),
        (200 * MS, 201 * MS, False, False, ""),
    ],
)
def test_what_a_burst_cuts_off(begin_ns, end_ns, sent, ended, words):
    told = cut_by([BURST, LATER], begin_ns, end_ns, sent=sent, ended=ended)
    assert words in told if words else not told
