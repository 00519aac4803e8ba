"""Which namespaces are read again, when, and what an event from an unknown one causes."""

import socket
import struct

import pytest
from test_rtnl import address, nsid

from tracer.inventory import collect, rtnl
from tracer.inventory.collect import Collector
from tracer.inventory.facts import Link, Paths, View
from tracer.inventory.namespaces import Reading
from tracer.inventory.settling import LOOKS_S, Settling

NODE, POD, OTHER = 100, 201, 202


class Kernel:
    """What `namespaces.read_views` would find; remembers what was asked."""

    def __init__(self):
        self.nsids = {}
        self.devices = {NODE: {}, POD: {}, OTHER: {}}
        self.reads = []

    def read_views(self, handles, _node, _path):
        self.reads.append(set(handles))
        views = {
            inode: View({2: Link(2, "eth0")}, {2: dict(self.devices[inode])}) for inode in handles
        }
        return Reading(views, {n: inode for n, inode in self.nsids.items() if inode in handles})


class Events:
    """A netlink socket with messages waiting: (id of the origin or None, message)."""

    def __init__(self, *waiting):
        self.waiting = list(waiting)

    def recvmsg(self, _size, _ancillary):
        if not self.waiting:
            raise BlockingIOError
        origin, (_, data, _) = self.waiting.pop(0)
        note = (rtnl.SOL_NETLINK, rtnl.NETLINK_LISTEN_ALL_NSID, struct.pack("=i", origin or 0))
        return data, [note] if origin is not None else [], 0, None


@pytest.fixture
def kernel(monkeypatch):
    made = Kernel()
    monkeypatch.setattr(collect.namespaces, "read_views", made.read_views)
    return made


@pytest.fixture
def started(kernel, tmp_path, monkeypatch):
    """A collector that has settled; the pod has id 5 on the node, the other namespace none."""
    for pid, netns in ((1, NODE), (2, POD), (3, OTHER)):
        (tmp_path / str(pid) / "ns").mkdir(parents=True)
        (tmp_path / str(pid) / "ns" / "net").symlink_to(f"net:[{netns}]")
        (tmp_path / str(pid) / "cgroup").write_text("0::/\n")
    clock = [1000.0]
    monkeypatch.setattr(collect.time, "monotonic", lambda: clock[0])
    kernel.nsids[5] = POD
    made = Collector(Paths(tmp_path, (), tmp_path, (), (), ()), ("proc", "netlink"))
    made.collect()
    clock[0] += LOOKS_S[-1]
    made.collect()
    kernel.reads.clear()
    return made


def test_only_what_cannot_be_heard_is_read_again(kernel, started):
    kernel.devices[OTHER] = {"10.0.0.2": None}
    facts = started.collect()
    assert kernel.reads == [{OTHER}]
    assert list(facts.views[OTHER].addresses[2]) == ["10.0.0.2"]


def test_an_event_of_a_known_id_is_applied(kernel, started):
    assert started.follow(Events((5, address(index=2, local="10.0.0.1"))))
    assert list(started.views[POD].addresses[2]) == ["10.0.0.1"]
    assert kernel.reads == []


def test_an_event_of_an_unknown_id_has_its_namespace_read(kernel, started):
    """Its id came after the namespace was read: whose it is must be asked, and all read again."""
    kernel.nsids[6], kernel.devices[OTHER] = OTHER, {"10.0.0.2": None}
    assert started.follow(Events((6, address(index=2, local="10.0.0.2"))))
    assert list(started.collect().views[OTHER].addresses[2]) == ["10.0.0.2"]
    started.follow(Events((6, address(index=2, local="10.0.0.3"))))
    assert list(started.views[OTHER].addresses[2]) == ["10.0.0.2", "10.0.0.3"]


def test_a_namespace_whose_id_has_gone_is_not_trusted(kernel, started):
    """The kernel gives inodes out again: the same number may be another pod's by now."""
    kernel.devices[POD] = {"10.0.0.9": None}
    assert started.follow(Events((None, nsid(rtnl.RTM_DELNSID, 5))))
    assert list(started.collect().views[POD].addresses[2]) == ["10.0.0.9"]


def test_without_the_right_to_hear_others_all_are_read(kernel, started):
    started.is_deaf = True
    started.collect()
    assert kernel.reads == [{POD, OTHER}]


def test_lost_events_forget_everything(kernel, started):
    class Overrun(Events):
        def recvmsg(self, _size, _ancillary):
            raise OSError(105, "No buffer space available")

    assert started.follow(Overrun())
    started.collect()
    assert kernel.reads == [{NODE, POD, OTHER}]


def test_a_warning_goes_with_its_cause(started, monkeypatch):
    failing = Reading(failures=["/proc/3/ns/net: Permission denied"])
    monkeypatch.setattr(collect.namespaces, "read_views", lambda *_: failing)
    assert started.collect().warnings
    (started.paths.proc / "3" / "ns" / "net").unlink()
    (started.paths.proc / "3" / "ns" / "net").symlink_to(f"net:[{NODE}]")
    assert not started.collect().warnings


def test_without_netlink_nothing_is_opened(tmp_path):
    assert Collector(Paths(tmp_path), ("proc",)).open_events() is None


def test_the_nodes_own_events_are_opened():
    opened = Collector(Paths(), ("netlink",)).open_events()
    with opened:
        assert opened.family == socket.AF_NETLINK


def test_a_new_namespace_is_looked_at_a_few_times():
    settling = Settling()
    settling.look((), {1, 2}, now=0.0)
    assert settling.next_s(0.0) == float("inf"), "a settled node costs nothing"
    settling.look({3}, {1, 2, 3}, now=10.0)
    looks, now = [], 10.0
    while (now := settling.next_s(now)) != float("inf"):
        looks.append(now - 10.0)
        settling.look({3}, {1, 2, 3}, now)
    assert looks == pytest.approx(LOOKS_S)
    assert not settling.births


def test_at_the_first_look_only_the_unheard_are_young():
    settling = Settling()
    settling.look({2}, {1, 2}, now=0.0)
    assert settling.births == {2: 0.0}


def test_who_has_gone_is_not_waited_for():
    settling = Settling()
    settling.look((), {1}, now=0.0)
    settling.look((), {1, 2}, now=1.0)
    settling.look((), {1}, now=1.1)
    assert settling.next_s(1.1) == float("inf")
