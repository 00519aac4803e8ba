"""Times stay those of the wall clock as it was when things happened."""

import os
import select
import time

import numpy as np
import pytest

from tracer.analysis.drops import Context
from tracer.analysis.flow_columns import _wall_ns
from tracer.kernel import clock
from tracer.model import Node

S = 10**9


@pytest.fixture
def wall(monkeypatch):
    """A clock whose offset a test sets, and which the kernel tells of steps if `told`."""
    state = {"offset": 1_000 * S, "told": True}
    monkeypatch.setattr(clock, "wall_offset_ns", lambda: state["offset"])
    made = clock.WallClock()
    monkeypatch.setattr(made, "_told", lambda: state["told"])
    yield made, state
    made.close()


def context(made):
    return Context(Node("n", 1), {}, str, made.offset_ns, made.steps)


def test_events_before_a_step_keep_the_time_of_before(wall):
    made, state = wall
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert made.look() == 0
    state["offset"] -= 100 * S
    assert made.look() == -100 * S
    between_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    state["offset"] += 7 * S
    assert made.look() == 7 * S
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = context(made)
    times = [before_ns, between_ns, after_ns]
    right = [before_ns + 1_000 * S, between_ns + 900 * S, after_ns + 907 * S]
    assert [now.wall_ns(one) for one in times] == right
    assert _wall_ns(np.array(times, np.uint64), now).tolist() == right


def test_a_slewed_clock_is_followed_without_a_step(wall):
    made, state = wall
    state["told"] = False
    state["offset"] += clock.SLEW_NS // 2
    assert made.look() == 0
    assert made.offset_ns == 1_000 * S
    state["offset"] += clock.SLEW_NS
    assert made.look() == 0
    assert made.offset_ns == state["offset"]
    assert made.steps == ()


def test_without_the_kernels_word_a_jump_is_a_step(wall):
    made, state = wall
    state["told"] = False
    made.close()
    state["offset"] += S
    assert made.look() == S
    assert len(made.steps) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="setting the clock needs root")
def test_the_kernel_tells_when_the_clock_is_set():
    """Set to what it shows: a step that nobody notices, but the kernel tells of it."""
    made = clock.WallClock()
    assert made.descriptor >= 0
    assert not select.select([made.descriptor], [], [], 0)[0]
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME))
    except PermissionError:
        pytest.skip("the clock may not be set here")
    assert select.select([made.descriptor], [], [], 5)[0]
    assert made._told()
    assert not made._told()
    assert made.look() == 0, "nothing but microseconds have changed"
    made.close()
