"""Where tc sent a packet: by what the kernel says, and where it does not, by what came next."""

from dataclasses import replace

import pytest
from hop_rows import (
    CLIENT,
    CLONE,
    ENTER,
    FIRST,
    FLAG,
    LEAVE,
    NETIF_RX,
    NODE_NETNS,
    POST,
    PRE,
    QUEUE,
    ROUTE,
    RX,
    SERVER,
    XMIT,
    context,
    hop,
    no_drops,
    rows,
)

from tracer.analysis.assemble import Assembler
from tracer.analysis.paths import path_records
from tracer.model import Device, TcFilter

SENT, SENT_IN = FLAG.HOP_REDIRECTED, FLAG.HOP_REDIRECTED | FLAG.HOP_FROM_INGRESS
CAME, TO, PORT, BRIDGE = 2, 3, 5, 4
FILTERS = (
    TcFilter(CAME, "ingress", "bpf", "from_pod", 7),
    TcFilter(CAME, "egress", "u32", actions=("mirred",)),
    TcFilter(PORT, "ingress", "tcx", "", 9),
)


def known(filters=FILTERS, inside="veth"):
    """2 and 3 are veths, the one's peer is in CLIENT, the other's in SERVER; 5 a port of 4."""
    made = context()
    devices = [
        Device(NODE_NETNS, CAME, "lxc1", "veth", peer=(CLIENT, 2)),
        Device(NODE_NETNS, TO, "lxc2", "veth", peer=(SERVER, 2)),
        Device(NODE_NETNS, BRIDGE, "br0", "bridge"),
        Device(NODE_NETNS, PORT, "port5", "veth", master=BRIDGE),
        Device(NODE_NETNS, 6, "port6", "veth", master=BRIDGE),
        Device(SERVER, 2, "eth0", inside, peer=(NODE_NETNS, TO)),
    ]
    devices = {**made.node.devices, **{device.key: device for device in devices}}
    given = {} if filters is None else {NODE_NETNS: filters}
    return replace(made, node=replace(made.node, devices=devices, tc_filters=given))


def record_of(*hops, filters=FILTERS, **given):
    assembler = Assembler()
    assembler.add(rows(*hops), no_drops())
    (record,) = path_records(assembler.take(0, everything=True), known(filters, **given))
    return record


def told(*hops, **given):
    """Number of the hop → how, and from where it was redirected."""
    found = {}
    for number, one in enumerate(record_of(*hops, **given)["hops"]):
        if "tc.redirect.action" in one:
            place = one.get("tc.redirect.interface.name"), one["tc.redirect.hook"]
            sure = [] if "tc.redirect.inferred" not in one else ["inferred"]
            found[number] = (one["tc.redirect.action"], *place, *sure)
    return found


BEGIN = hop(RX, 100, ifindex=CAME, flags=FIRST)


def test_the_kernel_says_so_until_it_is_received():
    way = [
        BEGIN,
        hop(QUEUE, 110, ifindex=TO, flags=SENT_IN),
        hop(XMIT, 111, ifindex=TO, flags=SENT_IN),
        hop(NETIF_RX, 112, netns=SERVER, ifindex=2, flags=SENT_IN),
        hop(RX, 113, netns=SERVER, ifindex=2, flags=SENT_IN),
        hop(ENTER, 114, nf=PRE, netns=SERVER, ifindex=2),
    ]
    assert told(*way) == {1: ("redirected", "lxc1", "ingress")}
    again = hop(QUEUE, 114, netns=SERVER, ifindex=7, flags=SENT_IN)
    assert told(*way[:5], again) == {
        1: ("redirected", "lxc1", "ingress"),
        5: ("redirected", "eth0", "ingress"),
    }


def test_of_a_packet_that_was_chosen_behind_it():
    assert told(hop(QUEUE, 100, ifindex=TO, flags=FIRST | SENT_IN)) == {
        0: ("redirected", None, "ingress")
    }


def test_at_the_egress_of_the_device_that_it_was_to_leave_by():
    left = hop(QUEUE, 120, ifindex=TO, flags=SENT)
    hooks = [hop(kind, 110 + kind, nf=POST, ifindex=CAME) for kind in (ENTER, LEAVE)]
    assert told(BEGIN, *hooks, left) == {2: ("redirected", "lxc1", "egress")}
    route = hop(ROUTE, 110, ifindex=TO, out_ifindex=CAME)
    assert told(BEGIN, route, left) == {2: ("redirected", "lxc1", "egress")}
    assert told(BEGIN, left) == {1: ("redirected", None, "egress")}
    hooks = [hop(kind, 110 + kind, nf=POST, ifindex=BRIDGE) for kind in (ENTER, LEAVE)]
    assert told(BEGIN, *hooks, left) == {2: ("redirected", None, "egress")}


def test_a_mark_that_is_not_of_tc():
    hooks = [hop(kind, 110 + kind, nf=PRE, ifindex=CAME) for kind in (ENTER, LEAVE)]
    assert told(BEGIN, *hooks, hop(QUEUE, 120, ifindex=TO, flags=SENT_IN)) == {}
    assert told(BEGIN, hop(RX, 120, ifindex=CAME, flags=SENT)) == {}


