"""Netlink: the kernel's own answers for our own namespace, and made ones for the odd cases."""

import os
import socket

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg

from tracer.inventory import namespaces, rtnl
from tracer.inventory.facts import Link, View

OWN = "/proc/self/ns/net"


def link(kind=rtnl.RTM_NEWLINK, family=socket.AF_UNSPEC, index=17, **attributes):
    message = ifinfmsg()
    message["header"]["type"] = kind
    message["family"], message["index"] = family, index
    message["attrs"] = [(f"IFLA_{name.upper()}", value) for name, value in attributes.items()]
    message.encode()
    return kind, bytes(message.data), 0


def address(kind=rtnl.RTM_NEWADDR, index=17, family=socket.AF_INET, **attributes):
    message = ifaddrmsg()
    message["header"]["type"] = kind
    message["family"], message["index"] = family, index
    message["attrs"] = [(f"IFA_{name.upper()}", value) for name, value in attributes.items()]
    message.encode()
    return kind, bytes(message.data), 0


VETH = {
    "ifname": "veth1",
    "link": 2,
    "link_netnsid": 5,
    "master": 3,
    "address": "02:00:00:00:00:01",
    "linkinfo": {"attrs": [("IFLA_INFO_KIND", "veth")]},
}


def test_our_own_namespace_needs_no_right():
    inode = os.stat(OWN).st_ino  # noqa: PTH116 - the link's target
    reading = namespaces.read_views({inode: OWN}, inode, OWN)
    assert not reading.warnings
    assert reading.views[inode].links[1].name == "lo"


def test_a_path_that_leads_elsewhere_is_left_out():
    inode = os.stat(OWN).st_ino  # noqa: PTH116 - same
    reading = namespaces.read_views({inode + 1: OWN, 5: "/nowhere"}, inode, OWN)
    assert (reading.views, reading.nsids, reading.warnings) == ({}, {}, ())


def test_a_node_that_cannot_be_entered_is_a_warning():
    reading = namespaces.read_views({5: "/nowhere"}, 5, "/nowhere")
    assert not reading.views
    assert "/nowhere" in reading.warnings[0]


def test_a_link_comes_changes_and_goes():
    view = View()
    assert rtnl.apply(view, *link(**VETH))
    assert view.links == {17: Link(17, "veth1", "veth", "02:00:00:00:00:01", 3, 2, 5)}
    assert not rtnl.apply(view, *link(**VETH)), "the same again is no change"
    assert rtnl.apply(view, *link(**VETH | {"ifname": "veth2"}))
    assert rtnl.apply(view, *address(local="10.0.0.1", address="10.0.0.9"))
    assert rtnl.apply(view, *link(rtnl.RTM_DELLINK, ifname="veth2"))
    assert not view.links
    assert not view.addresses


def test_a_port_that_leaves_its_bridge_still_exists():
    view = View()
    rtnl.apply(view, *link(**VETH))
    assert not rtnl.apply(view, *link(rtnl.RTM_DELLINK, socket.AF_BRIDGE, ifname="veth1"))
    assert 17 in view.links


def test_addresses_come_and_go():
    view = View()
    six = {"family": socket.AF_INET6, "address": "fd00:0:0:0::8"}
    assert rtnl.apply(view, *address(local="10.0.0.1", address="10.0.0.9"))
    assert rtnl.apply(view, *address(**six))
    assert list(view.addresses[17]) == ["10.0.0.1", "fd00::8"]
    assert not rtnl.apply(view, *address(**six))
    assert rtnl.apply(view, *address(rtnl.RTM_DELADDR, **six))
    assert list(view.addresses[17]) == ["10.0.0.1"]


def nsid(kind, number):
    message = nsidmsg()
    message["header"]["type"] = kind
    message["attrs"] = [("NETNSA_NSID", number)]
    message.encode()
    return kind, bytes(message.data), 0


def test_ids_come_and_go():
    view = View(nsids={5: 201})
    assert rtnl.apply(view, *nsid(rtnl.RTM_NEWNSID, 6)), "somebody new: look who"
    assert not rtnl.apply(view, *nsid(rtnl.RTM_NEWNSID, 5))
    assert rtnl.apply(view, *nsid(rtnl.RTM_DELNSID, 5))
    assert not view.nsids
    assert not rtnl.apply(view, *nsid(rtnl.RTM_DELNSID, 5))


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_to_an_end(data):
    for kind, offset in rtnl.messages(data):
        assert 0 <= offset <= len(data) - rtnl.HEADER.size
        assert 0 <= kind < 1 << 16
