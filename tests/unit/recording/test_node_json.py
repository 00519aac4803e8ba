"""The node survives the way through JSON, patch by patch, whatever is in it."""

import dataclasses

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model import Device, Namespace, Node, Pod
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
        {"services": {"a": 1}, "pods": {"u": {"uid": "u", "namespace": "", "name": "p", "qos": 9}}}
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
