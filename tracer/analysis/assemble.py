"""Hop records, in any order → packets, each with its whole way; columns, not objects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis import branches
from tracer.analysis.branches import FLAG, HOP, among
from tracer.analysis.changes import in_tunnel
from tracer.analysis.columns import Columns, columns
from tracer.analysis.entries import conntrack_rows
from tracer.analysis.flow_key import KEY_BYTES, Flow, Flows
from tracer.analysis.retransmit import Retransmissions
from tracer.analysis.uncollected import uncollected
from tracer.analysis.untracked import Tracking
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

QUIET_NS = 1_000_000_000
"""A packet of which nothing was heard for so long is complete: it waits in a socket's queue, or
ended where no tracepoint is."""
PACE_NS = 200_000_000
BUSY_HOPS = 10_000
"""With more hops waiting than this, they are looked through only every PACE_NS."""
MANY_DROPS = 4096
MANY_WAITING = 65536
"""As many as the kernel follows at once (MAX_FOLLOWED)."""
_IN_SOCKET = (HOP.HOP_TCP_RECEIVE, HOP.HOP_COPIED, HOP.HOP_CONSUMED)


@dataclass(frozen=True, slots=True)
class Batch:
    """The hops of some complete packets, sorted by packet and time."""

    rows: np.ndarray
    order: branches.Order
    columns: Columns
    inner: NDArray[np.int64]
    """Of each packet the first row where it is in no tunnel."""
    tunnel: NDArray[np.int64]
    """Of each packet the first row where it is in a tunnel, or -1."""
    conntrack: NDArray[np.int64]
    """Of each packet the row with the conntrack entry that tells its flow, or -1."""
    by_time: list[int]
    """The packets in the order of their first hops."""


@dataclass(frozen=True, slots=True)
class Path:
    """One packet: rows `start` to `stop` of `batch.rows`."""

    batch: Batch
    number: int
    """Which packet of the batch."""
    start: int
    stop: int
    flow: Flow
    drop: np.void | None = None
    """The `struct drop_event` of its last death."""
    retransmitted: bool = False
    """TCP: these bytes had been sent before."""
    joined: bool = False
    """Recognised although its data had moved: inferred."""
    lost: int = 0
    """Hop records, of this packet or others, that were lost while it was on its way."""

    @property
    def inner(self) -> int:
        """The first row where it is in no tunnel."""
        return int(self.batch.inner[self.number])

    @property
    def tunnel(self) -> int:
        """The first row where it is in a tunnel, or -1."""
        return int(self.batch.tunnel[self.number])

    @property
    def rows(self) -> np.ndarray:
        """Its hops by time, as `struct hop_event`."""
        return self.batch.rows[self.start : self.stop]

    @property
    def starts_here(self) -> bool:
        """Whether its first hop is where a socket of this node sends."""
        first = self.batch.columns.place[self.start]
        return first[2] == HOP.HOP_NF_ENTER and first[4] == branches.NF_INET_LOCAL_OUT

    @property
    def begin_ns(self) -> int:
        """CLOCK_BOOTTIME of its first hop."""
        return self.batch.columns.time_ns[self.start]

    @property
    def died(self) -> bool:
        """Whether it, or a clone of it, was dropped anywhere."""
        return bool((self.rows["hop"] == HOP.HOP_DROPPED).any())


class Assembler:
    """Collects hops and drops, and gives back packets once they are complete."""

    def __init__(self) -> None:
        self._hops: list[np.ndarray] = []
        self._drops: list[np.ndarray] = []
        self._flows = Flows()
        self._retransmissions = Retransmissions()
        self._tracking = Tracking()
        self._looked_ns = 0
        self._lost, self._loss_looked_ns = 0, 0
        self._losses: list[tuple[int, int, int]] = []
        self._quiet: dict[int, None] = {}
        """Ids of packets that were given back before they had ended."""

    def add(self, hops: np.ndarray, drops: np.ndarray) -> None:
        """Take batches of `struct hop_event` and `struct drop_event`, in any order."""
        kept = _is_packet(hops)
        if not kept.all():
            hops = hops.take(np.flatnonzero(kept | branches.is_bare(hops["hop"])))
        if len(hops):
            self._hops.append(hops)
            self._note_openers(hops)
        drops = drops[(drops["packet_id"] > 0) & _is_packet(drops)]
        if len(drops):
            self._drops.append(drops)

    def _note_openers(self, hops: np.ndarray) -> None:
        """Who of a connection was seen first names it, though the answer may be complete before."""
        first = np.flatnonzero(hops["flags"] & FLAG.HOP_FIRST)
        first = first[np.argsort(hops["time_ns"][first], kind="stable")]
        size, tuples = hops.dtype["tuple"].itemsize, hops.take(first)["tuple"].tobytes()
        for at in range(0, len(tuples), size):
            self._flows.find(tuples[at : at + KEY_BYTES])

    def note_losses(self, total: int, now_ns: int) -> None:
        """Tell how many hop records the kernel has lost so far, before `take`."""
        if total > self._lost:
            self._losses.append((self._loss_looked_ns, now_ns, total - self._lost))
        self._lost, self._loss_looked_ns = total, now_ns
        self._losses = self._losses[-MANY_DROPS:]

    @uncollected()
    def take(self, now_ns: int, *, everything: bool = False) -> list[Path]:
        """Packets that ended, or were quiet for QUIET_NS; by the time of their first hop.

        `now_ns` is CLOCK_BOOTTIME; with `everything` also those still under way.
        """
        waiting = sum(map(len, self._hops))
        if waiting > BUSY_HOPS and now_ns - self._looked_ns < PACE_NS and not everything:
            return []
        self._looked_ns = now_ns
        drops = np.concatenate(self._drops) if self._drops else _NO_DROPS()
        rows = self._join_orphans(drops, now_ns, everything=everything)
        if rows is None:
            return []
        ids = branches.roots(rows)
        done, quiet = _complete(rows, ids, drops, now_ns)
        done |= everything
        self._hops = [] if done.all() else [rows.take(np.flatnonzero(~done))]
        known = among(drops["packet_id"], rows["packet_id"][done])
        kept = drops[~known]
        self._drops = [kept] if len(kept) else []
        if not done.any():
            return []
        paths = self._paths(*branches.sort(rows, ids, done), drops[known])
        self._quiet.update(dict.fromkeys(rows["packet_id"][quiet].tolist()))
        for one in list(self._quiet)[: max(0, len(self._quiet) - MANY_WAITING)]:
            del self._quiet[one]
        return paths

    def _join_orphans(
        self, drops: np.ndarray, now_ns: int, *, everything: bool
    ) -> np.ndarray | None:
        """All hops; a drop whose hop records were all lost is made into one."""
        late = (drops["time_ns"].astype(np.int64) < now_ns - QUIET_NS) | everything
        for hops in self._hops:
            late &= ~among(drops["packet_id"], hops["packet_id"])
        if late.any():
            dtype = self._hops[0].dtype if self._hops else layout().structs["hop_event"]
            self._hops.append(_as_hops(drops[late], dtype))
        if not self._hops:
            return None
        rows = _without_strays(_together(self._hops), now_ns, everything=everything)
        self._hops = [rows] if len(rows) else []
        return rows if len(rows) else None

    def _paths(
        self,
        rows: np.ndarray,
        ids: NDArray[np.uint64],
        resent: NDArray[np.uint64],
        drops: np.ndarray,
    ) -> list[Path]:
        order = branches.order(rows, ids)
        told = columns(rows, order, _netns(rows, order), self._tracking.invalid(rows))
        outer, bare = in_tunnel(rows, order.starts), branches.is_bare(rows["hop"])
        inner = _first_of(~outer & ~bare, order)
        batch = Batch(
            rows,
            order,
            told,
            np.where(inner < 0, order.starts[:-1], inner),
            _first_of(outer, order),
            conntrack_rows(rows, order, ~outer),
            np.argsort(rows["time_ns"][order.starts[:-1]], kind="stable").tolist(),
        )
        return list(self._each(batch, ids, resent, drops))

    def _each(
        self,
        batch: Batch,
        ids: NDArray[np.uint64],
        resent: NDArray[np.uint64],
        drops: np.ndarray,
    ) -> Iterator[Path]:
        rows, starts = batch.rows, batch.order.starts.tolist()
        first = batch.order.starts[:-1]
        last = batch.order.starts[1:] - 1
        begin = rows.take(first)
        again = (self._retransmissions.find(begin) | among(ids[first], resent)).tolist()
        joined = (rows["flags"] & FLAG.HOP_JOINED > 0) | (rows["packet_id"] != ids)
        joined_each = np.logical_or.reduceat(joined, first).tolist()
        flows = self._flows_of(batch)
        deaths = _last_deaths(rows, batch.order, drops)
        lost = self._lost_during(begin["time_ns"], rows["time_ns"][last])
        late = self._late(begin)
        for number in batch.by_time:
            if number in late:
                continue
            death = deaths.get(number)
            yield Path(
                batch,
                number,
                starts[number],
                starts[number + 1],
                flows[number],
                drop=None if death is None else drops[death],
                retransmitted=again[number],
                joined=joined_each[number],
                lost=lost[number],
            )

    def _late(self, first: np.ndarray) -> set[int]:
        """Which packets, by their first hops, were given back while they waited in their socket.

        That they are read or freed now makes no other packets of them.
        """
        unbegun = first["flags"] & FLAG.HOP_FIRST == 0
        numbers = np.flatnonzero(unbegun & np.isin(first["hop"], _IN_SOCKET)).tolist()
        return {one for one in numbers if int(first["packet_id"][one]) in self._quiet}

    def _flows_of(self, batch: Batch) -> list[Flow]:
        """Of each packet, in the order of time, for the first seen of a connection names it."""
        rows, first = batch.rows, batch.order.starts[:-1]
        size = rows.dtype["tuple"].itemsize
        own = rows["tuple"][batch.inner].tobytes()
        entries = rows["ct"][np.maximum(batch.conntrack, 0)]
        orig, reply = entries["orig"].tobytes(), entries["reply"].tobytes()
        flows: list[Flow | None] = [None] * len(first)
        tracked = (batch.conntrack >= 0).tolist()
        for number in batch.by_time:
            key = slice(number * size, number * size + KEY_BYTES)
            flows[number] = (
                self._flows.learn(orig[key], reply[key])
                if tracked[number]
                else self._flows.find(own[key])
            )
        return [flow for flow in flows if flow is not None]

    def _lost_during(self, begin: NDArray[np.uint64], end: NDArray[np.uint64]) -> list[int]:
        lost = np.zeros(len(begin), np.int64)
        for since, until, count in self._losses:
            lost[(begin <= until) & (end >= since)] += count
        return [int(count) for count in lost]


def _NO_DROPS() -> np.ndarray:  # noqa: N802 - stands for a constant that needs the layout
    return np.empty(0, layout().structs["drop_event"])


def _as_hops(drops: np.ndarray, dtype: np.dtype[np.void]) -> np.ndarray:
    """The last hop of each packet, as its drop tells it."""
    hops = np.zeros(len(drops), dtype)
    same = ("time_ns", "packet_id", "skb", "location", "netns", "ifindex", "bytes", "mark")
    for name in (*same, "has_mac", "tuple", "ct"):
        hops[name] = drops[name]
    room = dtype["packet"].shape[0]
    hops["packet"] = drops["packet"][:, :room]
    hops["captured_bytes"] = np.minimum(drops["captured_bytes"], room)
    hops["hop"], hops["argument"] = HOP.HOP_DROPPED, drops["reason"]
    hops["flags"] = FLAG.HOP_GONE
    return hops


def _together(parts: list[np.ndarray]) -> np.ndarray:
    """One array of several; as plain bytes, for numpy copies structs field by field."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    plain = np.dtype((np.void, dtype.itemsize))
    return np.concatenate([part.view(plain) for part in parts]).view(dtype)


