"""Which pods are selected, what the kernel is told of them, and whom a record is charged to."""

import numpy as np
import pytest

from tracer.analysis.addresses import address_bytes, address_text
from tracer.analysis.selection import PodSelection, check_selection, marks, owner
from tracer.errors import TracerError
from tracer.model import Node, Pod

WEB = Pod("u1", "shop", "web-1", 4026532001, addresses=("10.244.0.5", "fd00::5"), labels={"a": "b"})
API = Pod("u2", "data", "api-1", 4026532002, addresses=("10.244.0.6",))
PROXY = Pod("u3", "kube-system", "kube-proxy-x", host_network=True)
NODE = Node(
    "n1",
    4026531833,
    pods={pod.uid: pod for pod in (WEB, API, PROXY)},
    pod_by_netns={4026532001: "u1", 4026532002: "u2"},
    pod_by_device={(4026532001, 2): "u1", (4026531833, 7): "u1", (4026531833, 8): "u2"},
    pod_by_address={"10.244.0.5": "u1", "fd00::5": "u1", "10.244.0.6": "u2"},
    pod_by_cgroup={77: "u3", 78: "u2"},
)


def _place(netns=0, ifindex=0, address="", cgroup_id=0):
    raw = address_bytes(address) if address else bytes(16)
    return {
        "netns": netns,
        "ifindex": ifindex,
        "pod_address": np.frombuffer(raw, np.uint8),
        "cgroup_id": cgroup_id,
    }


@pytest.mark.parametrize(
    ("selection", "uids"),
    [
        (PodSelection(), {"u1", "u2", "u3"}),
        (PodSelection(pods=("web-1",)), {"u1"}),
        (PodSelection(pods=("shop/web-1",)), {"u1"}),
        (PodSelection(pods=("data/web-1",)), set()),
        (PodSelection(pods=("*-1",)), {"u1", "u2"}),
        (PodSelection(namespaces=("data", "shop"), pods=("web-*",)), {"u1"}),
        (PodSelection(selector=lambda labels: labels.get("a") == "b"), {"u1"}),
    ],
)
def test_all_criteria_must_hold(selection, uids):
    assert {uid for uid, pod in NODE.pods.items() if selection.matches(pod)} == uids


def test_an_unknown_pod_is_an_error_that_lists_the_known():
    with pytest.raises(TracerError) as caught:
        check_selection(PodSelection(pods=("nope",)), NODE)
    assert caught.value.message == "pod 'nope': no such pod on this node"
    assert "shop/web-1" in caught.value.hint
    check_selection(PodSelection(), NODE)


def test_the_kernel_learns_all_addresses_and_marks_the_selected():
    told = marks(PodSelection(namespaces=("shop", "kube-system")), NODE)
    assert {address_text(key): value for key, value in told.addresses.items()} == {
        "10.244.0.5": 2,
        "fd00::5": 2,
        "10.244.0.6": 1,
    }
    assert told.places == {
        (4026532001, 0): 2,
        (4026532002, 0): 1,
        (4026531833, 7): 2,
        (4026531833, 8): 1,
    }
    assert told.cgroups == {77}


def test_without_a_selection_nothing_is_marked():
    told = marks(PodSelection(), NODE)
    assert set(told.addresses.values()) == {1}
    assert set(told.places.values()) == {1}
    assert not told.cgroups


@pytest.mark.parametrize(
    ("place", "uid"),
    [
        (_place(4026532001, 2, "10.244.0.6"), "u1"),
        (_place(4026531833, 8, "10.244.0.5"), "u2"),
        (_place(4026531833, 1, "fd00::5"), "u1"),
        (_place(4026531833, 1, "", 77), "u3"),
        (_place(4026531833, 1), None),
        (_place(4026532099, 1, "", 77), None),
    ],
)
def test_the_place_wins_over_the_address_and_that_over_the_cgroup(place, uid):
    pod = owner(NODE, place)
    assert (pod.uid if pod else None) == uid


@pytest.mark.parametrize("text", ["10.0.0.1", "fd00::1", "::1", "255.255.255.255", "::"])
def test_addresses_survive_the_way_to_the_kernel_and_back(text):
    assert address_text(address_bytes(text)) == text
