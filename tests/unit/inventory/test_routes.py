"""Routes: made messages for the odd cases, and the kernel's own answers held against /proc."""

import socket
from ipaddress import ip_address
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from tracer.inventory import routes
from tracer.inventory.routes import Routes
from tracer.model import Device, Namespace, Node, Route

OWN = Path("/proc/thread-self/ns/net")


def message(family=socket.AF_INET, bits=24, table=254, **attributes):
    made = rtmsg()
    made["family"], made["dst_len"], made["table"] = family, bits, table
    made["attrs"] = [(f"RTA_{name.upper()}", value) for name, value in attributes.items()]
    made.encode()
    return bytes(made.data), 0


@pytest.mark.parametrize(
    ("made", "route"),
    [
        (message(dst="10.244.9.0", oif=7), Route(bytes((10, 244, 9, 0)), 24, 7)),
        (message(bits=0, oif=7), Route(bytes(4), 0, 7)),
        (message(dst="10.244.9.0"), Route(bytes((10, 244, 9, 0)), 24, 0)),
        (message(dst="10.244.9.0", oif=7, table=255), None),
        (message(dst="10.244.9.0", oif=7, table=0), None),
        (message(socket.AF_INET6, 0, oif=3), Route(bytes(16), 0, 3)),
        (message(socket.AF_INET6, 16, dst="fd00::", oif=3),
         Route(ip_address("fd00::").packed, 16, 3)),
        (message(28, 20, oif=3), None),
    ],
)  # fmt: skip
def test_a_message(made, route):
    assert routes.decoded(*made) == route


def node(kind):
    netns = OWN.stat().st_ino
    return Node(
        "n1",
        netns,
        namespaces={netns: Namespace(netns, "node", 1)},
        devices={(netns, 9): Device(netns, 9, "t0", kind=kind)},
    )


def shown_by_proc():
    """{(network, bits, device)} of IPv4; routes without a device have the name `*`."""
    words = [line.split() for line in Path("/proc/thread-self/net/route").read_text().splitlines()]
    return {
        (int(network, 16).to_bytes(4, "little"), int(mask, 16).bit_count(), name)
        for name, network, *_, mask, _, _, _ in words[1:]
        if name != "*"
    }


def test_what_the_kernel_tells_is_what_proc_shows():
    names = dict(socket.if_nameindex())
    for _ in range(50):  # others may change routes meanwhile
        shown, found = shown_by_proc(), Routes().of(node("vxlan"))
        told = {(one.network, one.bits, names.get(one.ifindex)) for one in found if one.ifindex}
        if {one for one in told if len(one[0]) == 4} == shown:
            return
    raise AssertionError(f"told {told}, shown {shown}")


def test_a_node_without_tunnels_is_not_asked(monkeypatch):
    monkeypatch.setattr(routes, "run_in", pytest.fail)
    assert Routes().of(node("bridge")) == ()


def test_routes_that_cannot_be_read_stay_as_they_were(monkeypatch):
    asked = Routes()
    before = asked.of(node("wireguard"))
    asked._due_s = 0
    monkeypatch.setattr(routes, "run_in", lambda *_: (_ for _ in ()).throw(OSError(1, "no")))
    assert asked.of(node("wireguard")) is before