def _without_strays(rows: np.ndarray, now_ns: int, *, everything: bool) -> np.ndarray:
    """Leave out hops that only mean a packet, where that has been given back long ago."""
    is_bare = branches.is_bare(rows["hop"])
    bare = np.flatnonzero(is_bare)
    alone = bare[~among(rows["packet_id"][bare], rows["packet_id"][~is_bare])]
    strays = alone[(rows["time_ns"][alone].astype(np.int64) < now_ns - QUIET_NS) | everything]
    return rows.take(np.delete(np.arange(len(rows)), strays)) if len(strays) else rows


def _complete(
    rows: np.ndarray, ids: NDArray[np.uint64], drops: np.ndarray, now_ns: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows belong to packets that are complete, and last rows that only are quiet.

    A joined packet has several ids, one for each place of its data; it is complete when each of
    them has ended, is quiet, or was left by its sk_buff for the next. Of each death the drop is
    told, too, right behind its hop: until then it has not ended.
    """
    index = np.flatnonzero(~branches.is_bare(rows["hop"]))
    index = index[np.lexsort((rows["time_ns"][index], rows["packet_id"][index]))]
    own = rows["packet_id"][index]
    is_last = np.ones(len(own), bool)
    is_last[:-1] = own[1:] != own[:-1]
    last = index[is_last]
    hops, root = rows["hop"][last], ids[last]
    ended = branches.is_end(hops) & (rows["flags"][last] & FLAG.HOP_GONE > 0)
    ended &= ~among(rows["packet_id"][last], _untold(rows, drops))
    quiet = ~ended & (rows["time_ns"][last].astype(np.int64) < now_ns - QUIET_NS)
    ended |= quiet
    moved = rows["packet_id"][last] != root
    if moved.any():
        latest: dict[int, int] = {}
        for one, time_ns in zip(root.tolist(), rows["time_ns"][last].tolist(), strict=True):
            latest[one] = max(latest.get(one, 0), time_ns)
        newest = np.array([latest[one] for one in root.tolist()], np.uint64)
        ended |= among(root, root[moved]) & (rows["time_ns"][last] < newest)
    return ~among(ids, root[~ended]) & among(ids, root), last[quiet]


def _is_packet(events: np.ndarray) -> NDArray[np.bool_]:
    """Which hops or drops are of a network's packets, each of which has an EtherType.

    The memory of one may hold a netlink message later. Where the packet, as ARP, had no signature
    either, the kernel takes that for it.
    """
    are_packets: NDArray[np.bool_] = events["tuple"]["ethertype"] > 0
    return are_packets


def _untold(rows: np.ndarray, drops: np.ndarray) -> NDArray[np.uint64]:
    """Ids of packets, and their clones, that died more often than drops have come."""
    dead, deaths = np.unique(rows["packet_id"][rows["hop"] == HOP.HOP_DROPPED], return_counts=True)
    known = Counter(drops["packet_id"].tolist())
    few = [
        one for one, count in zip(dead.tolist(), deaths.tolist(), strict=True) if count > known[one]
    ]
    return np.array(few, np.uint64)


def _netns(rows: np.ndarray, order: branches.Order) -> NDArray[np.uint32]:
    """Namespaces; a free does not always know its own: that of the hop before."""
    netns: NDArray[np.uint32] = rows["netns"].copy()
    for row in np.flatnonzero((netns == 0) & (order.state >= 0)).tolist():
        netns[row] = netns[order.state[row]]
    return netns


def _first_of(mask: NDArray[np.bool_], order: branches.Order) -> NDArray[np.int64]:
    """Of each packet the first row where `mask` holds, or -1."""
    count = len(mask)
    rows = np.minimum.reduceat(np.where(mask, np.arange(count), count), order.starts[:-1])
    return np.where(rows < count, rows, -1)


def _last_deaths(rows: np.ndarray, order: branches.Order, drops: np.ndarray) -> dict[int, int]:
    """Packet number → the index in `drops` of its last death."""
    if not len(drops):
        return {}
    dead = np.flatnonzero(rows["hop"] == HOP.HOP_DROPPED)
    numbers = np.searchsorted(order.starts, dead, "right") - 1
    packet_of = dict(zip(rows["packet_id"][dead].tolist(), numbers.tolist(), strict=True))
    deaths: dict[int, int] = {}
    for at in np.argsort(drops["time_ns"], kind="stable").tolist():
        number = packet_of.get(int(drops["packet_id"][at]))
        if number is not None:
            deaths[number] = at
    return deaths
