"""Builders of hop records, and the recordings of tests/data/paths."""

import ipaddress
import json
from functools import cache
from pathlib import Path

import numpy as np

from tracer.analysis.addresses import address_bytes
from tracer.analysis.drops import Context
from tracer.layout import layout
from tracer.model import Device, Namespace, Node, Pod

RECORDINGS = Path(__file__).parents[2] / "data" / "paths"
NODE_NETNS, CLIENT, SERVER = 4, 5, 6
HOP = layout().enums["hop"]
FLAG = layout().enums["hop_flag"]
ENTER, LEAVE, QUEUE, XMIT = HOP.HOP_NF_ENTER, HOP.HOP_NF_LEAVE, HOP.HOP_DEV_QUEUE, HOP.HOP_DEV_XMIT
NETIF_RX, RX, ROUTE, COPIED = HOP.HOP_NETIF_RX, HOP.HOP_DEV_RX, HOP.HOP_ROUTE, HOP.HOP_COPIED
CONSUMED, DROPPED, TCP_RECEIVE = HOP.HOP_CONSUMED, HOP.HOP_DROPPED, HOP.HOP_TCP_RECEIVE
RETRANSMIT = HOP.HOP_RETRANSMIT
FIRST, CLONE, GSO, JOINED, GONE = (
    FLAG.HOP_FIRST, FLAG.HOP_CLONE, FLAG.HOP_GSO, FLAG.HOP_JOINED, FLAG.HOP_GONE,
)  # fmt: skip
PRE, IN, FORWARD, OUT, POST = range(5)
TCP, UDP = 6, 17
A, B = ("10.1.0.2", 4000), ("10.1.0.3", 53)


def set_tuple(one, source=A, goal=B, protocol=UDP):
    one["saddr"] = np.frombuffer(address_bytes(source[0]), np.uint8)
    one["daddr"] = np.frombuffer(address_bytes(goal[0]), np.uint8)
    one["sport"], one["dport"], one["protocol"] = source[1], goal[1], protocol
    one["ethertype"] = 0x0800 if "." in source[0] else 0x86DD


def frame(source, goal, protocol, ttl, size, seq=0):
    """An Ethernet header and an IPv4 packet of `size` bytes, its first 66 bytes."""
    flags = 0x5000 | 0x18
    l4 = source[1].to_bytes(2, "big") + goal[1].to_bytes(2, "big") + seq.to_bytes(4, "big")
    l4 += bytes(4) + flags.to_bytes(2, "big") + bytes(6)
    ip = bytes((0x45, 0)) + size.to_bytes(2, "big") + bytes((0, 7, 0x40, 0, ttl, protocol, 0, 0))
    ends = (ipaddress.ip_address(end[0]).packed for end in (source, goal))
    return bytes(12) + b"\x08\x00" + ip + b"".join(ends) + l4


def hop(kind, time_ns, packet=1, **given):
    """One `struct hop_event`; `nf` is the netfilter hook, `source` and `goal` its ends."""
    row = np.zeros(1, layout().structs["hop_event"])
    source, goal = given.pop("source", A), given.pop("goal", B)
    protocol, size = given.pop("protocol", UDP), given.pop("bytes", 100)
    data = frame(source, goal, protocol, given.pop("ttl", 64), size, given.pop("seq", 0))
    row["packet"][0, : len(data)] = np.frombuffer(data, np.uint8)
    values = {
        "hop": kind, "time_ns": time_ns, "packet_id": packet, "skb": 0x1000 + packet,
        "head": packet, "netns": NODE_NETNS, "ifindex": 2, "bytes": size,
        "captured_bytes": len(data), "has_mac": 1, "signature": packet * 2 + 1,
    }  # fmt: skip
    if "nf" in given:
        values |= {"nf_family": 2, "nf_hook": given.pop("nf")}
    entry = given.pop("ct", None)
    for name, value in (values | given).items():
        row[name] = value
    set_tuple(row["tuple"][0], source, goal, protocol)
    if entry:
        set_conntrack(row["ct"][0], protocol=protocol, **entry)
    return row


def set_conntrack(one, *, orig, reply, info=2, status=0, protocol=UDP):
    one["present"], one["info"], one["status"] = 1, info, status
    set_tuple(one["orig"], *orig, protocol)
    set_tuple(one["reply"], *reply, protocol)


def drop(time_ns, packet=1, **given):
    row = np.zeros(1, layout().structs["drop_event"])
    values = {"time_ns": time_ns, "packet_id": packet, "netns": NODE_NETNS, "ifindex": 2,
              "skb": 0x1000 + packet, "reason": 3, "location": 7, "bytes": 100}  # fmt: skip
    data = frame(A, B, UDP, 64, 100)
    row["packet"][0, : len(data)] = np.frombuffer(data, np.uint8)
    row["captured_bytes"] = len(data)
    set_tuple(row["tuple"][0])
    for name, value in (values | given).items():
        row[name] = value
    return row


def rows(*some, struct="hop_event"):
    return np.concatenate(some) if some else np.empty(0, layout().structs[struct])


def no_drops():
    return rows(struct="drop_event")


def context():
    """A node with two pods: client in CLIENT, web in SERVER; device 2 of each is a veth."""
    devices = [
        Device(NODE_NETNS, 2, "vc", "veth"), Device(NODE_NETNS, 3, "vs", "veth"),
        Device(NODE_NETNS, 9, "ens3"), Device(CLIENT, 2, "eth0", "veth"),
        Device(SERVER, 2, "eth0", "veth"),
    ]  # fmt: skip
    pods = {
        "c": Pod("c", "shop", "client-0", CLIENT, addresses=("10.1.0.2",)),
        "w": Pod("w", "shop", "web-0", SERVER, addresses=("10.1.0.3",)),
    }
    node = Node(
        "n1", NODE_NETNS, pods, {CLIENT: Namespace(CLIENT, "cni-c")},
        {device.key: device for device in devices}, {CLIENT: "c", SERVER: "w"},
        pod_by_address={"10.1.0.2": "c", "10.1.0.3": "w"},
    )  # fmt: skip
    return Context(node, {3: "NO_SOCKET", 5: "QUEUE_PURGE"}, lambda _: "ip_rcv+0x1", 0)


@cache
def recording(name):
    """(hops, drops, context) of a file made by record.py on a real kernel."""
    with np.load(RECORDINGS / f"{name}.npz") as file:
        hops, drops, names = file["hops"], file["drops"], json.loads(str(file["names"]))
    spaces = {
        int(inode): Namespace(int(inode), name) for inode, name in names["namespaces"].items()
    }
    inode = {space.name: number for number, space in spaces.items()}
    devices = (Device(*device) for device in names["devices"])
    pods = {"c": Pod("c", "shop", "client-0", inode["tpc"], addresses=(f"{name}-c",)),
            "w": Pod("w", "shop", "web-0", inode["tps"])}  # fmt: skip
    node = Node(
        "n1", inode["tpn"], pods, spaces, {device.key: device for device in devices},
        {inode["tpc"]: "c", inode["tps"]: "w"},
    )  # fmt: skip
    symbols = names["symbols"]
    reasons = {2: "NOT_SPECIFIED", 3: "NO_SOCKET", 12: "NETFILTER_DROP", 104: "QUEUE_PURGE"}
    return hops, drops, Context(node, reasons, lambda a: symbols.get(str(a), hex(a)), 0)
