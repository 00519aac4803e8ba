"""Hops and drops → frames of a capture file: bytes, device, and a comment that tells the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.branches import HOP
from tracer.analysis.netfilter import netfilter_place
from tracer.analysis.paths import hook_name
from tracer.analysis.selection import owner
from tracer.layout import layout
from tracer.model import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from tracer.analysis.drops import Context
    from tracer.model import Node, Pod

INBOUND, OUTBOUND = 1, 2
_FLOWS = {
    HOP.HOP_DEV_RX: INBOUND,
    HOP.HOP_NETIF_RX: INBOUND,
    HOP.HOP_DEV_QUEUE: OUTBOUND,
    HOP.HOP_DEV_XMIT: OUTBOUND,
}
NO_DEVICE = "no device"
MADE_UP = "link-layer header made up"


def frames(kind: str, events: np.ndarray, context: Context) -> list[Frame]:
    """One frame for each hop_event (`kind` "hops") or drop_event ("drops"), by time.

    A hop that is a death is among the hops already: of a trace, take the hops only.
    """
    make = {"hops": _hops, "drops": _drops}[kind]
    return sorted(make(events, context), key=lambda frame: frame.time_ns)


def _hops(events: np.ndarray, context: Context) -> Iterator[Frame]:
    node = context.node
    for event in events:
        netns, ifindex = int(event["netns"]), int(event["ifindex"])
        uid = node.pod_by_netns.get(netns) or node.pod_by_device.get((netns, ifindex))
        pod = node.pods.get(uid) if uid else None
        words = [f"{_whose(node, pod, netns)}: {_seen_at(event, context)}"]
        yield _frame(event, context, pod, words, _FLOWS.get(event["hop"], 0))


def _seen_at(event: np.void, context: Context) -> str:
    """The hook, and the verdict if one was given there."""
    kind = int(event["hop"])
    words = hook_name(kind, int(event["nf_family"]), int(event["nf_hook"]))
    if kind == HOP.HOP_NF_LEAVE:
        return f"{words}, accept"
    if kind == HOP.HOP_DROPPED:
        reason = context.reason(int(event["argument"]))
        return f"{words}, {reason} at {context.symbol(int(event['location']))}"
    return words


def _drops(events: np.ndarray, context: Context) -> Iterator[Frame]:
    node = context.node
    for event in events:
        pod = owner(node, event)
        location = context.symbol(int(event["location"]))
        stack = [context.symbol(int(address)) for address in event["stack"] if address]
        place = netfilter_place(location, stack)
        reason = context.reason(int(event["reason"]))
        words = [
            f"{_whose(node, pod, int(event['netns']))}: kfree_skb, {reason} at {location}",
            " ".join(place[f"netfilter.{name}"] for name in ("family", "hook")
                     if f"netfilter.{name}" in place),
        ]  # fmt: skip
        yield _frame(event, context, pod, words, 0)


def _frame(event: np.void, context: Context, pod: Pod | None, words: list[str], flow: int) -> Frame:
    node, netns, ifindex = context.node, int(event["netns"]), int(event["ifindex"])
    device, packet_id = node.devices.get((netns, ifindex)), int(event["packet_id"])
    name = device.name if device else f"if{ifindex}" if ifindex else NO_DEVICE
    if "ifname" in (event.dtype.names or ()) and event["ifname"]:
        name = event["ifname"].decode(errors="replace")
    data = event["packet"].tobytes()[: int(event["captured_bytes"])]
    if not event["has_mac"]:
        words.append(MADE_UP)
    if packet_id:
        words.append(f"packet {packet_id}")
    return Frame(
        device=(netns, ifindex),
        name=name,
        description=_describe(node, pod, netns),
        time_ns=int(event["time_ns"]) + context.wall_offset_ns,
        data=data,
        length_bytes=max(len(data), layout().constants["L2_BYTES"] + int(event["bytes"])),
        comment=", ".join(word for word in words if word),
        packet_id=packet_id,
        flow=flow,
    )


def _describe(node: Node, pod: Pod | None, netns: int) -> str:
    """Of an interface: the pod, and in which namespace the device is."""
    where = f"netns {netns_name(node, netns)}" if netns else ""
    return ", ".join(filter(None, (f"pod {pod.key}" if pod else "", where, f"node {node.name}")))


def _whose(node: Node, pod: Pod | None, netns: int) -> str:
    if pod:
        return f"pod {pod.key}"
    return "node" if netns == node.netns else f"netns {netns_name(node, netns)}"


def netns_name(node: Node, netns: int) -> str:
    """`node`, the name under /run/netns, or the inode."""
    if netns == node.netns:
        return "node"
    namespace = node.namespaces.get(netns)
    return namespace.name if namespace and namespace.name else str(netns)
