"""`tracer pods`: its records, its table, its exit codes."""

import argparse

import orjson
import pytest

from tracer.commands import pods
from tracer.errors import ExitCode, TracerError
from tracer.model import Device, Namespace, Node, Pod

UID, AGENT = "1d0a42d5-533b-4850-b92b-00a543436360", "dede0464-1cb6-4921-a493-c6cf0840bd53"
NODE = Node(
    "node-1",
    100,
    pods={
        UID: Pod(
            UID,
            "shop",
            "web-77fcd85cb8-4j8cs",
            netns=4026532201,
            addresses=("10.244.0.8", "fd00:10:244::8"),
            labels={"app": "web"},
            sandbox_id="b" * 64,
            runtime="containerd",
            sources=("cri", "cgroup", "netlink"),
        ),
        AGENT: Pod(AGENT, "ops", "agent", netns=100, host_network=True, sources=("cgroup",)),
    },
    namespaces={
        100: Namespace(100, "node"),
        4026532201: Namespace(4026532201, "cni-1"),
        300: Namespace(300, "blue", pid=9, sources=("netns",)),
    },
    devices={
        (4026532201, 1): Device(4026532201, 1, "lo"),
        (4026532201, 2): Device(4026532201, 2, "eth0", "veth", peer=(100, 17)),
        (100, 17): Device(100, 17, "veth86ece665", "veth", peer=(4026532201, 2)),
        (300, 1): Device(300, 1, "lo", addresses=("127.0.0.1",)),
        (300, 2): Device(300, 2, "eth0", addresses=("10.0.0.9", "fe80::9")),
    },
    pod_by_netns={4026532201: UID},
)


@pytest.fixture
def run(monkeypatch, capsys):
    def with_node(*arguments, node=NODE):
        class Scanned:
            def scan(self):
                return node

            def stop(self):
                pass

        monkeypatch.setattr(pods, "Inventory", Scanned)
        parser = argparse.ArgumentParser()
        pods.add_arguments(parser)
        code = pods.run(parser.parse_args(arguments))
        return code, *capsys.readouterr()

    return with_node


def test_json_is_one_flat_object_a_pod(run):
    code, out, err = run("-o", "json")
    agent, web = map(orjson.loads, out.splitlines())
    assert web == {
        "k8s.pod.namespace": "shop",
        "k8s.pod.name": "web-77fcd85cb8-4j8cs",
        "k8s.pod.uid": UID,
        "netns": 4026532201,
        "interface.name": "eth0",
        "interface.index": 2,
        "node.interface.name": "veth86ece665",
        "node.interface.index": 17,
        "addresses": ["10.244.0.8", "fd00:10:244::8"],
        "labels": {"app": "web"},
        "sandbox.id": "b" * 64,
        "runtime": "containerd",
        "host_network": False,
        "ready": True,
        "sources": ["cri", "cgroup", "netlink"],
    }
    assert agent["host_network"]
    assert "interface.name" not in agent
    assert (code, err) == (ExitCode.DONE, "")


def test_all_adds_the_namespaces_without_pod(run):
    _, out, _ = run("--all", "-o", "json")
    spaces = [r for r in map(orjson.loads, out.splitlines()) if "k8s.pod.uid" not in r]
    assert [space["netns.name"] for space in spaces] == ["node", "blue"]
    assert spaces[1] == {
        "netns": 300,
        "netns.name": "blue",
        "pid": 9,
        "interface.name": "eth0",
        "interface.index": 2,
        "addresses": ["10.0.0.9"],
        "sources": ["netns"],
    }


def test_table_fits_a_pipe(run):
    _, out, _ = run("--all")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if "web-77fcd85cb8-4j8cs" in line)
    assert row.split() == [
        *("shop", "web-77fcd85cb8-4j8cs", UID[:8], "4026532201", "eth0↔veth86ece665"),
        *("10.244.0.8", "b" * 12, "cri"),
    ]
    assert "\x1b" not in out


def test_wide_shortens_nothing(run):
    _, out, _ = run("--wide")
    assert UID in out
    assert "b" * 64 in out
    assert "cri,cgroup,netlink" in out


def test_selection(run):
    _, out, _ = run("-o", "json", "--selector", "app in (web)")
    assert [orjson.loads(line)["k8s.pod.uid"] for line in out.splitlines()] == [UID]
    with pytest.raises(TracerError, match="no such pod"):
        run("--namespace", "nowhere")


def test_a_failed_source_is_told_and_counts(run):
    failed = Node("node-1", 100, warnings=("cri: /run/x.sock: connection refused",))
    code, out, err = run(node=failed)
    assert code is ExitCode.PARTIAL
    assert not out
    assert err.splitlines()[0] == "warning: cri: /run/x.sock: connection refused"
