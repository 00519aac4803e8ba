"""The live model, on a /proc and a runtime of the tests' own (no root, no pods)."""

import threading
import time

import pytest
from fake_cri import recorded, serving

from tracer.inventory import Inventory, Paths
from tracer.inventory.cri_messages import MESSAGES

WEB = "11111111-1111-4111-8111-111111111111"
SOURCES = ("cri", "logs", "cgroup", "cni", "netns", "proc")


@pytest.fixture
def paths(tmp_path, socket_path):
    for pid, netns, cgroup in ((1, 100, "/"), (50, 201, f"/kubepods/pod{WEB}/{'a' * 64}")):
        (tmp_path / "proc" / str(pid) / "ns").mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "ns" / "net").symlink_to(f"net:[{netns}]")
        (tmp_path / "proc" / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")
    (tmp_path / "logs").mkdir()
    return Paths(
        proc=tmp_path / "proc",
        cgroups=(),
        pod_logs=tmp_path / "logs",
        cni_results=(tmp_path / "cni",),
        named_netns=(tmp_path / "netns",),
        cri_sockets=(socket_path,),
    )


def wait_for(condition, timeout_s=3.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_scan_merges_runtime_and_processes(paths, socket_path):
    inventory = Inventory(SOURCES, paths)
    with serving(recorded("containerd-1.6.20"), socket_path):
        node = inventory.scan()
    inventory.stop()
    assert (node.netns, node.version, node.warnings) == (100, 1, ())
    assert node.pods[WEB].key == "default/web-1"
    assert node.pods[WEB].netns == 201
    assert node.pod_by_netns == {201: WEB}
    assert len(node.pods) == 4


def test_a_broken_runtime_is_a_warning(paths, socket_path):
    socket_path.touch()
    (paths.pod_logs / f"default_web-1_{WEB}").mkdir()
    inventory = Inventory(SOURCES, paths)
    node = inventory.scan()
    inventory.stop()
    assert node.pods[WEB].key == "default/web-1"
    assert str(socket_path) in node.warnings[0]


def test_sources_can_be_left_out(paths, socket_path):
    inventory = Inventory(("proc",), paths)
    with serving(recorded("containerd-1.6.20"), socket_path):
        node = inventory.scan()
    inventory.stop()
    assert list(node.pods) == [WEB]
    assert not node.pods[WEB].name


def test_following_a_pod_that_comes_and_goes(paths, socket_path):
    fake = recorded("containerd-1.6.20", has_events=True)
    whole = fake.listing
    fake.listing = b""
    nodes = []
    inventory = Inventory(SOURCES, paths)
    with serving(fake, socket_path):
        inventory.start(nodes.append)
        assert wait_for(lambda: nodes and WEB in nodes[-1].pods)
        assert not inventory.node.pods[WEB].name
        time.sleep(0.2)
        fake.listing = whole
        fake.changed.set()
        assert wait_for(lambda: inventory.node.pods[WEB].name == "web-1")
        named = inventory.node.version
        message = MESSAGES["ListPodSandboxResponse"].FromString(whole)
        others = [item for item in message.items if item.metadata.name != "client-1"]
        fake.listing = MESSAGES["ListPodSandboxResponse"](items=others).SerializeToString()
        fake.changed.set()
        gone = "33333333-3333-4333-8333-333333333333"
        assert wait_for(lambda: inventory.node.pods[gone].gone)
        assert inventory.node.pods[gone].key == "team-a/client-1"
        assert inventory.node.version > named
        assert nodes[-1] is inventory.node
        started = time.monotonic()
        inventory.stop()
        assert time.monotonic() - started < 0.15
    assert not nodes[-1].warnings
    assert not [t for t in threading.enumerate() if t.name.startswith("inventory")]


def test_a_poke_finds_what_nothing_told_of(paths):
    inventory = Inventory(SOURCES, paths)
    inventory.start()
    assert wait_for(lambda: WEB in inventory.node.pods)
    time.sleep(0.1)
    (paths.proc / "50" / "ns" / "net").unlink()
    (paths.proc / "50" / "ns" / "net").symlink_to("net:[202]")
    version = inventory.node.version
    for _ in range(1000):
        inventory.poke()
    assert wait_for(lambda: inventory.node.pod_by_netns.get(202) == WEB)
    assert inventory.node.version - version <= 3, "a thousand pokes are a few refreshes"
    inventory.stop()


def test_a_new_log_directory_is_noticed(paths):
    inventory = Inventory(SOURCES, paths)
    inventory.start()
    assert wait_for(lambda: WEB in inventory.node.pods)
    (paths.pod_logs / f"default_web-1_{WEB}").mkdir()
    assert wait_for(lambda: inventory.node.pods[WEB].name == "web-1")
    inventory.stop()


def test_nothing_changed_is_the_same_object(paths):
    inventory = Inventory(SOURCES, paths)
    first = inventory.scan()
    assert inventory.scan() is first
    inventory.stop()
