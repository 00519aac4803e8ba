"""What a bridge did: by the hops at its ports and at itself."""

from dataclasses import replace

import pytest
from hop_rows import (
    CLIENT,
    CLONE,
    ENTER,
    FIRST,
    FORWARD,
    LEAVE,
    NODE_NETNS,
    OUT,
    POST,
    PRE,
    QUEUE,
    RX,
    XMIT,
    context,
    hop,
    no_drops,
    rows,
)

from tracer.analysis.assemble import Assembler
from tracer.analysis.paths import path_records
from tracer.model import Device

BRIDGE, PORTS, OTHER = 4, (2, 3, 5), 9


def node():
    known = context()
    devices = dict(known.node.devices)
    devices[NODE_NETNS, BRIDGE] = Device(NODE_NETNS, BRIDGE, "br0", "bridge")
    for port in PORTS:
        devices[NODE_NETNS, port] = Device(NODE_NETNS, port, f"v{port}", "veth", master=BRIDGE)
    return replace(known, node=replace(known.node, devices=devices))


def passages(*hops):
    """(device, `bridge.action`, `bridge.port`) of each hop at which a bridge is told of."""
    assembler = Assembler()
    assembler.add(rows(*hops), no_drops())
    (record,) = path_records(assembler.take(0, everything=True), node())
    found = [one for one in record["hops"] if "bridge.name" in one]
    assert {one["bridge.name"] for one in found} <= {"br0"}
    return [(x["interface.name"], x["bridge.action"], x.get("bridge.port")) for x in found]


def filtered(at, *hooks, **given):
    """What br_netfilter shows, at the bridge itself."""
    return [
        hop(kind, at + 10 * number + step, nf=nf, ifindex=BRIDGE, **given)
        for number, nf in enumerate(hooks)
        for step, kind in enumerate((ENTER, LEAVE))
    ]


CAME = hop(RX, 100, ifindex=2, flags=FIRST)


@pytest.mark.parametrize("between", [[], filtered(110, PRE, FORWARD, POST)])
def test_forwarded(between):
    left = hop(QUEUE, 200, ifindex=3), hop(XMIT, 201, ifindex=3)
    assert passages(CAME, *between, *left) == [("v2", "in", None), ("v3", "forwarded", "v2")]


def test_delivered_locally_and_routed_on():
    up = hop(RX, 150, ifindex=BRIDGE)
    out = hop(QUEUE, 200, ifindex=OTHER)
    told = [("v2", "in", None), ("br0", "delivered", "v2")]
    assert passages(CAME, *filtered(110, PRE), up, out) == told


def test_sent_by_its_host():
    way = (
        *(hop(kind, at, nf=OUT, ifindex=BRIDGE, flags=flags)
          for kind, at, flags in ((ENTER, 90, FIRST), (LEAVE, 91, 0))),
        hop(QUEUE, 100, ifindex=BRIDGE),
        hop(XMIT, 101, ifindex=BRIDGE),
        hop(QUEUE, 110, ifindex=3),
    )  # fmt: skip
    assert passages(*way) == [("v3", "forwarded", None)]


@pytest.mark.parametrize("hooks", [(), (FORWARD, POST)])
def test_flooded(hooks):
    """The copies are told one after the other; the last is the packet itself."""
    way = [CAME, *filtered(105, PRE)]
    for number, port in enumerate(PORTS[1:]):
        copy = {"skb": 0x2000, "flags": CLONE} if port == 3 else {}
        at = 200 + 100 * number
        way += [*filtered(at, *hooks, **copy), hop(QUEUE, at + 50, ifindex=port, **copy)]
    way.append(hop(RX, 500, ifindex=BRIDGE, skb=0x3000, flags=CLONE))
    assert passages(*way) == [
        ("v2", "in", None),
        ("v3", "flooded", "v2"),
        ("v5", "flooded", "v2"),
        ("br0", "delivered", "v2"),
    ]


def test_copies_of_what_its_host_sends():
    """A copy's beginning is sought where its packet was given to the bridge."""
    way = (
        hop(QUEUE, 100, ifindex=BRIDGE, flags=FIRST),
        hop(XMIT, 101, ifindex=BRIDGE),
        hop(QUEUE, 110, ifindex=3, skb=0x2000, flags=CLONE),
        hop(QUEUE, 120, ifindex=5),
    )
    assert passages(*way) == [("v3", "flooded", None), ("v5", "flooded", None)]


def test_one_port_left_and_a_group_address():
    left = hop(QUEUE, 200, ifindex=3)
    left["packet"][0, 0] = 0x33
    assert passages(CAME, left)[1] == ("v3", "flooded", "v2")


def test_hit_at_the_bridge():
    """It came in and was seen at the bridge; where it ended nobody knows."""
    assert passages(CAME, *filtered(110, PRE)) == [("v2", "in", None)]


def test_ports_without_a_bridge_between():
    """A routed packet, a port of another namespace, one whose way before is not known."""
    routed = hop(RX, 100, ifindex=OTHER, flags=FIRST), hop(QUEUE, 200, ifindex=3)
    assert passages(*routed) == []
    elsewhere = hop(XMIT, 100, netns=CLIENT, flags=FIRST), hop(QUEUE, 200, ifindex=3)
    assert passages(*elsewhere) == []
    assert passages(hop(QUEUE, 200, ifindex=3, flags=FIRST)) == []
