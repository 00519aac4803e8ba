"""Drop counts of the kernel become dropped flows that metrics add up."""

import numpy as np

from tracer.analysis.drop_sums import drop_sums
from tracer.analysis.drops import Context
from tracer.flow_table import records
from tracer.layout import layout
from tracer.metrics.series import sums
from tracer.model import Namespace, Node, Pod

NODE_NETNS, POD_NETNS, BLUE = 4026531833, 4026532001, 4026532009
LABELS = {"pod-template-hash": "7d4b9c6f5d"}
WEB = Pod("u1", "shop", "web-7d4b9c6f5d-abcde", POD_NETNS, labels=LABELS)
NODE = Node(
    "n1",
    NODE_NETNS,
    pods={"u1": WEB},
    namespaces={BLUE: Namespace(BLUE, "blue")},
    pod_by_netns={POD_NETNS: "u1"},
)
CONTEXT = Context(NODE, {3: "NO_SOCKET", 12: "NETFILTER_DROP"}, str, 0)


def counted(*rows):
    """(netns, reason, packets) each, at places of their own."""
    keys = np.zeros(len(rows), layout().structs["drop_key"])
    for at, (netns, reason, _) in enumerate(rows):
        keys[at]["netns"], keys[at]["reason"], keys[at]["location"] = netns, reason, at
    counts = np.zeros((len(rows), 2), layout().structs["drop_count"])
    counts["packets"][:, 1] = [row[2] for row in rows]
    counts["bytes"] = counts["packets"] * 100
    return keys, counts


def test_places_of_one_pod_and_reason_are_one_sum():
    table = drop_sums(
        *counted((POD_NETNS, 3, 5), (POD_NETNS, 3, 2), (POD_NETNS, 12, 1), (BLUE, 3, 9)), CONTEXT
    )
    assert sorted(sums(table, dropped=True)) == [
        (("", "NetworkNamespace", "blue", "NO_SOCKET"), 9, 900),
        (("shop", "Deployment", "web", "NETFILTER_DROP"), 1, 100),
        (("shop", "Deployment", "web", "NO_SOCKET"), 7, 700),
    ]
    assert list(sums(table, dropped=False)) == []


def test_a_namespace_without_a_name_and_the_nodes_own():
    table = drop_sums(*counted((7, 3, 1), (NODE_NETNS, 3, 2)), CONTEXT)
    assert [one.get("netns.name") for one in records(table)] == [None, "node"]
    assert {labels[2]: packets for labels, packets, _ in sums(table, dropped=True)} == {
        "": 1,
        "node": 2,
    }


def test_nothing_is_nothing():
    assert drop_sums(*counted(), CONTEXT).rows == 0
