"""When tc filters are read, and what is believed meanwhile."""

import errno

import pytest

from tracer import tc_reading
from tracer.model import Namespace, Node, TcFilter

NETNS, OTHER = 5, 6
ONE, TWO = (TcFilter(2, "ingress", "bpf", name) for name in ("one", "two"))


class Kernel:
    """Filters of namespaces, a clock, and what CPU time a reading takes."""

    def __init__(self):
        self.filters = {}
        self.now_s = 100.0
        self.used_s = self.takes_s = 0.0
        self.reads = []

    def read(self, _node, netns):
        self.reads.append(netns)
        self.used_s += self.takes_s
        found = self.filters.get(netns)
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    monkeypatch.setattr(tc_reading, "_read", made.read)
    monkeypatch.setattr(tc_reading.time, "monotonic", lambda: made.now_s)
    monkeypatch.setattr(tc_reading.time, "process_time", lambda: made.used_s)
    return made


def node(*namespaces):
    return Node("n", 1, namespaces={netns: Namespace(netns) for netns in namespaces})


def test_read_where_packets_are_and_again_when_stale(kernel):
    reader, here = tc_reading.TcReader(), node(NETNS, OTHER)
    kernel.filters = {NETNS: (ONE,), OTHER: ()}
    assert reader.look(here, [NETNS]) == []
    assert reader.over(here).tc_filters == {NETNS: (ONE,)}
    kernel.filters[NETNS] = (TWO,)
    reader.look(here, [NETNS, OTHER])
    assert reader.over(here).tc_filters == {NETNS: (ONE,), OTHER: ()}
    kernel.now_s += tc_reading.FRESH_S
    reader.look(here, [NETNS])
    assert reader.over(here).tc_filters == {NETNS: (TWO,), OTHER: ()}
    assert kernel.reads == [NETNS, OTHER, NETNS]


def test_many_filters_are_read_less_often(kernel):
    reader, here = tc_reading.TcReader(), node(NETNS)
    kernel.takes_s = 0.1
    reader.look(here, [NETNS])
    kernel.now_s += 9.9
    reader.look(here, [NETNS])
    assert len(kernel.reads) == 1
    kernel.now_s += 0.2
    reader.look(here, [NETNS])
    assert len(kernel.reads) == 2


def test_the_node_is_the_same_as_long_as_nothing_changes(kernel):
    reader, here = tc_reading.TcReader(), node(NETNS)
    kernel.filters = {NETNS: (ONE,)}
    reader.look(here, [NETNS])
    first = reader.over(here)
    kernel.now_s += tc_reading.FRESH_S
    reader.look(here, [NETNS])
    assert reader.over(here) is first
    assert reader.over(node(NETNS)) is not first


def test_what_cannot_be_read_is_said_once(kernel):
    reader, here = tc_reading.TcReader(), node(NETNS)
    kernel.filters = {NETNS: OSError(errno.EPERM, "Operation not permitted")}
    (warning,) = reader.look(here, [NETNS])
    assert "netns 5: Operation not permitted" in warning
    kernel.now_s += tc_reading.FRESH_S
    assert reader.look(here, [NETNS]) == []
    assert len(kernel.reads) == 2
    assert reader.over(here).tc_filters == {}


def test_of_a_namespace_that_is_closing_the_last_is_kept(kernel):
    reader = tc_reading.TcReader()
    kernel.filters = {NETNS: (ONE,)}
    reader.look(node(NETNS), [NETNS])
    kernel.now_s += tc_reading.FRESH_S
    kernel.filters = {}
    reader.look(node(NETNS), [NETNS])
    assert reader.over(node(NETNS)).tc_filters == {NETNS: (ONE,)}
    reader.look(node(OTHER), [OTHER])
    assert reader.over(node(OTHER)).tc_filters == {}