@pytest.mark.parametrize("kind", [QUEUE, NETIF_RX, RX])
def test_inferred_where_a_filter_is(kind):
    assert told(BEGIN, hop(kind, 110, ifindex=TO)) == {
        1: ("redirected", "lxc1", "ingress", "inferred")
    }
    assert told(BEGIN, hop(kind, 110, ifindex=TO), filters=()) == {}
    assert told(BEGIN, hop(kind, 110, ifindex=TO), filters=None) == {}
    assert told(BEGIN, hop(kind, 110, ifindex=CAME)) == {}


def test_inferred_at_egress():
    hooks = [hop(kind, 110 + kind, nf=POST, ifindex=CAME) for kind in (ENTER, LEAVE)]
    assert told(BEGIN, *hooks, hop(QUEUE, 120, ifindex=TO)) == {
        2: ("redirected", "lxc1", "egress", "inferred")
    }
    assert told(BEGIN, *hooks, hop(QUEUE, 120, ifindex=CAME)) == {}


@pytest.mark.parametrize("changed", [{"ttl": 63}, {"bytes": 120}])
def test_what_was_changed_may_have_gone_another_way(changed):
    assert told(BEGIN, hop(QUEUE, 110, ifindex=TO, **changed)) == {}


def test_what_was_routed_was_not_redirected():
    route = hop(ROUTE, 105, ifindex=CAME, out_ifindex=TO)
    assert told(BEGIN, route, hop(QUEUE, 110, ifindex=TO)) == {}
    hooks = [hop(kind, 105 + kind, nf=PRE, ifindex=CAME) for kind in (ENTER, LEAVE)]
    assert told(BEGIN, *hooks, hop(QUEUE, 120, ifindex=TO)) == {}


def test_what_a_bridge_does_is_not_inferred_to_be_redirected():
    came = hop(RX, 100, ifindex=PORT, flags=FIRST)
    for kind, ifindex in ((QUEUE, 6), (RX, BRIDGE)):
        record = record_of(came, hop(kind, 110, ifindex=ifindex))
        assert [one.get("bridge.name") for one in record["hops"]] == ["br0", "br0"]
        assert not any("tc.redirect.action" in one for one in record["hops"])


def test_what_tc_does_no_bridge_did():
    came = hop(RX, 100, ifindex=PORT, flags=FIRST)
    record = record_of(came, hop(QUEUE, 110, ifindex=6, flags=SENT_IN))
    assert not any("bridge.name" in one for one in record["hops"])
    assert record["hops"][1]["tc.redirect.filters"] == ["tcx id 9"]


def test_a_copy_is_mirrored():
    copy = hop(QUEUE, 110, ifindex=TO, skb=9, flags=CLONE)
    rest = hop(ENTER, 120, nf=PRE, ifindex=CAME), hop(LEAVE, 121, nf=PRE, ifindex=CAME)
    assert told(BEGIN, copy, *rest) == {1: ("mirrored", "lxc1", "ingress", "inferred")}


def in_pod():
    return hop(ENTER, 120, nf=PRE, netns=SERVER, ifindex=2)


def test_in_the_pod_without_a_crossing():
    record = record_of(BEGIN, in_pod())
    assert record["hops"][1]["tc.redirect.peer"] == "lxc2"
    peer = ("redirected to peer", "lxc1", "ingress", "inferred")
    assert told(BEGIN, in_pod()) == {1: peer}
    route = hop(ROUTE, 110, ifindex=CAME, out_ifindex=TO)  # a program asked for it
    assert told(BEGIN, route, in_pod()) == {2: peer}
    assert told(BEGIN, in_pod(), filters=None) == {1: peer}
    assert told(BEGIN, in_pod(), filters=FILTERS[1:]) == {}


def test_a_device_on_another_one_needs_no_crossing():
    assert told(BEGIN, in_pod(), inside="macvlan") == {}


def test_a_crossing_is_none():
    way = [
        hop(QUEUE, 110, ifindex=TO), hop(XMIT, 111, ifindex=TO),
        hop(NETIF_RX, 112, netns=SERVER, ifindex=2), hop(RX, 113, netns=SERVER, ifindex=2),
        in_pod(),
    ]  # fmt: skip
    hooks = [hop(kind, 101 + kind, nf=PRE, ifindex=CAME) for kind in (ENTER, LEAVE)]
    assert told(BEGIN, *hooks, *way) == {}


def test_what_tc_runs_is_told_where_a_packet_passes_it():
    out = hop(QUEUE, 90, ifindex=CAME, flags=FIRST), hop(XMIT, 91, ifindex=CAME)
    first, second, third = record_of(*out, hop(RX, 100, ifindex=CAME))["hops"]
    assert first["tc.filters"] == ["u32: mirred"]
    assert "tc.filters" not in second
    assert third["tc.filters"] == ["bpf from_pod id 7"]
