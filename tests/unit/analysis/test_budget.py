"""The rate that keeps a budget: against a model of what a node uses."""

import pytest

from tracer.analysis.budget import MAX_RATE, next_rate


def settled(budget, fixed, counting, rate=1, intervals=30):
    """The rate after some intervals, where `counting` falls with it and `fixed` does not."""
    for _ in range(intervals):
        rate = next_rate(rate, fixed + counting / rate, budget)
    return rate


def test_every_packet_is_counted_where_there_is_room():
    assert settled(budget=2, fixed=0.1, counting=1.5) == 1


@pytest.mark.parametrize("counting", [3, 20, 77, 300])
def test_a_budget_is_kept_by_the_finest_rate_that_does(counting):
    rate = settled(budget=2, fixed=0.5, counting=counting)
    assert 0.5 + counting / rate <= 2
    assert 0.5 + counting / (rate / 3) > 2


@pytest.mark.parametrize("counting", [3, 20, 300])
def test_a_steady_load_has_a_steady_rate(counting):
    rates = {settled(2, 0.5, counting, intervals=number) for number in range(30, 40)}
    assert len(rates) == 1


def test_finer_again_when_the_load_is_gone():
    assert settled(budget=2, fixed=0.1, counting=0.2, rate=MAX_RATE) == 1


def test_a_budget_that_cannot_be_kept_ends_at_the_coarsest():
    assert settled(budget=0.01, fixed=1, counting=5) == MAX_RATE


def test_one_interval_is_not_believed_too_much():
    assert next_rate(1, used=1000, budget=1) == 8
    assert next_rate(64, used=0, budget=1) == 32
