"""The functional core, the same in every kernel: no pods, no container runtime, only namespaces.

It uses the laboratory of tests/functional. The guests that it is made for run on an emulated
processor, some thirty times slower than this machine's: every limit here is generous.
"""

from __future__ import annotations

import fcntl
import platform
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "functional"))

from lab import leftovers, runner, topology
from ways import WAIT_S

runner.READY_S = 240
runner.STOP_S = 60
LOCK = Path("/run/tracer-tests.lock")
"""That of tests/functional: outside of a guest the two must not meet."""


@pytest.fixture(scope="session", autouse=True)
def _alone(record_testsuite_property):
    record_testsuite_property("release", platform.release())
    leftovers.mark()
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
    end = time.monotonic() + WAIT_S
    while left := leftovers.added(before):
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.2)
