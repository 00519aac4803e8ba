"""Where tc sent a packet to another device: as the kernel says, else by where it was seen next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.branches import FLAG, HOP
from tracer.analysis.changes import ttls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tracer.analysis.branches import Order
    from tracer.analysis.columns import Place
    from tracer.model import Device, Node, Record

    Filters = Mapping[tuple[int, int, str], list[str]]

_GOES_TO = (HOP.HOP_DEV_QUEUE, HOP.HOP_NETIF_RX, HOP.HOP_DEV_RX)
"""Where a redirected packet is seen first: mirred and bpf_redirect put it at these."""
_CROSSING = (*_GOES_TO, HOP.HOP_DEV_XMIT)
_SIDES = {HOP.HOP_DEV_RX: "ingress", HOP.HOP_DEV_QUEUE: "egress"}
_POSTROUTING = 4
_PAIRS = ("veth", "netkit")
"""What bpf_redirect_peer takes."""
_STACKED = ("vlan", "macvlan", "macvtap", "ipvlan", "bridge")
"""Devices that receive by another one."""


def filters_by_place(node: Node) -> Filters:
    """(namespace, device, `ingress` or `egress`) → what tc runs there, in words."""
    found: dict[tuple[int, int, str], list[str]] = {}
    for netns, filters in node.tc_filters.items():
        for one in filters:
            found.setdefault((netns, one.ifindex, one.side), []).append(one.text)
    return found


def filter_fields(place: Place, filters: Filters) -> Record:
    """`tc.filters` of a hop next to which tc runs something."""
    found = filters.get((place[0], place[1], _SIDES.get(place[2], "")))
    return {"tc.filters": found} if found else {}


def redirects(rows: np.ndarray, order: Order, node: Node, filters: Filters) -> dict[int, Record]:
    """Row → `tc.redirect.…`, where tc had sent the packet to; see docs/formats.md.

    The kernel notes a redirect in the packet until it is received again, though not every kernel
    and not every redirect. The others are inferred, only where tc is known to run something.
    """
    hops, before = np.ascontiguousarray(rows["hop"]), order.state
    marked = (rows["flags"] & FLAG.HOP_REDIRECTED) > 0
    goes = np.isin(hops, _GOES_TO)
    came = (before >= 0) & (hops[before] == HOP.HOP_DEV_RX)
    known = marked & goes
    if known.any():
        known &= ~((before >= 0) & marked[before] & ~came) & _by_tc(rows, before, came)
    told = {row: _known(row, rows, order, node, filters) for row in np.flatnonzero(known).tolist()}
    if filters:
        told |= _inferred(_moved(rows, order, goes & ~marked), rows, order, node, filters)
    crossed = np.flatnonzero(came & ~np.isin(hops, _CROSSING))
    crossed = crossed[rows["netns"][before[crossed]] != rows["netns"][crossed]]
    for row in crossed.tolist():
        told |= _peer(row, int(before[row]), rows, node, filters)
    return told


def _by_tc(
    rows: np.ndarray, before: NDArray[np.int64], came: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether the mark can be tc's: an ingress is left right behind its reception.

    XDP's cpumap uses the mark too, where it has the same device receive a packet again.
    """
    from_ingress = (rows["flags"] & FLAG.HOP_FROM_INGRESS) > 0
    again = came & (rows["hop"] == HOP.HOP_DEV_RX)
    again &= rows["ifindex"][before] == rows["ifindex"]
    by_tc: NDArray[np.bool_] = np.where(from_ingress, came | (before < 0), ~again)
    return by_tc


