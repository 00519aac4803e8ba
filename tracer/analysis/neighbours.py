"""Packets that waited until their next hop's link address was known, with the one that asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.branches import HOP

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tracer.analysis.branches import Order
    from tracer.analysis.columns import Columns

_ASKS = ("__neigh_event_send", "neigh_probe", "neigh_timer_handler")
"""Where a clone of the packet that waits for an address is freed, once the question is sent."""
_MAC_BYTES = 6


def asks_neighbour(location: str) -> bool:
    """Whether the clone that was freed there was a question for a link address."""
    return location.partition("+")[0] in _ASKS


def neighbour_waits(
    rows: np.ndarray, order: Order, columns: Columns, symbol: Callable[[int], str]
) -> set[int]:
    """Rows at a device's queue that had to wait for a link address, by whichever packet asked.

    A question is open until its packet is handed to the queue. What came meanwhile, is handed to
    the same device afterwards, and has the same link address then, waited behind it: inferred.
    """
    hops = rows["hop"]
    consumed = np.flatnonzero(hops == HOP.HOP_CONSUMED)
    places, kind = np.unique(rows["location"][consumed], return_inverse=True)
    is_question = np.array([asks_neighbour(symbol(int(place))) for place in places], bool)
    if not is_question.any():
        return set()
    queued = np.flatnonzero(
        (hops == HOP.HOP_DEV_QUEUE) & (rows["has_mac"] > 0) & (order.previous >= 0)
    )
    waits: set[int] = set()
    for row in consumed[is_question[kind]].tolist():
        packet = int(np.searchsorted(order.starts, row, "right"))
        own = queued[(queued > row) & (queued < order.starts[packet])]
        own = own[rows["netns"][own] == columns.place[row][0]]
        if len(own):
            waits.update(_behind(row, int(own[0]), rows, order, queued))
    return waits


def _behind(
    question: int, first: int, rows: np.ndarray, order: Order, queued: NDArray[np.int64]
) -> list[int]:
    """The rows of `queued` that waited for the answer to one question; `first` is its packet's."""
    time_ns = rows["time_ns"]
    came_ns = time_ns[order.previous[queued]]
    behind = (time_ns[queued] >= time_ns[first]) & (came_ns < time_ns[first])
    behind &= (came_ns >= time_ns[question]) | (queued == first)
    for name in ("netns", "ifindex"):
        behind &= rows[name][queued] == rows[name][first]
    mac = rows["packet"][:, :_MAC_BYTES]
    behind &= (mac[queued] == mac[first]).all(axis=1)
    found: list[int] = queued[behind].tolist()
    return found
