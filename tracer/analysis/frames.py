"""Hops and drops → frames of a capture file: bytes, device, and a comment that tells the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.branches import HOP
from tracer.analysis.netfilter import netfilter_place
from tracer.analysis.paths import hook_name
from tracer.analysis.selection import owner
from tracer.layout import layout
from tracer.model import Frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.analysis.drops import Context
    from tracer.analysis.paths import Path
    from tracer.model import DeviceKey, Node, Pod

INBOUND, OUTBOUND = 1, 2
_FLOWS = {
    HOP.HOP_DEV_RX: INBOUND,
    HOP.HOP_NETIF_RX: INBOUND,
    HOP.HOP_DEV_QUEUE: OUTBOUND,
    HOP.HOP_QDISC_ENQUEUE: OUTBOUND,
    HOP.HOP_QDISC_DEQUEUE: OUTBOUND,
    HOP.HOP_DEV_XMIT: OUTBOUND,
}
NO_DEVICE = "no device"
MADE_UP = "link-layer header made up"
_TELLING = (
    "hop", "nf_family", "nf_hook", "netns", "ifindex", "argument", "location", "has_mac"
)  # fmt: skip
"""Fields of a hop_event that its comment tells; few combinations exist, many hops of each."""


def frames(kind: str, events: np.ndarray, context: Context) -> list[Frame]:
    """One frame for each hop_event (`kind` "hops") or drop_event ("drops") with bytes, by time.

    A hop that is a death is among the hops already: of a trace, take the hops only.
    """
    events = events[events["captured_bytes"] > 0]  # a routing decision has none
    events = events[np.argsort(events["time_ns"], kind="stable")]
    if kind == "drops":
        sights = [_drop_sight(event, context) for event in events]
    else:
        sights = _hop_sights(events, context)
    return _frames(events, sights, context)


def path_frames(paths: Sequence[Path], context: Context) -> list[Frame]:
    """The frames of some packets' hops, each where its packet was or, untold, had been before."""
    if not paths:
        return []
    rows = np.concatenate([path.rows for path in paths])
    rows["netns"] = np.concatenate([_filled(path.rows["netns"]) for path in paths])
    return frames("hops", rows, context)


def _filled(netns: np.ndarray) -> np.ndarray:
    """Where a hop does not tell its namespace, that of the hop before."""
    told = np.where(netns > 0, np.arange(len(netns)), 0)
    return netns[np.maximum.accumulate(told)]


@dataclass(frozen=True, slots=True)
class _Sight:
    """What many frames have in common."""

    device: DeviceKey
    name: str
    description: str
    words: str
    flow: int = 0


def _hop_sights(events: np.ndarray, context: Context) -> list[_Sight]:
    known: dict[tuple[int, ...], _Sight] = {}
    sights = []
    for key in zip(*(events[name].tolist() for name in _TELLING), strict=True):
        sight = known.get(key)
        if sight is None:
            sight = known[key] = _hop_sight(dict(zip(_TELLING, key, strict=True)), context)
        sights.append(sight)
    return sights


def _hop_sight(hop: Mapping[str, int], context: Context) -> _Sight:
    node, device = context.node, (hop["netns"], hop["ifindex"])
    uid = node.pod_by_netns.get(hop["netns"]) or node.pod_by_device.get(device)
    pod = node.pods.get(uid) if uid else None
    words = [
        _whose(node, pod, hop["netns"])
        + ": "
        + hook_name(hop["hop"], hop["nf_family"], hop["nf_hook"])
    ]
    if hop["hop"] == HOP.HOP_NF_LEAVE:
        words.append("accept")
    elif hop["hop"] == HOP.HOP_DROPPED:
        words.append(f"{context.reason(hop['argument'])} at {context.symbol(hop['location'])}")
    if not hop["has_mac"]:
        words.append(MADE_UP)
    return _Sight(
        device,
        _device_name(node, device),
        _describe(node, pod, hop["netns"]),
        ", ".join(words),
        _FLOWS.get(hop["hop"], 0),
    )


def _drop_sight(event: np.void, context: Context) -> _Sight:
    node, pod = context.node, owner(context.node, event)
    device = int(event["netns"]), int(event["ifindex"])
    location = context.symbol(int(event["location"]))
    stack = [context.symbol(int(address)) for address in event["stack"] if address]
    place = netfilter_place(location, stack)
    reason = context.reason(int(event["reason"]))
    words = [f"{_whose(node, pod, device[0])}: kfree_skb", f"{reason} at {location}"]
    hook = [place[name] for name in ("netfilter.family", "netfilter.hook") if name in place]
    if hook:
        words.append(" ".join(hook))
    if not event["has_mac"]:
        words.append(MADE_UP)
    name = event["ifname"].decode(errors="replace") or _device_name(node, device)
    return _Sight(device, name, _describe(node, pod, device[0]), ", ".join(words))


def _frames(events: np.ndarray, sights: list[_Sight], context: Context) -> list[Frame]:
    room = events.dtype["packet"].shape[0]
    packets = events["packet"].tobytes()
    header = layout().constants["L2_BYTES"]
    columns = (
        events[name].tolist() for name in ("time_ns", "captured_bytes", "bytes", "packet_id")
    )
    made = []
    for at, (sight, time_ns, captured, length, packet_id) in enumerate(
        zip(sights, *columns, strict=True)
    ):
        data = packets[at * room : at * room + min(captured, room)]
        made.append(
            Frame(
                device=sight.device,
                name=sight.name,
                description=sight.description,
                time_ns=time_ns + context.wall_offset_ns,
                data=data,
                length_bytes=max(len(data), header + length),
                comment=f"{sight.words}, packet {packet_id}" if packet_id else sight.words,
                packet_id=packet_id,
                flow=sight.flow,
            )
        )
    return made


def _device_name(node: Node, key: DeviceKey) -> str:
    device = node.devices.get(key)
    return device.name if device else f"if{key[1]}" if key[1] else NO_DEVICE


def _describe(node: Node, pod: Pod | None, netns: int) -> str:
    """Of an interface: the pod, and in which namespace the device is."""
    where = f"netns {netns_name(node, netns)}" if netns else ""
    return ", ".join(filter(None, (f"pod {pod.key}" if pod else "", where, f"node {node.name}")))


def _whose(node: Node, pod: Pod | None, netns: int) -> str:
    if pod:
        return f"pod {pod.key}"
    if not netns:
        return "somewhere"
    return "node" if netns == node.netns else f"netns {netns_name(node, netns)}"


def netns_name(node: Node, netns: int) -> str:
    """`node`, the name under /run/netns, or the inode."""
    if netns == node.netns:
        return "node"
    namespace = node.namespaces.get(netns)
    return namespace.name if namespace and namespace.name else str(netns)
