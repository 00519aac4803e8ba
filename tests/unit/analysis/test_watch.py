"""Which namespaces are watched on standby."""

from __future__ import annotations

import pytest

from tracer.analysis.selection import PodSelection
from tracer.analysis.watch import watched
from tracer.model import Device, Namespace, Node, Pod

NODE, ONE, TWO, HOST = 100, 201, 202, 300
EVERYTHING = PodSelection()


def veth(netns, ifindex, peer, master=None):
    return Device(netns, ifindex, f"veth{ifindex}", "veth", peer=peer, master=master)


def node(*devices, gone=()):
    every = (*devices, *(Device(netns, 1, "lo") for netns in (NODE, ONE, TWO)))
    return Node(
        "node-1",
        NODE,
        namespaces={n: Namespace(n, gone=n in gone) for n in (NODE, ONE, TWO)},
        devices={device.key: device for device in every},
        pods={
            "1": Pod("1", "shop", "web-0", ONE),
            "2": Pod("2", "shop", "db-0", TWO),
            "3": Pod("3", "ops", "proxy", host_network=True),
        },
        pod_by_netns={ONE: "1", TWO: "2"},
    )


PAIRS = (
    veth(NODE, 5, (ONE, 2), master=4),
    veth(ONE, 2, (NODE, 5)),
    veth(NODE, 6, (TWO, 2)),
    veth(TWO, 2, (NODE, 6)),
)


def test_pods_behind_the_node_need_no_look_of_their_own():
    assert watched(node(*PAIRS), EVERYTHING, lambda _: True) == [NODE]


def test_a_bridge_that_netfilter_does_not_see():
    seen = []

    def passes(device):
        seen.append(device.key)
        return device.master is None

    assert watched(node(*PAIRS), EVERYTHING, passes) == [NODE, ONE]
    assert seen == [(NODE, 5), (NODE, 6)]


@pytest.mark.parametrize(
    "devices",
    [
        PAIRS[:2],  # without a device: its own lo
        (*PAIRS[:3], veth(TWO, 2, None)),  # the other end is not known
        (*PAIRS, Device(TWO, 3, "net1", "macvlan")),  # another way out
    ],
)
def test_other_ways_out(devices):
    assert watched(node(*devices), EVERYTHING, lambda _: True) == [NODE, TWO]


def test_one_namespace_of_a_pair_of_plain_ones():
    pair = (veth(ONE, 3, (TWO, 3)), veth(TWO, 3, (ONE, 3)))
    assert watched(node(*pair), EVERYTHING, lambda _: True) == [NODE, ONE]


def test_gone_ones_are_not_watched():
    assert watched(node(*PAIRS, gone=(ONE,)), EVERYTHING, lambda _: False) == [NODE, TWO]


def test_selected_pods_alone():
    def never(_):
        raise AssertionError

    assert watched(node(*PAIRS), PodSelection(pods=("web-*",)), never) == [ONE]
    assert watched(node(*PAIRS), PodSelection(namespaces=("ops",)), never) == [NODE]
    assert watched(node(*PAIRS), PodSelection(pods=("none",)), never) == []
