"""Hop records of many packets, sorted → which hop came before which, in columns.

A packet is a row of hops by time. Where it was cloned (bridge flooding, multicast, taps) it is
several rows at once, one for each sk_buff: a branch. Only the branched ones are walked
one by one; all others are told apart by comparing whole columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.layout import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOP: Any = SimpleNamespace(**{one.name: int(one) for one in layout().enums["hop"]})
FLAG: Any = SimpleNamespace(**{one.name: int(one) for one in layout().enums["hop_flag"]})
"""Enums of bpf/event.h as plain integers: members of an Enum are slow to compare."""
NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT = 1, 3
JOIN_NS = 1_000_000
"""A packet whose data moved is seen again within this time, or not recognised."""
ENDS = (HOP.HOP_CONSUMED, HOP.HOP_DROPPED)
BARE = (HOP.HOP_ROUTE, HOP.HOP_RETRANSMIT)
_QDISC = (HOP.HOP_QDISC_ENQUEUE, HOP.HOP_QDISC_DEQUEUE)
_LEAVING = (HOP.HOP_DEV_QUEUE, *_QDISC, HOP.HOP_DEV_XMIT)
_QUEUES = frozenset((HOP.HOP_DEV_QUEUE, *_QDISC))
_NO_FORK = frozenset((*_LEAVING, *ENDS, *BARE))
_IPPROTO_TCP = 6


@dataclass(frozen=True, slots=True)
class Order:
    """Who comes after whom, of n hop records sorted by packet and time. Rows are numbers < n."""

    starts: NDArray[np.int64]
    """First row of each packet, and n at the end."""
    branch: NDArray[np.int64]
    """Of each row: 0 for the sk_buff that was seen first, others in the order of appearance."""
    previous: NDArray[np.int64]
    """The row before in its branch, of a branch's first row the one it forked from; or -1."""
    state: NDArray[np.int64]
    """As `previous`, but never a hop that tells nothing of the packet itself (`is_bare`)."""
    leave: NDArray[np.int64]
    """Of a HOP_NF_ENTER its HOP_NF_LEAVE; else -1."""
    following: NDArray[np.int64]
    """The next row in the same branch that is not bare, or -1."""


