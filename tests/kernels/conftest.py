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
from lab import ways as hops
from lab.shell import run
from ways import WAIT_S

runner.READY_S = 240
runner.STOP_S = 60
hops.SLOW_NS = 20_000_000_000
LOCK = Path("/run/tracer-tests.lock")
"""That of tests/functional: outside of a guest the two must not meet."""


def pytest_addoption(parser):
    parser.addoption("--within", type=float, metavar="S", help="begin no test after S seconds")


def pytest_configure(config):
    within = config.getoption("--within")
    config.last_begin = time.monotonic() + within if within else float("inf")


def pytest_runtest_setup(item):
    if time.monotonic() > item.config.last_begin:
        pytest.skip("out of time")


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


@pytest.fixture(scope="session")
def bridge_netfilter(_alone) -> None:
    """Bridged packets pass the rules, as on a node that kubelet has prepared."""
    if not Path("/proc/sys/net/bridge").exists():
        run("modprobe", "br_netfilter")


@pytest.fixture
def nothing_left():
    """The test leaves no BPF object, nft rule, namespace or pin that was not there before."""
    before = leftovers.listing()
    yield
    end = time.monotonic() + WAIT_S
    while left := leftovers.added(before):
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.2)
