"""Hops and drops → frames of a capture file: bytes, device, and a comment that tells the rest."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tracer.analysis.netfilter import netfilter_place
from tracer.analysis.selection import owner
from tracer.layout import layout
from tracer.model import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from tracer.analysis.drops import Context
    from tracer.model import Node, Pod

NF_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
"""enum nf_inet_hooks."""
NF_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
"""NFPROTO_*, in nft's words."""
INBOUND, OUTBOUND = 1, 2
NO_DEVICE = "no device"
MADE_UP = "link-layer header made up"


def frames(kind: str, events: np.ndarray, context: Context) -> list[Frame]:
    """One frame for each hop_event (`kind` "hops") or drop_event ("drops"), by time.

    A hop that is a death is among the hops already: of a trace, take the hops only.
    """
    make = {"hops": _hops, "drops": _drops}[kind]
    return sorted(make(events, context), key=lambda frame: frame.time_ns)


def _hops(events: np.ndarray, context: Context) -> Iterator[Frame]:
    node, hop = context.node, layout().enums["hop"].__members__
    flows = dict.fromkeys((hop["HOP_DEV_RX"], hop["HOP_NETIF_RX"]), INBOUND)
    flows |= dict.fromkeys((hop["HOP_DEV_QUEUE"], hop["HOP_DEV_XMIT"]), OUTBOUND)
    for event in events:
        netns, ifindex = int(event["netns"]), int(event["ifindex"])
        uid = node.pod_by_netns.get(netns) or node.pod_by_device.get((netns, ifindex))
        pod = node.pods.get(uid) if uid else None
        words = [f"{_whose(node, pod, netns)}: {_hop_words(event, context)}"]
        yield _frame(event, context, pod, words, flows.get(event["hop"], 0))


def _hop_words(event: np.void, context: Context) -> str:
    number, hop = int(event["hop"]), layout().enums["hop"]
    words = hop_name(number)
    if number in (hop["HOP_NF_ENTER"], hop["HOP_NF_LEAVE"]):
        family, hook = int(event["nf_family"]), int(event["nf_hook"])
        place = NF_HOOKS[hook] if hook < len(NF_HOOKS) else f"hook {hook}"
        words += f" {NF_FAMILIES.get(family, f'family {family}')} {place}"
    if number == hop["HOP_NF_LEAVE"]:
        words += ", accepted"
    elif number == hop["HOP_DROPPED"]:
        place = context.symbol(int(event["location"]))
        words += f", {context.reason(int(event['argument']))} at {place}"
    return words


@cache
def hop_name(number: int) -> str:
    """`dev-queue` for HOP_DEV_QUEUE of bpf/event.h; a number it does not have keeps it."""
    names = {member.value: member.name for member in layout().enums["hop"]}
    name = names.get(number, f"HOP_{number}")
    return name.removeprefix("HOP_").lower().replace("_", "-")


def _drops(events: np.ndarray, context: Context) -> Iterator[Frame]:
    node = context.node
    for event in events:
        pod = owner(node, event)
        location = context.symbol(int(event["location"]))
        stack = [context.symbol(int(address)) for address in event["stack"] if address]
        place = netfilter_place(location, stack)
        reason = context.reason(int(event["reason"]))
        words = [
            f"{_whose(node, pod, int(event['netns']))}: dropped, {reason} at {location}",
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
    return f"pod {pod.key}" if pod else f"netns {netns_name(node, netns)}"


def netns_name(node: Node, netns: int) -> str:
    """`node`, the name under /run/netns, or the inode."""
    if netns == node.netns:
        return "node"
    namespace = node.namespaces.get(netns)
    return namespace.name if namespace and namespace.name else str(netns)