def is_end(hops: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Which kinds of hop end an sk_buff."""
    ends: NDArray[np.bool_] = (hops == ENDS[0]) | (hops == ENDS[1])
    return ends


def is_bare(hops: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Which kinds of hop tell nothing of the packet but that it was meant."""
    bare: NDArray[np.bool_] = (hops == BARE[0]) | (hops == BARE[1])
    return bare


def among(values: NDArray[Any], known: NDArray[Any]) -> NDArray[np.bool_]:
    """`np.isin`, faster where one of both is short, or many are the same."""
    if len(known) > len(values):
        known = known[among(known, values)]
    if not len(known):
        return np.zeros(len(values), bool)
    known = np.unique(known)
    at = np.searchsorted(known, values)
    found: NDArray[np.bool_] = known[np.minimum(at, len(known) - 1)] == values
    return found


def roots(rows: np.ndarray) -> NDArray[np.uint64]:
    """For each hop record the id of its packet, with packets joined whose data moved.

    The kernel knows a packet by the address of its data. Where that was copied (a clone that is
    forwarded, segmentation), it gives a new id. The records are joined when the same
    sk_buff with the same signature went on within JOIN_NS, or (TCP) another with the same tuple
    in the same namespace. The signature leaves nothing open: it holds TCP's sequence numbers.
    """
    ids: NDArray[np.uint64] = rows["packet_id"].copy()
    first = (rows["flags"] & FLAG.HOP_FIRST) > 0
    local_out = (rows["hop"] == HOP.HOP_NF_ENTER) & (rows["nf_hook"] == NF_INET_LOCAL_OUT)
    begins = first & ~local_out & (rows["signature"] > 0)
    if not begins.any():
        return ids
    kept = np.flatnonzero(
        among(rows["signature"], rows["signature"][begins]) & ~is_bare(rows["hop"])
    )
    kept = kept[np.lexsort((rows["time_ns"][kept], rows["signature"][kept]))]
    now, before = kept[1:], kept[:-1]
    chosen = begins[now] & _goes_on(rows, before, now)
    new, old = ids[now[chosen]], ids[before[chosen]]
    return _resolve(ids, new, old)


def _goes_on(
    rows: np.ndarray, before: NDArray[np.int64], now: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether row `now` can be the packet of row `before`, its data having moved."""
    time_ns = rows["time_ns"]
    hops = rows["hop"][before]
    held = (hops == HOP.HOP_TCP_RECEIVE) | (hops == HOP.HOP_COPIED) | is_end(hops)
    held |= (hops == HOP.HOP_NF_LEAVE) & (rows["nf_hook"][before] == NF_INET_LOCAL_IN)
    same_skb = rows["skb"][before] == rows["skb"][now]
    tuples = rows["tuple"]
    same_flow = (tuples["protocol"][now] == _IPPROTO_TCP) & (
        rows["netns"][before] == rows["netns"][now]
    )
    for name in ("saddr", "daddr"):
        same_flow &= (tuples[name][before] == tuples[name][now]).all(axis=1)
    for name in ("sport", "dport"):
        same_flow &= tuples[name][before] == tuples[name][now]
    goes_on: NDArray[np.bool_] = (
        (rows["signature"][before] == rows["signature"][now])
        & (rows["packet_id"][before] != rows["packet_id"][now])
        & (time_ns[now] - time_ns[before] <= JOIN_NS)
        & ~held
        & (same_skb | same_flow)
    )
    return goes_on


def _resolve(
    ids: NDArray[np.uint64], new: NDArray[np.uint64], old: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Replace each id in `new` by that in `old` at the same place, until none is left."""
    known = dict(zip(new.tolist(), old.tolist(), strict=True))
    for joined, old_id in known.items():
        root, seen = old_id, {joined}
        while root in known and root not in seen:
            seen.add(root)
            root = known[root]
        known[joined] = root
    if known:
        unique, inverse = np.unique(ids, return_inverse=True)
        replaced = [known.get(one, one) for one in unique.tolist()]
        ids = np.array(replaced, np.uint64)[inverse]
    return ids


def sort(
    rows: np.ndarray, ids: NDArray[np.uint64], chosen: NDArray[np.bool_]
) -> tuple[np.ndarray, NDArray[np.uint64], NDArray[np.uint64]]:
    """The chosen hop records by packet and time, and their ids; without strays.

    Also the ids of packets that TCP calls retransmissions; that is no hop.
    """
    index = np.flatnonzero(chosen)
    time_ns = rows["time_ns"][index]
    if (time_ns[1:] < time_ns[:-1]).any():
        index = index[np.argsort(time_ns, kind="stable")]
    index = index[np.argsort(ids[index], kind="stable")]
    index = index[~_strays(rows["hop"][index], rows["skb"][index], ids[index])]
    resent = _resent(rows, ids, index)
    again = ids[index[resent]]
    index = index[~resent]
    return rows.take(index), ids[index], again  # rows[index] copies field by field


def _resent(
    rows: np.ndarray, ids: NDArray[np.uint64], index: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Where TCP tells that a packet is a retransmission: right after it has sent it.

    A HOP_RETRANSMIT that comes later is about the first attempt, whose data was copied.
    """
    resent: NDArray[np.bool_] = rows["hop"][index] == HOP.HOP_RETRANSMIT
    if resent.any():
        first = index[np.searchsorted(ids[index], ids[index])]
        resent &= (rows["hop"][first] == HOP.HOP_NF_ENTER) & (
            rows["nf_hook"][first] == NF_INET_LOCAL_OUT
        )
        resent &= rows["time_ns"][index] - rows["time_ns"][first] <= JOIN_NS
    return resent


def _strays(
    hops: NDArray[np.uint16], skbs: NDArray[np.uint64], ids: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Routing decisions behind the end of their sk_buff: those of the answer, not of the packet."""
    index = np.arange(len(hops))
    last = np.maximum.accumulate(np.where(is_bare(hops), 0, index))
    strays: NDArray[np.bool_] = (hops == HOP.HOP_ROUTE) & is_end(hops[last]) & (ids[last] == ids)
    strays &= skbs[last] == skbs
    return strays


def order(rows: np.ndarray, ids: NDArray[np.uint64]) -> Order:
    """Find out who comes after whom; `rows` are sorted by `ids` and time, without strays."""
    count = len(rows)
    index = np.arange(count)
    begins = np.ones(count, bool)
    begins[1:] = ids[1:] != ids[:-1]
    starts = np.append(np.flatnonzero(begins), count)
    bare = is_bare(rows["hop"])
    previous = np.where(begins, -1, index - 1)
    last = np.maximum.accumulate(np.where(bare, -1, index))
    state = np.where(begins, -1, np.roll(last, 1))
    packet = np.cumsum(begins) - 1
    state = np.where(state >= starts[packet], state, -1)
    branch = np.zeros(count, np.int64)
    breaks = np.zeros(count, bool)
    breaks[1:] = (rows["skb"][1:] != rows["skb"][:-1]) | is_end(rows["hop"][:-1])
    for number in np.unique(packet[breaks & ~begins]).tolist():
        _walk(rows, slice(starts[number], starts[number + 1]), branch, previous, state)
    follows = ~bare & (state >= 0)
    follows[follows] = branch[state[follows]] == branch[follows]
    following = np.full(count, -1)
    following[state[follows]] = index[follows]
    return Order(starts, branch, previous, state, _pairs(rows, state, follows), following)


def _pairs(
    rows: np.ndarray, state: NDArray[np.int64], follows: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each HOP_NF_ENTER the HOP_NF_LEAVE of the same hook."""
    leave = np.full(len(rows), -1)
    out = np.flatnonzero((rows["hop"] == HOP.HOP_NF_LEAVE) & follows)
    into = state[out]
    matching = rows["hop"][into] == HOP.HOP_NF_ENTER
    for name in ("nf_family", "nf_hook", "netns"):
        matching &= rows[name][into] == rows[name][out]
    leave[into[matching]] = out[matching]
    return leave


def _walk(
    rows: np.ndarray,
    part: slice,
    branch: NDArray[np.int64],
    previous: NDArray[np.int64],
    state: NDArray[np.int64],
) -> None:
    """Branches of one packet, in place: an sk_buff not seen before, or again after its end."""
    base = int(part.start)
    skbs, hops = rows["skb"][part].tolist(), rows["hop"][part].tolist()
    places = rows[["hop", "nf_family", "nf_hook", "netns"]][part].tolist()
    live: dict[int, int] = {}
    last: list[int] = []
    last_state: list[int] = []
    forks: list[int] = []
    devices = rows[["netns", "ifindex"]][part].tolist()
    for at, skb in enumerate(skbs):
        # What is sent again is the socket's own sk_buff: that of the packet's beginning.
        number = 0 if last and hops[at] == HOP.HOP_RETRANSMIT else live.get(skb)
        if number is None:
            number = live[skb] = len(last)
            fork = _queued(at, hops, devices)
            if fork < 0:
                fork = _fork(at, places, branch[part], forks)
            forks.append(fork)
            last.append(fork)
            last_state.append(fork)
        branch[base + at] = number
        previous[base + at] = base + last[number] if last[number] >= 0 else -1
        state[base + at] = base + last_state[number] if last_state[number] >= 0 else -1
        last[number] = at
        if hops[at] not in BARE:
            last_state[number] = at
        if hops[at] in ENDS:
            del live[skb]


def _queued(at: int, hops: list[int], devices: list[tuple[int, ...]]) -> int:
    """Where the whole was that a segment is cut out of, if that is what begins with row `at`.

    What comes to a driver has been in the device's queue; -1 for all others.
    """
    if hops[at] != HOP.HOP_DEV_XMIT:
        return -1
    queued = (
        row for row in range(at - 1, -1, -1) if hops[row] in _QUEUES and devices[row] == devices[at]
    )
    return next(queued, -1)


def _fork(
    at: int, places: list[tuple[int, ...]], branch: NDArray[np.int64], forks: list[int]
) -> int:
    """The row that the branch beginning with row `at` comes from.

    The last in the same namespace that was not on its way out. A branch that has itself been at
    the place where the new one begins is its sibling: then what that one came from.
    """
    if not forks:
        return -1
    netns = places[at][-1]
    for row in range(at - 1, -1, -1):
        hop = places[row][0]
        if places[row][-1] != netns or hop in _NO_FORK:
            continue
        number = int(branch[row])
        while number and any(
            branch[other] == number and places[other] == places[at] for other in range(at)
        ):
            row = forks[number]  # noqa: PLW2901 - the sibling's origin instead
            number = int(branch[row])
        return row
    return int(np.flatnonzero(branch[:at] == 0)[-1])
