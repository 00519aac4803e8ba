"""The CRI client, against a server that answers what real runtimes answered."""

import threading
from contextlib import closing

import pytest
from fake_cri import recorded, serving

from tracer.inventory import cri_follow
from tracer.inventory.cri import CriError, NoCriError, Runtime
from tracer.inventory.cri_follow import Follower

NEW, OLD = "containerd-2.1.9", "containerd-1.6.20"


def test_sandboxes_of_a_cluster(socket_path):
    with serving(recorded(NEW), socket_path), closing(Runtime(socket_path)) as runtime:
        boxes = {box.name: box for box in runtime.sandboxes()}
    assert len(boxes) == 10
    web = boxes["web-77fcd85cb8-4j8cs"]
    assert (web.namespace, web.uid) == ("shop", "494a4371-b11a-4071-bd23-4a7303cf951a")
    assert web.addresses == ("10.244.0.8", "fd00:10:244::8")
    assert (web.pid, web.runtime, web.ready, web.host_network) == (852, "containerd", True, False)
    assert web.netns_path == "/var/run/netns/cni-b1b54dd6-237b-bb6e-d745-4cac31c43566"
    assert web.labels["app"] == "web"
    assert web.created_ns == 1795366102165893800


def test_host_network_and_finished_sandboxes(socket_path):
    with serving(recorded(NEW), socket_path), closing(Runtime(socket_path)) as runtime:
        boxes = {box.name: box for box in runtime.sandboxes()}
    agent, done = boxes["agent-bhb8k"], boxes["done-dbw78"]
    assert agent.host_network
    assert not agent.addresses
    assert (done.ready, done.pid, done.addresses) == (False, None, ())


@pytest.mark.parametrize("version", ["runtime.v1", "runtime.v1alpha2"])
def test_either_version_of_the_protocol(socket_path, version):
    fake = recorded(OLD, version=version)
    with serving(fake, socket_path), closing(Runtime(socket_path)) as runtime:
        assert {box.name for box in runtime.sandboxes()} == {"client-1", "hp-1", "web-1", "web-2"}


def test_details_are_asked_once(socket_path):
    with serving(recorded(OLD), socket_path) as fake, closing(Runtime(socket_path)) as runtime:
        first = runtime.sandboxes()
        fake.asked.clear()
        assert runtime.sandboxes() == first
        assert fake.asked == ["ListPodSandbox"]


def test_a_sandbox_that_vanishes_meanwhile_is_left_out(socket_path):
    fake = recorded(OLD)
    gone = next(iter(fake.statuses))
    del fake.statuses[gone]
    with serving(fake, socket_path), closing(Runtime(socket_path)) as runtime:
        boxes = runtime.sandboxes()
    assert len(boxes) == 3
    assert gone not in {box.id for box in boxes}


def test_a_server_without_cri(socket_path):
    with (
        serving(recorded(OLD, version="other.v1"), socket_path),
        closing(Runtime(socket_path)) as runtime,
        pytest.raises(NoCriError, match="serves no CRI"),
    ):
        runtime.sandboxes()


def test_a_socket_that_nobody_serves(socket_path):
    socket_path.touch()
    with closing(Runtime(socket_path)) as runtime, pytest.raises(CriError) as error:
        runtime.sandboxes()
    assert str(error.value) == f"{socket_path}: Connection refused"


def test_no_events_is_no_error(socket_path):
    with serving(recorded(OLD), socket_path), closing(Runtime(socket_path)) as runtime:
        runtime.sandboxes()
        assert list(runtime.events()) == []


def test_a_named_socket_must_be_there_and_the_usual_ones_need_not(socket_path, monkeypatch):
    follower = Follower([socket_path])
    assert follower.refresh()
    assert f"{socket_path}: no such socket" in follower.warnings[0]
    monkeypatch.setattr(cri_follow, "CRI_SOCKETS", (socket_path,))
    assert follower.refresh()
    assert not follower.warnings


def test_follower_warns_keeps_and_recovers(socket_path):
    follower = Follower([socket_path])
    with serving(recorded(OLD), socket_path):
        assert follower.refresh()
        boxes = follower.sandboxes
        assert len(boxes) == 4
        assert not follower.warnings
        assert not follower.refresh()
    socket_path.touch()
    assert follower.refresh()
    assert follower.sandboxes == boxes
    assert "cri:" in follower.warnings[0]
    socket_path.unlink()
    with serving(recorded(OLD), socket_path):
        assert follower.refresh()
        assert not follower.warnings
    follower.stop()


def test_a_plain_docker_host_is_no_failure(socket_path):
    follower = Follower([socket_path])
    with serving(recorded(OLD, version="other.v1"), socket_path):
        assert not follower.refresh()
    assert not follower.warnings
    follower.stop()


def test_events_are_followed(socket_path):
    changed = threading.Event()
    with serving(recorded(OLD, has_events=True), socket_path) as fake:
        follower = Follower([socket_path])
        thread = threading.Thread(target=follower.run, args=(changed.set,), daemon=True)
        thread.start()
        assert changed.wait(5)
        changed.clear()
        fake.listing = b""
        fake.changed.set()
        assert changed.wait(3), "an event leads to a refresh long before the poll does"
        assert follower.sandboxes == ()
        follower.stop()
        thread.join(0.5)
        assert not thread.is_alive()
