"""Drop events and counts of the kernel become records that name pods, places and reasons."""

import struct
from socket import inet_aton

import numpy as np
import pytest

from tracer.analysis.addresses import address_bytes
from tracer.analysis.drops import Context, drop_record
from tracer.layout import layout
from tracer.model import Device, Namespace, Node, Pod

NODE_NETNS, POD_NETNS = 4026531833, 4026532001
WEB = Pod("u1", "shop", "web-1", POD_NETNS, addresses=("10.244.0.5",))
API = Pod("u2", "data", "api-1", 4026532002, addresses=("10.244.0.6",))
NODE = Node(
    "n1",
    NODE_NETNS,
    pods={"u1": WEB, "u2": API},
    namespaces={POD_NETNS: Namespace(POD_NETNS, "cni-1"), NODE_NETNS: Namespace(NODE_NETNS, "")},
    devices={(NODE_NETNS, 7): Device(NODE_NETNS, 7, "veth7")},
    pod_by_netns={POD_NETNS: "u1", 4026532002: "u2"},
    pod_by_device={(NODE_NETNS, 7): "u1", (POD_NETNS, 2): "u1"},
    pod_by_address={"10.244.0.5": "u1", "10.244.0.6": "u2"},
)
CONTEXT = Context(
    NODE,
    {2: "NOT_SPECIFIED", 12: "NETFILTER_DROP"},
    lambda address: {0x1000: "nft_do_chain+0x5", 0x2000: "udp_rcv+0x1"}.get(address, hex(address)),
    wall_offset_ns=1_000_000_000,
)


def _udp(source="10.244.0.5", destination="10.244.0.6"):
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 32, 7, 0, 64, 17, 0)
        + inet_aton(source)
        + inet_aton(destination)
        + struct.pack("!HHHH", 4000, 53, 12, 0)
        + b"abcd"
    )


def _event(packet=None, **fields):
    event = np.zeros(1, layout().structs["drop_event"])[0]
    packet = _udp() if packet is None else packet
    event["tuple"]["ethertype"] = 0x0800
    raw = bytes(14) + packet
    event["packet"][: len(raw)] = np.frombuffer(raw, np.uint8)
    event["captured_bytes"], event["bytes"] = len(raw), len(packet)
    event["time_ns"], event["location"], event["reason"] = 5, 0x1000, 12
    for name, value in fields.items():
        event[name] = value
    return event


def test_a_drop_on_the_node_is_charged_to_the_pod_behind_the_device():
    record = drop_record(
        _event(netns=NODE_NETNS, ifindex=7, iif=7, ifname=b"veth7", direction=1), CONTEXT
    )
    assert record["k8s.pod.name"] == "web-1"
    assert record["direction"] == "egress"
    assert (record["k8s.src.pod.name"], record["k8s.dst.pod.name"]) == ("web-1", "api-1")
    assert record["drop.reason"] == "NETFILTER_DROP"
    assert record["drop.location"] == "nft_do_chain+0x5"
    assert (record["interface.name"], record["interface.index"]) == ("veth7", 7)
    assert record["netns.name"] == "node"
    assert record["time"] == "1970-01-01T00:00:01.000000005Z"
    assert record["src.port"] == 4000
    assert "conntrack.state" not in record
    assert "drop.stack" not in record


def test_a_drop_in_the_pods_namespace_is_the_pods():
    packet = _udp("192.0.2.9", "10.244.0.5")
    record = drop_record(_event(packet, netns=POD_NETNS, ifindex=2, iif=2), CONTEXT)
    assert (record["k8s.pod.name"], record["direction"]) == ("web-1", "ingress")
    assert record["k8s.dst.pod.name"] == "web-1"
    assert "k8s.src.pod.name" not in record


@pytest.mark.parametrize(
    ("netns", "iif", "direction"),
    [(POD_NETNS, 2, "ingress"), (POD_NETNS, 0, "egress"), (NODE_NETNS, 7, "egress"),
     (NODE_NETNS, 0, "ingress")],
)  # fmt: skip
def test_with_unknown_addresses_the_way_it_came_tells_the_direction(netns, iif, direction):
    ifindex = 2 if netns == POD_NETNS else 7
    packet = _udp("203.0.113.1", "203.0.113.2")
    record = drop_record(_event(packet, netns=netns, ifindex=ifindex, iif=iif), CONTEXT)
    assert record["direction"] == direction


def test_without_a_pod_the_record_still_tells_the_place():
    record = drop_record(_event(_udp("192.0.2.1", "192.0.2.2"), netns=NODE_NETNS), CONTEXT)
    assert "k8s.pod.name" not in record
    assert "direction" not in record
    assert record["netns"] == NODE_NETNS


def test_a_connection_after_nat_leads_to_the_pod():
    event = _event(_udp("192.0.2.1", "198.51.100.9"), netns=NODE_NETNS, direction=2)
    event["pod_address"] = np.frombuffer(address_bytes("10.244.0.6"), np.uint8)
    event["ct"]["present"], event["ct"]["info"], event["ct"]["status"] = 1, 3, 0b1110
    for side, ends in (("orig", ("10.244.0.6", "198.51.100.9")), ("reply", ("1.1.1.1", "2.2.2.2"))):
        entry = event["ct"][side]
        entry["protocol"], entry["ethertype"] = 17, 0x0800
        for name, text in zip(("saddr", "daddr"), ends, strict=True):
            entry[name] = np.frombuffer(address_bytes(text), np.uint8)
    record = drop_record(event, CONTEXT)
    assert (record["k8s.pod.name"], record["direction"]) == ("api-1", "ingress")
    assert record["conntrack.state"] == "established"
    assert record["conntrack.direction"] == "reply"
    assert record["conntrack.status"] == ["seen-reply", "assured", "confirmed"]
    assert record["conntrack.orig.src.address"] == "10.244.0.6"


def test_a_reason_without_a_name_is_never_a_bare_number():
    assert drop_record(_event(reason=0x30007), CONTEXT)["drop.reason"] == "SUBSYS_3_REASON_7"


def test_the_stack_comes_on_demand():
    event = _event()
    event["stack"][:2] = (0x1000, 0x2000)
    record = drop_record(event, CONTEXT, with_stack=True)
    assert record["drop.stack"] == ["nft_do_chain+0x5", "udp_rcv+0x1"]


def test_before_5_17_there_are_no_reasons():
    context = Context(NODE, {}, hex, 0)
    assert drop_record(_event(reason=0), context)["drop.reason"] == "NOT_SPECIFIED"
