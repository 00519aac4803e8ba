"""Fixtures of the functional tests: root, a real containerd, and no one else's run beside ours."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
from lab import cluster as lab_cluster
from lab import kube_node as lab_kube
from lab import leftovers as lab_leftovers
from lab import runner
from lab import topology as lab_topology
from lab.shell import until

LOCK = Path("/run/tracer-tests.lock")
WAIT_S = 600


@pytest.fixture(scope="session", autouse=True)
def _alone():
    if os.geteuid() != 0:
        pytest.exit("functional tests need root: sudo scripts/test", 2)
    lab_leftovers.mark()
    with LOCK.open("w") as lock:
        until(lambda: _is_locked(lock), f"another functional test run ends ({LOCK})", WAIT_S)
        yield


def _is_locked(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.fixture(scope="session")
def cluster(_alone):
    with lab_cluster.running() as made:
        yield made


@pytest.fixture(scope="session")
def cri_env(cluster):
    """How tracer is told of the runtime: not at all where it sits in its usual place."""
    if cluster.runtime.in_usual_place:
        return {}
    return {"CONTAINER_RUNTIME_ENDPOINT": f"unix://{cluster.runtime.socket}"}


@pytest.fixture(scope="module")
def routed(cluster):  # noqa: ARG001 - it sweeps away what a killed run left, and so comes first
    with lab_topology.routed() as made:
        yield made


@pytest.fixture(scope="module")
def kube_node(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    """The node whose kube-proxy rules were recorded, without them."""
    with lab_kube.kube_node() as made:
        yield made


@pytest.fixture(scope="module", params=lab_kube.MODES)
def proxy(request, kube_node):
    """The mode of kube-proxy whose rules are in force there."""
    with lab_kube.rules(kube_node.node, request.param):
        yield request.param


@pytest.fixture(scope="module")
def drops(request, cri_env):
    """One `tracer drops` for a whole module, as an administrator would let it run."""
    # Whatever a test will send from is there before tracer looks at the node.
    request.getfixturevalue("routed")
    with runner.running("drops", "-o", "json", env=cri_env) as live:
        yield live
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


@pytest.fixture
def watch(drops):
    """What `drops` writes during this test."""
    return runner.watch(drops)


@pytest.fixture
def packets(trace):
    """What the module's `trace` writes during this test."""
    return runner.watch(trace)


@pytest.fixture
def nothing_left():
    """The test leaves no BPF object, nft rule, namespace or pin that was not there before."""
    before = lab_leftovers.listing()
    yield
    end = time.monotonic() + 3
    while left := lab_leftovers.added(before):
        assert time.monotonic() < end, left
        time.sleep(0.05)
