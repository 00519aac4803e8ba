"""Totals of drops are exact and named, however many pods come and go while they grow."""

from dataclasses import replace

import numpy as np
import pytest

from tracer.analysis.addresses import address_bytes
from tracer.analysis.drop_totals import DropTotals
from tracer.analysis.drops import Context
from tracer.layout import layout
from tracer.model import Namespace, Node, Pod

NODE_NETNS, POD_NETNS, BLUE = 4026531833, 4026532001, 4026532009
WEB = Pod("u1", "shop", "web-1", POD_NETNS, addresses=("10.244.0.5",))
NODE = Node(
    "n1",
    NODE_NETNS,
    pods={"u1": WEB},
    namespaces={POD_NETNS: Namespace(POD_NETNS, "cni-1"), BLUE: Namespace(BLUE, "blue")},
    pod_by_netns={POD_NETNS: "u1"},
    pod_by_address={"10.244.0.5": "u1"},
    version=1,
)
WITHOUT = replace(NODE, pods={}, pod_by_netns={}, pod_by_address={}, namespaces={}, version=3)
SYMBOLS = {0x1000: "nft_do_chain+0x5", 0x2000: "udp_rcv+0x1"}


def context(node=NODE):
    return Context(node, {2: "NOT_SPECIFIED", 12: "NETFILTER_DROP"}, SYMBOLS.__getitem__, 0)


def died(*rows, cpus=2):
    """(netns, reason, packets, address of a pod) each, of which all but one on one CPU."""
    structs = layout().structs
    keys = np.zeros(len(rows), structs["drop_key"])
    counts = np.zeros((len(rows), cpus), structs["drop_count"])
    for at, (netns, reason, packets, *address) in enumerate(rows):
        keys[at]["netns"], keys[at]["reason"], keys[at]["location"] = netns, reason, 0x1000
        if address:
            keys[at]["pod_address"] = np.frombuffer(address_bytes(address[0]), np.uint8)
        counts[at]["packets"] = (packets - 1, *[0] * (cpus - 2), 1)
    counts["bytes"], counts["shown"] = counts["packets"] * 10, counts["packets"] > 1
    return keys, counts


def told(totals, node=NODE):
    """(whose, reason, packets) of each record."""
    rows = []
    for one in totals.records(context(node)):
        assert one["bytes"] == 10 * one["packets"]
        whose = one.get("k8s.pod.name") or one.get("netns.name") or one.get("netns")
        rows.append((whose, one["drop.reason"], one["packets"]))
    return rows


def test_adds_up_turns_cpus_devices_and_sorts():
    totals = DropTotals()
    for _ in range(2):
        keys, counts = died((POD_NETNS, 12, 6), (NODE_NETNS, 12, 4, "10.244.0.5"), (BLUE, 2, 9))
        keys["ifindex"] = (2, 7, 3)
        totals.add(keys, counts, context())
    totals.add(*died((POD_NETNS, 2, 1)), context())
    assert told(totals) == [
        ("web-1", "NETFILTER_DROP", 20),
        ("blue", "NOT_SPECIFIED", 18),
        ("web-1", "NOT_SPECIFIED", 1),
    ]
    assert totals.records(context())[0] == {
        "type": "summary", "k8s.pod.namespace": "shop", "k8s.pod.name": "web-1",
        "drop.reason": "NETFILTER_DROP", "drop.location": "nft_do_chain+0x5",
        "packets": 20, "bytes": 200, "shown": 4,
    }  # fmt: skip


def test_a_pod_that_becomes_known_later_has_what_died_before():
    totals = DropTotals()
    totals.add(*died((POD_NETNS, 12, 3)), context(replace(NODE, pod_by_netns={}, version=0)))
    assert told(totals) == [("web-1", "NETFILTER_DROP", 3)]


@pytest.mark.parametrize("seen_gone", [True, False])
def test_the_gone_keep_their_names(seen_gone):
    totals = DropTotals()
    totals.add(*died((POD_NETNS, 12, 3), (BLUE, 2, 5)), context())
    gone = replace(
        NODE,
        pods={"u1": replace(WEB, gone=True)},
        namespaces={k: replace(v, gone=True) for k, v in NODE.namespaces.items()},
        version=2,
    )
    nothing = died()
    totals.add(*(died((POD_NETNS, 12, 1)) if seen_gone else nothing), context(gone))
    totals.add(*nothing, context(WITHOUT))
    assert told(totals, WITHOUT) == [
        ("blue", "NOT_SPECIFIED", 5),
        ("web-1", "NETFILTER_DROP", 3 + seen_gone),
    ]


def test_another_pod_with_the_same_number_has_its_own():
    totals = DropTotals()
    totals.add(*died((POD_NETNS, 12, 3)), context())
    api = replace(WEB, uid="u2", name="api-1")
    node = replace(NODE, pods={"u2": api}, pod_by_netns={POD_NETNS: "u2"}, version=2)
    totals.add(*died((POD_NETNS, 12, 4)), context(node))
    assert told(totals, node) == [("api-1", "NETFILTER_DROP", 4), ("web-1", "NETFILTER_DROP", 3)]


def test_another_namespace_with_the_same_number_has_its_own():
    """What died late in the first, which is known to be gone, is still its own."""
    totals = DropTotals()
    for packets, name, gone in ((3, "red", False), (2, "red", True), (9, "green", False)):
        spaces = {BLUE: Namespace(BLUE, name, gone=gone)}
        node = replace(NODE, namespaces=spaces, version=packets)
        totals.add(*died((BLUE, 2, packets)), context(node))
    assert told(totals, node) == [("green", "NOT_SPECIFIED", 9), ("red", "NOT_SPECIFIED", 5)]


def test_memory_is_bounded_and_no_packet_is_missing():
    totals, last = DropTotals(most_places=8, most_groups=16), 100
    for inode in range(last):
        totals.add(*died((inode + 1, 12, 2)), context())
    records = totals.records(context())
    assert sum(one["packets"] for one in records) == 2 * last
    assert len(records) == 8 + 16 + 1 - 1
    assert max(records, key=lambda one: one["packets"]) == {
        "type": "summary", "drop.reason": "NETFILTER_DROP", "drop.location": "nft_do_chain+0x5",
        "packets": 2 * (last - 8 - 15), "bytes": 20 * (last - 8 - 15), "shown": 0,
    }  # fmt: skip