def _moved(rows: np.ndarray, order: Order, goes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows where a packet is, unchanged, at another device than it was received at or left by."""
    row = np.flatnonzero(goes & (order.state >= 0))
    before = order.state[row]
    received = (rows["hop"][before] == HOP.HOP_DEV_RX) & (order.previous[row] == before)
    moved = received | _leaves(rows, before)
    moved &= rows["ifindex"][before] != rows["ifindex"][row]
    for name in ("netns", "bytes"):
        moved &= rows[name][before] == rows[name][row]
    found: NDArray[np.int64] = row[moved]
    return found


def _leaves(rows: np.ndarray, at: NDArray[np.int64] | int) -> NDArray[np.bool_]:
    """Whether a row is the end of POSTROUTING, which names the device that the packet goes to."""
    hops, hooks = rows["hop"][at], rows["nf_hook"][at]
    leaves: NDArray[np.bool_] = (hops == HOP.HOP_NF_LEAVE) & (hooks == _POSTROUTING)
    return leaves


def _known(row: int, rows: np.ndarray, order: Order, node: Node, filters: Filters) -> Record:
    """Of a packet that the kernel says was redirected."""
    side = "ingress" if rows["flags"][row] & FLAG.HOP_FROM_INGRESS else "egress"
    last, previous = int(order.state[row]), int(order.previous[row])
    netns, ifindex = int(rows["netns"][row]), 0
    if last >= 0 and int(rows["netns"][last]) == netns:
        if side == "ingress":
            ifindex = int(rows["ifindex"][last])
        elif previous > last and rows["hop"][previous] == HOP.HOP_ROUTE:
            ifindex = int(rows["out_ifindex"][previous])
        elif _leaves(rows, last):
            ifindex = int(rows["ifindex"][last])
    device = node.devices.get((netns, ifindex))
    if device and side == "egress" and device.kind == "bridge":
        device = None  # br_netfilter says so of what goes out of one of its ports
    return _fields("redirected", side, netns, device, filters)


def _inferred(
    moved: NDArray[np.int64], rows: np.ndarray, order: Order, node: Node, filters: Filters
) -> dict[int, Record]:
    """Of packets that left another device than they should, unchanged and not routed."""
    told: dict[int, Record] = {}
    ttl = ttls(rows) if len(moved) else np.empty(0, np.uint8)
    for row in moved.tolist():
        last = int(order.state[row])
        netns = int(rows["netns"][row])
        came, went = (node.devices.get((netns, int(rows["ifindex"][at]))) for at in (last, row))
        side = _SIDES.get(int(rows["hop"][last]), "egress")
        if not came or not went or (netns, came.ifindex, side) not in filters:
            continue
        if ttl[row] != ttl[last] or _related(came, went) or went.kind in _STACKED:
            continue
        action = "redirected" if order.branch[row] == order.branch[last] else "mirrored"
        told[row] = _fields(action, side, netns, came, filters) | {"tc.redirect.inferred": True}
    return told


def _related(came: Device, went: Device) -> bool:
    """Whether a bridge or bond takes packets from one to the other."""
    return came.ifindex == went.master or (
        came.master is not None and came.master in (went.master, went.ifindex)
    )


def _peer(row: int, last: int, rows: np.ndarray, node: Node, filters: Filters) -> dict[int, Record]:
    """Of a packet that was received at a device, and is in another namespace without a crossing.

    bpf_redirect_peer makes it one of the other end of a pair, where no tracepoint is passed.
    """
    netns, ifindex = (int(rows[name][last]) for name in ("netns", "ifindex"))
    inside = node.devices.get((int(rows["netns"][row]), int(rows["ifindex"][row])))
    if inside is None or inside.kind not in _PAIRS or not inside.peer or inside.peer[0] != netns:
        return {}
    if netns in node.tc_filters and (netns, ifindex, "ingress") not in filters:
        return {}
    came, peer = node.devices.get((netns, ifindex)), node.devices.get(inside.peer)
    fields = _fields("redirected to peer", "ingress", netns, came, filters)
    fields |= {"tc.redirect.peer": peer.name} if peer else {}
    return {row: fields | {"tc.redirect.inferred": True}}


def _fields(action: str, side: str, netns: int, device: Device | None, filters: Filters) -> Record:
    fields: Record = {"tc.redirect.action": action, "tc.redirect.hook": side}
    if device:
        fields["tc.redirect.interface.name"] = device.name
        found = filters.get((netns, device.ifindex, side))
        fields |= {"tc.redirect.filters": found} if found else {}
    return fields
