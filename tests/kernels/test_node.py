"""What doctor and hooks find in this kernel, and that nothing is left in it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from lab import runner

from tracer.kernel import hook_probe
from tracer.kernel.hooks import HOOKS, NETFILTER

SLOW_S = 240
WAYS = [(hook, way) for hook in HOOKS for way in hook.ways]


def symbol(way):
    """What the kernel has if it can be attached this way."""
    return "bpf_nf_link_attach" if way.kind == NETFILTER else f"__traceiter_{way.target}"


@pytest.fixture(scope="module")
def functions():
    """Every symbol of this kernel."""
    return {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}


def test_doctor(functions, record_property):
    done = runner.finish("doctor", "-o", "json", timeout_s=SLOW_S)
    assert "Traceback" not in done.err
    found = {record["check"]: record for record in done.records}
    for check, record in found.items():
        record_property(check, json.dumps([record["state"], record["detail"]]))
    assert {record["state"] for record in found.values()} <= {"ok", "degraded"}
    degraded = {check for check, record in found.items() if record["state"] == "degraded"}
    lacking = {f"hook {hook.name}" for hook in HOOKS if symbol(hook.ways[0]) not in functions}
    assert degraded <= {"cri", *lacking}, done.out
    assert done.code == (1 if degraded else 0)


def test_hooks():
    done = runner.finish("hooks", "-o", "json", timeout_s=SLOW_S)
    assert [record["hook"] for record in done.records] == [hook.name for hook in HOOKS]
    for record in done.records:
        assert record["tried"], record
    assert done.code == (0 if all("way" in r and "refused" not in r for r in done.records) else 1)


@pytest.mark.parametrize(
    ("hook", "way"), WAYS, ids=[f"{hook.name}-{way.kind}" for hook, way in WAYS]
)
def test_way(hook, way, functions, record_property):
    """A way is open exactly if the kernel has what it attaches to."""
    refused = hook_probe.refusal(way)
    record_property("hook", hook.name)
    record_property("way", way.kind)
    record_property("costs", way.costs)
    record_property("refused", refused)
    assert (refused == "") == (symbol(way) in functions), refused


@pytest.mark.parametrize(
    ("command", "number"),
    [("drops", signal.SIGINT), ("drops", signal.SIGKILL), ("flows", signal.SIGTERM)],
    ids=["drops-INT", "drops-KILL", "flows-TERM"],
)
@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left(command, number):
    with runner.running(command) as live:
        done = live.stop(number)
    assert done.code == (-number if number == signal.SIGKILL else 0), done.err
    assert "Traceback" not in done.err
