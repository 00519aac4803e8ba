"""Columns of hop records as Python lists: what records of many packets are made from, fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.analysis.branches import HOP
from tracer.analysis.changes import changes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tracer.analysis.branches import Order

OUTCOMES = ("", "accept", "drop", "stolen", "stolen or queued", "unknown")
"""What a netfilter hook did with a packet, of rows that are no netfilter hook nothing."""
_ACCEPT, _DROP, _STOLEN, _GONE, _UNKNOWN = range(1, len(OUTCOMES))

_PREROUTING, _INPUT, _OUTPUT = 0, 1, 3
"""NF_INET_PRE_ROUTING, NF_INET_LOCAL_IN and NF_INET_LOCAL_OUT of linux/netfilter.h."""
_IP = (2, 10)
"""NFPROTO_IPV4 and NFPROTO_IPV6 of the same."""

_QUEUED = (HOP.HOP_DEV_QUEUE, HOP.HOP_QDISC_ENQUEUE, HOP.HOP_QDISC_DEQUEUE)
_CROSSING = (HOP.HOP_DEV_XMIT, HOP.HOP_NETIF_RX)
_ARRIVED = (HOP.HOP_NETIF_RX, HOP.HOP_DEV_RX, HOP.HOP_NF_ENTER, HOP.HOP_TCP_RECEIVE, HOP.HOP_COPIED)
"""What does not follow a queue but by a driver."""

Place = tuple[int, int, int, int, int, int]
"""Namespace, device, kind of hop, netfilter family and hook, index into OUTCOMES."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Lists with one element a row; names as in `struct hop_event` and branches.Order."""

    place: list[Place]
    forms: list[tuple[Place, bool, bool]]
    """Each that occurs, once: place, whether it has a `delta_ns`, and a `duration_ns`."""
    form: list[int]
    """Index into `forms`."""
    hop: list[int]
    time_ns: list[int]
    delta_ns: list[int]
    """Since the hop before, -1 without one."""
    duration_ns: list[int]
    """Between the two records of a netfilter hook, else -1."""
    argument: NDArray[np.uint32]
    location: NDArray[np.uint64]
    out_ifindex: NDArray[np.uint32]
    """These three are told of few rows, so they are no lists."""
    previous: list[int]
    branch: list[int]
    state: list[int]
    absorbed: list[bool]
    """True for a HOP_NF_LEAVE that is told together with its HOP_NF_ENTER."""
    changes: Mapping[int, list[str]]
    """Row → what changed there; the first is empty where the packet came into a namespace."""
    branched: list[bool]
    """Of each packet, whether it was cloned."""
    gaps: list[int]
    """Of each packet, how many records at least are missing: one of a netfilter hook's two, the
    sending that must have come before it was received, the reception before PREROUTING."""


def columns(
    rows: np.ndarray, order: Order, netns: NDArray[np.uint32], invalid: NDArray[np.int64]
) -> Columns:
    """Take the columns of sorted hop records."""
    time_ns = rows["time_ns"].astype(np.int64)
    absorbed = np.zeros(len(rows), bool)
    absorbed[order.leave[order.leave >= 0]] = True
    outcome = _outcomes(rows, order, absorbed)
    first, since = order.starts[:-1], order.previous >= 0
    missing = (outcome == _UNKNOWN) | ((rows["hop"] == HOP.HOP_NF_LEAVE) & ~absorbed)
    told = dict(changes(rows, order, invalid))
    for row in np.flatnonzero(since & (netns != netns[order.previous]) & ~absorbed).tolist():
        told[row] = ["", *told.get(row, ())]
    paired = order.leave >= 0
    place = (netns, rows["ifindex"], rows["hop"], rows["nf_family"], rows["nf_hook"], outcome)
    forms, form = _forms(place, since, paired)
    return Columns(
        place=[forms[number][0] for number in form],
        forms=forms,
        form=form,
        hop=rows["hop"].tolist(),
        time_ns=time_ns.tolist(),
        delta_ns=np.where(since, time_ns - time_ns[order.previous], -1).tolist(),
        duration_ns=np.where(paired, time_ns[order.leave] - time_ns, -1).tolist(),
        argument=rows["argument"],
        location=rows["location"],
        out_ifindex=rows["out_ifindex"],
        previous=order.previous.tolist(),
        branch=order.branch.tolist(),
        state=order.state.tolist(),
        absorbed=absorbed.tolist(),
        changes=told,
        branched=(np.maximum.reduceat(order.branch, first) > 0).tolist(),
        gaps=np.add.reduceat(missing + _skipped(rows, order), first).tolist(),
    )


def _forms(
    place: tuple[NDArray[Any], ...], since: NDArray[np.bool_], paired: NDArray[np.bool_]
) -> tuple[list[tuple[Place, bool, bool]], list[int]]:
    """Each form that occurs, and of each row which it is: rows are many, forms few."""
    netns, ifindex, *small, outcome = place
    _, key = np.unique(netns.astype(np.uint64) << 32 | ifindex, return_inverse=True)
    rest = (outcome << 2 | since << 1 | paired).astype(np.uint8)
    for column in (*small, rest):  # 40 bits, which leaves 23 for the device
        key = key << 8 * column.dtype.itemsize | column
    kinds, form = np.unique(key, return_inverse=True)
    first = np.empty(len(kinds), np.int64)
    first[form] = np.arange(len(form))  # any row of a form serves
    places = zip(*(column[first].tolist() for column in place), strict=True)
    forms = zip(places, since[first].tolist(), paired[first].tolist(), strict=True)
    return list(forms), form.tolist()


def _skipped(rows: np.ndarray, order: Order) -> NDArray[np.int64]:
    """Of each row, how many records at least are missing between it and the one before.

    Some kernels do not run a tracepoint's programs in every interrupt, and count that nowhere.
    """
    hops, last = rows["hop"], order.state
    follows = (last >= 0) & (order.following[last] == np.arange(len(rows)))
    queued = follows & np.isin(hops[last], _QUEUED)
    unsent = queued & np.isin(hops, _ARRIVED)
    entered = (hops == HOP.HOP_NF_ENTER) & (rows["nf_hook"] == _PREROUTING)
    entered &= np.isin(rows["nf_family"], _IP)
    unreceived = entered & (queued | follows & np.isin(hops[last], _CROSSING))
    skipped: NDArray[np.int64] = unsent.astype(np.int64) + unreceived
    return skipped


def _outcomes(
    rows: NDArray[np.void], order: Order, absorbed: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """What each netfilter hook did, by what came after it in its branch."""
    hops, hook = rows["hop"], rows["nf_hook"]
    after = hops[order.following]
    # IPVS takes what is for a Service's address out of INPUT, and sends it through OUTPUT.
    forwarded = (after == HOP.HOP_NF_ENTER) & (hook == _INPUT) & (hook[order.following] == _OUTPUT)
    went_on = np.select(
        [order.following < 0, after == HOP.HOP_DROPPED, (after == HOP.HOP_CONSUMED) | forwarded],
        [_GONE, _DROP, _STOLEN],
        _UNKNOWN,
    )
    entered = np.where(order.leave >= 0, _ACCEPT, went_on)
    left = np.where(absorbed, 0, _ACCEPT)
    is_hook = [hops == HOP.HOP_NF_ENTER, hops == HOP.HOP_NF_LEAVE]
    return np.select(is_hook, [entered, left], 0).astype(np.uint8)
