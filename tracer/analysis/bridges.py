"""What a bridge did with a packet, by the devices where it was seen before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.branches import HOP

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from tracer.analysis.branches import Order
    from tracer.analysis.columns import Columns, Place
    from tracer.model import Node, Record

_NF = (HOP.HOP_NF_ENTER, HOP.HOP_NF_LEAVE)
_SENDING = (HOP.HOP_DEV_QUEUE, HOP.HOP_DEV_XMIT)
_ELSEWHERE, _CAME, _LEFT, _UP, _DOWN, _INSIDE = range(6)
"""At a port: received, about to be sent. At the bridge itself: handed up to its host, sent by its
host, shown to netfilter."""
_GROUP_BIT = 1
"""Of a MAC address' first byte: multicast or broadcast."""


def bridge_passages(
    rows: np.ndarray, order: Order, columns: Columns, node: Node, redirected: Collection[int] = ()
) -> dict[int, Record]:
    """Row → `bridge.name`, `bridge.action` and `bridge.port`, where a bridge had the packet.

    Rows that are `redirected` tc brought there.

    No tracepoint tells what a bridge decides: it is inferred from the hops at its ports and at
    itself. Where none is on the way of any packet the answer is empty, and cheap.
    """
    kinds = [_kind(place, node) for place, _, _ in columns.forms]
    if not any(role in (_LEFT, _UP, _INSIDE) for role, _ in kinds):
        return {}
    form = np.array(columns.form)
    role, bridge = (np.array(column)[form] for column in zip(*kinds, strict=True))
    role[list(redirected)] = _ELSEWHERE
    row = np.flatnonzero(np.isin(role, (_LEFT, _UP, _INSIDE)))
    came = _origins(rows["hop"], order, row)
    at_bridge = (came >= 0) & np.isin(role[came], (_CAME, _DOWN)) & (bridge[came] == bridge[row])
    at_bridge &= rows["netns"][came] == rows["netns"][row]
    for at in np.flatnonzero(
        ~at_bridge & (order.branch[row] > 0) & (role[row] != _INSIDE)
    ).tolist():
        came[at] = _last_at_bridge(int(row[at]), rows, order, role, bridge)
        at_bridge[at] = came[at] >= 0
    row, came = row[at_bridge], came[at_bridge]
    entered = {
        at: {"bridge.name": _name(node, columns, at, bridge[at]), "bridge.action": "in"}
        for at in np.unique(came[role[came] == _CAME]).tolist()
    }
    out = role[row] != _INSIDE
    row, came = row[out], came[out]
    told: dict[int, Record] = {}
    flooded = _flooded(rows, row, came, role).tolist()
    for at, source, is_flood in zip(row.tolist(), came.tolist(), flooded, strict=True):
        action = "delivered" if role[at] == _UP else "flooded" if is_flood else "forwarded"
        told[at] = {"bridge.name": _name(node, columns, at, bridge[at]), "bridge.action": action}
        if role[source] == _CAME:
            told[at]["bridge.port"] = _name(node, columns, source, columns.place[source][1])
    return entered | told


def _kind(place: Place, node: Node) -> tuple[int, int]:
    """What a hop at that place is to a bridge, and the bridge's ifindex."""
    netns, ifindex, hop, *_ = place
    device = node.devices.get((netns, ifindex))
    if device is None:
        return _ELSEWHERE, 0
    if device.kind == "bridge":
        role = _UP if hop == HOP.HOP_DEV_RX else _DOWN if hop in _SENDING else _ELSEWHERE
        return _INSIDE if hop in _NF else role, ifindex
    master = node.devices.get((netns, device.master or 0))
    if master is None or master.kind != "bridge":
        return _ELSEWHERE, 0
    role = {HOP.HOP_DEV_RX: _CAME, HOP.HOP_DEV_QUEUE: _LEFT}.get(hop, _ELSEWHERE)
    return role, master.ifindex


def _origins(hops: NDArray[np.uint16], order: Order, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """The hop before each row in its branch, netfilter's left out; or -1."""
    came: NDArray[np.int64] = order.state[row].copy()
    while (again := (came >= 0) & np.isin(hops[came], _NF)).any():
        came[again] = order.state[came[again]]
    return came


def _last_at_bridge(
    row: int,
    rows: np.ndarray,
    order: Order,
    role: NDArray[np.int64],
    bridge: NDArray[np.int64],
) -> int:
    """Of a copy that seems to come from elsewhere: where the bridge last had its packet."""
    start = int(order.starts[np.searchsorted(order.starts, row, "right") - 1])
    for at in range(row - 1, start - 1, -1):
        same = bridge[at] == bridge[row] and rows["netns"][at] == rows["netns"][row]
        if same and role[at] in (_CAME, _DOWN):
            return at
    return -1


def _flooded(
    rows: np.ndarray, row: NDArray[np.int64], came: NDArray[np.int64], role: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which rows belong to a packet that went to several ports, or to a group address."""
    is_group = rows["has_mac"][row] > 0
    is_group &= (rows["packet"][row][:, 0] & _GROUP_BIT) > 0
    out = role[row] == _LEFT
    pairs = np.unique(np.stack([came[out], rows["ifindex"][row[out]]]), axis=1)
    sources, ports = np.unique(pairs[0], return_counts=True)
    several: NDArray[np.bool_] = is_group | np.isin(came, sources[ports > 1])
    return several


def _name(node: Node, columns: Columns, row: int, ifindex: int) -> str:
    """Of a device in the row's namespace, which `_kind` has found there."""
    return node.devices[columns.place[row][0], int(ifindex)].name
