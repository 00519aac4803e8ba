"""The node survives the way through JSON, patch by patch, whatever is in it."""

import dataclasses

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model import (
    ClusterPod,
    Device,
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Owner,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Requirement,
    Selector,
    Service,
    ServicePort,
    TcFilter,
)
from tracer.recording.node_json import NodeReader, node_patch, printable

INODES = st.integers(1, 5)
NAMES = st.text("abc/.-é", max_size=4)
TEXTS = st.lists(NAMES, max_size=2).map(tuple)
PODS = st.builds(
    Pod, NAMES, NAMES, NAMES, st.none() | INODES, st.booleans(), TEXTS,
    st.dictionaries(NAMES, NAMES, max_size=2), NAMES, NAMES, st.booleans(), st.booleans(), TEXTS,
)  # fmt: skip
KEYS = st.tuples(INODES, INODES)
DEVICES = st.builds(
    Device, INODES, INODES, NAMES, NAMES, NAMES, TEXTS, st.none() | KEYS, st.none() | INODES
)
LABELS = st.dictionaries(NAMES, NAMES, max_size=2)
PORTS = st.lists(st.builds(ServicePort, NAMES, NAMES, INODES, INODES), max_size=2).map(tuple)
CLUSTER_PODS = st.builds(
    ClusterPod, NAMES, NAMES, NAMES, TEXTS, st.booleans(), LABELS,
    st.none() | st.builds(Owner, NAMES, NAMES),
    st.lists(st.tuples(NAMES, NAMES, INODES), max_size=2).map(tuple),
)  # fmt: skip
SERVICES = st.builds(
    Service, NAMES, NAMES, NAMES, TEXTS, TEXTS, PORTS, st.booleans(), st.booleans()
)
SELECTORS = st.builds(
    Selector, LABELS, st.lists(st.builds(Requirement, NAMES, NAMES, TEXTS), max_size=1).map(tuple)
)
PEERS = st.builds(PolicyPeer, st.none() | SELECTORS, st.none() | SELECTORS, NAMES, TEXTS)
RULES = st.builds(
    PolicyRule,
    st.lists(PEERS, max_size=1).map(tuple),
    st.lists(st.builds(PolicyPort, NAMES, NAMES, INODES), max_size=1).map(tuple),
)
DIRECTIONS = st.none() | st.lists(RULES, max_size=2).map(tuple)
POLICIES = st.builds(NetworkPolicy, NAMES, NAMES, SELECTORS, DIRECTIONS, DIRECTIONS)
TC_FILTERS = st.builds(TcFilter, INODES, NAMES, NAMES, NAMES, INODES, TEXTS)
NODES = st.builds(
    Node,
    NAMES,
    INODES,
    st.dictionaries(NAMES, PODS, max_size=3),
    st.dictionaries(INODES, st.builds(Namespace, INODES, NAMES, st.none() | INODES), max_size=3),
    st.dictionaries(KEYS, DEVICES, max_size=3),
    st.dictionaries(INODES, NAMES, max_size=3),
    st.dictionaries(KEYS, NAMES, max_size=3),
    st.dictionaries(NAMES, NAMES, max_size=3),
    st.dictionaries(INODES, NAMES, max_size=3),
    TEXTS,
    INODES,
    tc_filters=st.dictionaries(INODES, st.lists(TC_FILTERS, max_size=2).map(tuple), max_size=2),
    cluster_pods=st.dictionaries(NAMES, CLUSTER_PODS, max_size=2),
    cluster_pod_by_address=LABELS,
    node_by_address=LABELS,
    owners=st.dictionaries(NAMES, st.builds(Owner, NAMES, NAMES), max_size=2),
    services=st.dictionaries(NAMES, SERVICES, max_size=2),
    service_by_address=LABELS,
    endpoint_slices=st.dictionaries(
        NAMES, st.builds(EndpointSlice, NAMES, NAMES, PORTS, TEXTS, TEXTS), max_size=2
    ),
    network_policies=st.dictionaries(NAMES, POLICIES, max_size=2),
    namespace_labels=st.dictionaries(NAMES, LABELS, max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(NODES, min_size=1, max_size=4))
def test_patches_make_each_node_of_the_one_before(nodes):
    reader, before = NodeReader(), None
    for node in nodes:
        patch = orjson.loads(orjson.dumps(node_patch(before, node)))
        assert reader.apply(patch) == node
        before = node


def test_only_what_changed_is_in_a_patch():
    one = Node("n", 1, pods={"a": Pod("a", "x", "y"), "b": Pod("b", "x", "z")}, warnings=("w",))
    two = dataclasses.replace(
        one, pods={"b": one.pods["b"], "c": Pod("c", "", "")}, warnings=(), version=1
    )
    assert node_patch(one, one) == {}
    assert node_patch(one, two) == {
        "pods": {"a": None, "c": {"uid": "c", "namespace": "", "name": ""}},
        "warnings": [],
        "version": 1,
    }


def test_what_a_later_model_knows_is_ignored():
    node = NodeReader().apply(
        {"weather": {"a": 1}, "pods": {"u": {"uid": "u", "namespace": "", "name": "p", "qos": 9}}}
    )
    assert node.pods == {"u": Pod("u", "", "p")}


@pytest.mark.parametrize(
    "patch",
    [[], {"pods": []}, {"name": 1}, {"version": True}, {"version": "1"}, {"warnings": [1]},
     {"warnings": "w"}, {"pods": {"u": []}}, {"pods": {"u": {"uid": "u"}}},
     {"namespaces": {"x": {"inode": 1}}}, {"namespaces": {"1/2": {"inode": 1}}},
     {"devices": {"1/2": {"netns": 1, "ifindex": 2, "name": "e", "peer": [1]}}},
     {"devices": {"1": {"netns": 1, "ifindex": 2, "name": "e"}}},
     {"pods": {"u": {"uid": "u", "namespace": "", "name": "", "labels": {"a": 1}}}}],
)  # fmt: skip
def test_anything_else_is_refused(patch):
    with pytest.raises((ValueError, TypeError)):
        NodeReader().apply(patch)


def test_printable():
    assert printable("web-1 é") == "web-1 é"
    assert printable("a\x1b[31m\nb\x9b") == "a?[31m?b?"
