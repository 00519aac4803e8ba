"""What doctor and hooks find in this kernel, and that nothing is left in it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from lab import runner
from ways import closed_hooks

from tracer.kernel import hook_probe
from tracer.kernel.hooks import FEXIT, HOOKS, KRETPROBE, NETFILTER

SLOW_S = 240
WAYS = [(hook, way) for hook in HOOKS for way in hook.ways]


def symbol(way):
    """What the kernel has if it can be attached this way."""
    if way.kind == NETFILTER:
        return "bpf_nf_link_attach"
    return way.target if way.kind in (FEXIT, KRETPROBE) else f"__traceiter_{way.target}"


@pytest.fixture(scope="module")
def functions():
    """Every symbol of this kernel."""
    return {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}


def test_doctor(record_property):
    done = runner.finish("doctor", "-o", "json", timeout_s=SLOW_S)
    assert "Traceback" not in done.err
    found = {record["check"]: record for record in done.records}
    for check, record in found.items():
        record_property(check, json.dumps([record["state"], record["detail"]]))
    assert {record["state"] for record in found.values()} <= {"ok", "degraded"}
    degraded = {check for check, record in found.items() if record["state"] == "degraded"}
    closed = {f"hook {name}" for name in closed_hooks()}
    assert closed <= degraded <= closed | {"cri"}, done.out
    assert done.code == (1 if degraded else 0)


def test_hooks():
    done = runner.finish("hooks", "-o", "json", timeout_s=SLOW_S)
    assert [record["hook"] for record in done.records] == [hook.name for hook in HOOKS]
    for record in done.records:
        assert record["tried"], record
    spare = {hook.name for hook in HOOKS if hook.spare}
    without = {record["hook"] for record in done.records if "way" not in record}
    assert without - spare == closed_hooks()
    assert done.code == (1 if closed_hooks() else 0), done.out


def test_every_hook_attaches_in_some_way(release):
    """But that a queueing discipline keeps a packet is told from 5.14 on."""
    assert closed_hooks() == (set() if release >= (5, 14) else {"qdisc-enqueue"})


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
    [
        ("drops", signal.SIGINT),
        ("drops", signal.SIGKILL),
        ("flows", signal.SIGTERM),
        (f"trace --attach=nf-hook={KRETPROBE}", signal.SIGKILL),
    ],
    ids=["drops-INT", "drops-KILL", "flows-TERM", "trace-KILL"],
)
@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left(command, number):
    with runner.running(*command.split()) as live:
        done = live.stop(number)
    assert done.code == (-number if number == signal.SIGKILL else 0), done.err
    assert "Traceback" not in done.err
