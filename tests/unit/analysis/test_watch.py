"""When `trace` goes on standby, and which namespaces are watched then."""

from __future__ import annotations

import pytest

from tracer.analysis.selection import PodSelection
from tracer.analysis.watch import (
    ALWAYS,
    AUTO,
    HEAVY_PER_S,
    LIGHT_PER_S,
    NEVER,
    QUIET_NS,
    WRAPS_AT,
    Look,
    Traffic,
    stands_by,
    watched,
)
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


S = 1_000_000_000


def seen(*counts, step_ns=S):
    """Traffic of one CPU, looked at every second."""
    traffic = Traffic()
    for number, count in enumerate(counts):
        traffic.add(Look(number * step_ns, (count % WRAPS_AT,)))
    return traffic


def test_a_rate_takes_ten_seconds():
    ten = [count * 60_000 for count in range(10)]
    assert seen().per_s is None
    assert seen(*ten).per_s is None
    assert seen(*ten, 600_000).per_s == 60_000


def test_the_rate_is_of_the_last_ten_seconds():
    assert seen(*range(0, 10_000_000, 1_000_000), *[10_000_000] * 11).per_s == 0
    assert seen(*[0] * 30, 1_000_000).per_s == 100_000


def test_a_reader_that_was_kept_waiting_has_the_mean():
    assert seen(0, 6_000_000, step_ns=60 * S).per_s == 100_000


def test_counters_wrap():
    begin = WRAPS_AT - 5_000
    assert seen(*(begin + count * 1_000 for count in range(11))).per_s == 1_000


def test_the_counters_of_all_cpus_are_added_and_a_new_cpu_begins_anew():
    traffic = Traffic()
    for second in range(11):
        traffic.add(Look(second * S, (second * 10, second * 20)))
    assert traffic.per_s == 30
    traffic.add(Look(11 * S, (110, 220, 7)))
    assert traffic.per_s is None


def test_nothing_that_counts():
    traffic = Traffic()
    for second in range(12):
        traffic.add(Look(second * S, ()))
    assert traffic.per_s is None


QUIET = QUIET_NS + 1


@pytest.mark.parametrize(
    ("when", "resting", "quiet_ns", "per_s", "wanted"),
    [
        # Light traffic, or none known, leaves the hooks where they are.
        (AUTO, False, QUIET, HEAVY_PER_S - 1, False),
        (AUTO, False, QUIET, None, False),
        (AUTO, False, QUIET, HEAVY_PER_S, True),
        (AUTO, False, QUIET_NS, 1e6, False),
        (AUTO, False, 0, 1e6, False),
        # On standby: until a packet is chosen, or traffic is clearly light.
        (AUTO, True, 0, 1e6, False),
        (AUTO, True, QUIET, LIGHT_PER_S, True),
        (AUTO, True, QUIET, LIGHT_PER_S - 1, False),
        (AUTO, True, QUIET, None, True),
        # Whatever the traffic.
        (ALWAYS, True, 5, 0, True),
        (ALWAYS, True, 0, 1e6, False),
        (ALWAYS, False, QUIET, 0, True),
        (ALWAYS, False, QUIET_NS, 0, False),
        (NEVER, False, QUIET, 1e6, False),
    ],
)
def test_standby(when, resting, quiet_ns, per_s, wanted):
    assert stands_by(when, resting=resting, quiet_ns=quiet_ns, per_s=per_s) == wanted
