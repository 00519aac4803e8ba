"""The functional core, the same in every kernel: no pods, no container runtime, only namespaces.

It uses the laboratory of tests/functional. The guests that it is made for run on an emulated
processor, some thirty times slower than this machine's: every limit here is generous.
"""

from __future__ import annotations

import fcntl
import platform
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))

from lab import leftovers, runner, topology
from lab.shell import until

from tracer.kernel.hooks import HOOKS

runner.READY_S = 240
runner.STOP_S = 60
WAIT_S = 60
LOCK = Path("/run/tracer-tests.lock")
"""That of tests/functional: outside of a guest the two must not meet."""


@pytest.fixture(scope="session", autouse=True)
def _alone():
    leftovers.mark()
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def forced(command: str, kind: str) -> list[str]:
    """Options that attach by ways of `kind` every hook of `command` that has one."""
    return [
        f"--attach={hook.name}={kind}"
        for hook in HOOKS
        if command in hook.commands and kind in {way.kind for way in hook.ways}
    ]


def kinds_of(command: str) -> list[str]:
    """The kinds of ways in which hooks of `command` can attach."""
    ways = (way.kind for hook in HOOKS if command in hook.commands for way in hook.ways)
    return list(dict.fromkeys(ways))


@pytest.fixture(scope="session")
def release() -> tuple[int, int]:
    """Major and minor of the running kernel, for what differs between kernels by design."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int(minor)


@pytest.fixture(scope="session")
def routed(_alone):
    with topology.routed("-k") as made:
        yield made


@pytest.fixture
def nothing_left():
    """The test leaves no BPF object, nft rule, namespace or pin that was not there before."""
    before = leftovers.listing()
    yield
    until(lambda: not leftovers.added(before), "the kernel is as it was before", WAIT_S)
