"""Names of the gone stay for their late events, and no longer than their owner's absence."""

from dataclasses import replace

from tracer.inventory import linger as module
from tracer.inventory.linger import LINGER_S, Lingering, linger
from tracer.model import Device, Namespace, Node, Pod

NETNS = 201
POD = Pod("uid-1", "shop", "web", netns=NETNS, addresses=("10.0.0.8",))
EMPTY = Node("node-1", 100, namespaces={100: Namespace(100, "node")})
FULL = replace(
    EMPTY,
    pods={"uid-1": POD},
    namespaces={**EMPTY.namespaces, NETNS: Namespace(NETNS, "cni-1")},
    devices={
        (NETNS, 2): Device(NETNS, 2, "eth0", addresses=("10.0.0.8",)),
        (100, 17): Device(100, 17, "veth17"),
    },
    pod_by_netns={NETNS: "uid-1"},
    pod_by_device={(NETNS, 2): "uid-1", (100, 17): "uid-1"},
    pod_by_address={"10.0.0.8": "uid-1"},
    pod_by_cgroup={9: "uid-1"},
)
INDEXES = ("pod_by_netns", "pod_by_device", "pod_by_address", "pod_by_cgroup", "devices")


def after(*fresh, lingering=None, start=1000.0, step=1.0):
    """The node after each of `fresh` in turn, a second apart, beginning with FULL."""
    node, lingering = FULL, lingering or Lingering()
    for number, next_node in enumerate(fresh):
        node = linger(next_node, node, lingering, start + number * step)
    return node


def test_a_gone_pod_keeps_its_names():
    node = after(EMPTY)
    assert node.pods["uid-1"] == replace(POD, gone=True)
    assert node.namespaces[NETNS].gone
    for index in INDEXES:
        assert getattr(node, index) == getattr(FULL, index), index


def test_for_a_minute_at_least_and_not_for_ever():
    assert LINGER_S >= 60
    assert "uid-1" in after(*[EMPTY] * 60).pods
    forgotten = after(EMPTY, EMPTY, EMPTY, step=LINGER_S / 1.5)
    assert forgotten == EMPTY


def test_who_comes_back_is_not_gone():
    lingering = Lingering()
    assert after(EMPTY, FULL, lingering=lingering) == FULL
    assert not any(lingering.deadlines.values())


def test_a_reused_netns_belongs_to_its_new_owner():
    space = {**EMPTY.namespaces, NETNS: Namespace(NETNS, "docker-1")}
    node = after(EMPTY, replace(EMPTY, namespaces=space))
    assert NETNS not in node.pod_by_netns
    assert (NETNS, 2) not in node.pod_by_device
    assert (NETNS, 2) not in node.devices
    assert not node.namespaces[NETNS].gone
    assert node.pods["uid-1"].gone


def test_a_netns_reused_between_two_looks_is_told_by_its_name():
    space = {**EMPTY.namespaces, NETNS: Namespace(NETNS, "cni-2")}
    assert NETNS not in after(replace(EMPTY, namespaces=space)).pod_by_netns


def test_a_namespace_that_outlives_its_pod_keeps_the_name():
    node = after(replace(EMPTY, namespaces=FULL.namespaces, devices=FULL.devices))
    assert node.pod_by_netns == {NETNS: "uid-1"}
    assert node.pod_by_address == {"10.0.0.8": "uid-1"}


def test_a_reused_address_belongs_to_its_new_owner():
    devices = {(300, 2): Device(300, 2, "eth0", addresses=("10.0.0.8",))}
    assert not after(replace(EMPTY, devices=devices)).pod_by_address
    new = replace(EMPTY, devices=devices, pod_by_address={"10.0.0.8": "uid-2"})
    assert after(new).pod_by_address == {"10.0.0.8": "uid-2"}


def test_the_number_of_the_gone_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_GONE", 5)
    node, lingering = EMPTY, Lingering()
    for number in range(20):
        pod = replace(POD, uid=f"uid-{number}")
        node = linger(replace(EMPTY, pods={pod.uid: pod}), node, lingering, number)
    assert set(node.pods) == {f"uid-{number}" for number in range(14, 20)}
