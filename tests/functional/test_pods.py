"""`tracer pods` against what the runtime was asked for."""

from __future__ import annotations

import pytest
from lab import namespaces, runner
from lab.shell import run


@pytest.fixture(scope="module")
def by_name(cri_env):
    done = runner.finish("pods", "-o", "json", env=cri_env)
    assert done.code == 0, done.err
    return {f"{r['k8s.pod.namespace']}/{r['k8s.pod.name']}": r for r in done.records}


@pytest.mark.parametrize("key", ["shop/client-0", "shop/web-0", "ops/agent-0"])
def test_a_pod_with_its_own_network(cluster, by_name, key):
    pod, record = cluster.pods[key], by_name[key]
    assert record["k8s.pod.uid"] == pod.uid
    assert record["netns"] == pod.where.inode
    assert record["sandbox.id"] == pod.sandbox
    assert record["host_network"] is False
    assert set(pod.addresses) <= set(record["addresses"])
    assert record["labels"].items() >= pod.labels.items()
    assert record["runtime"] == "containerd"
    assert {"cri", "cni", "cgroup", "netlink"} <= set(record["sources"])
    assert (record["interface.name"], record["node.interface.name"]) == ("eth0", pod.node_device)
    assert record["node.interface.index"] == namespaces.node().ifindex(pod.node_device)


def test_a_pod_on_the_nodes_network(cluster, by_name):
    pod = cluster.pods["kube-system/proxy-0"]
    record = by_name[pod.key]
    assert record["host_network"] is True
    assert record["k8s.pod.uid"] == pod.uid
    assert record.get("netns") in (None, namespaces.node().inode)


def test_selection(cluster, cri_env):
    done = runner.finish("pods", "-o", "json", "--selector", "tier=back", env=cri_env)
    names = {record["k8s.pod.name"] for record in done.records}
    assert names == {cluster.web.name, cluster.agent.name}


def test_namespaces_that_are_no_pods(routed, cri_env):
    done = runner.finish("pods", "--all", "-o", "json", env=cri_env)
    listed = {record["netns"]: record for record in done.records if "netns" in record}
    assert listed[routed.router.inode]["netns.name"] == routed.router.name
    assert "k8s.pod.name" not in listed[routed.router.inode]
    assert routed.left.ip4 in listed[routed.left.where.inode]["addresses"]


def test_text(cluster, cri_env):
    done = runner.finish("pods", env=cri_env)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if cluster.web.name in line)
    for word in ("shop", str(cluster.web.where.inode), cluster.web.ip4, cluster.web.node_device):
        assert word in row


def test_runtime_elsewhere(cluster, tmp_path):
    """`CONTAINER_RUNTIME_ENDPOINT` names the socket, as it does for crictl."""
    elsewhere = tmp_path / "runtime.sock"
    elsewhere.symlink_to(cluster.runtime.socket)
    done = runner.finish(
        "pods", "-o", "json", env={"CONTAINER_RUNTIME_ENDPOINT": f"unix://{elsewhere}"}
    )
    assert done.code == 0, done.err
    assert all("cri" in r["sources"] for r in done.records if r["k8s.pod.uid"] == cluster.web.uid)
    wrong = {"CONTAINER_RUNTIME_ENDPOINT": f"unix://{tmp_path}/nothing.sock"}
    done = runner.finish("pods", "-o", "json", env=wrong)
    assert done.code == 1, done.err
    assert "nothing.sock" in done.err


@pytest.mark.usefixtures("nothing_left")
def test_a_scan_leaves_nothing(cri_env):
    runner.finish("pods", "--all", env=cri_env)
    assert "tracer" not in run("ip", "netns", "list")
