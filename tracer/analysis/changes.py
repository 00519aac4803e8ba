"""What happened to a packet between one hop and the next, in words; compared in columns."""

from __future__ import annotations

import errno
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.addresses import address_text
from tracer.analysis.branches import FLAG, HOP, is_bare
from tracer.analysis.conntrack import INFO, IP_CT_IS_REPLY, TCP_STATES, UNTRACKED_INFO
from tracer.analysis.flow_key import KEY_BYTES
from tracer.analysis.packet import ETH_P_IP, ETH_P_IPV6, endpoint, transport
from tracer.analysis.tunnel import tunnel_of
from tracer.analysis.untracked import INVALID, UNTRACKED
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tracer.analysis.branches import Order

_TTL_AT = {ETH_P_IP: 8, ETH_P_IPV6: 7}
IP_HEADER_BYTES = 20
_MORE_OR_OFFSET, _IPPROTO_FRAGMENT = 0x3F, 44
_WITHOUT_PORTS = ("icmp", "icmpv6")
_IPS_CONFIRMED = 1 << 3
_NO_ROUTE = {
    -errno.EAGAIN: "no route",
    -errno.EACCES: "prohibit route",
    -errno.EINVAL: "blackhole route",
    -errno.EHOSTUNREACH: "unreachable route",
    -errno.ENETUNREACH: "unreachable route",
}
"""What fib_table_lookup answers where a table does not say whither (fib_props, fib6_prop)."""
_TABLES = {253: "default", 254: "main", 255: "local"}
_IN_SOCKET = (HOP.HOP_TCP_RECEIVE, HOP.HOP_COPIED, HOP.HOP_CONSUMED, HOP.HOP_DROPPED)
"""All others see the whole packet; here a socket may have taken its headers off."""


def changes(rows: np.ndarray, order: Order, invalid: NDArray[np.int64]) -> Mapping[int, list[str]]:
    """Row → what changed there since the hop before in its branch; `invalid`: see untracked.

    Of a pair of netfilter hops the row is that of HOP_NF_ENTER, and what is told is what
    happened up to HOP_NF_LEAVE. Crossing into another namespace is not told here.
    """
    told: dict[int, list[str]] = defaultdict(list)
    visible = np.ones(len(rows), bool)
    visible[order.leave[order.leave >= 0]] = False
    visible &= ~is_bare(rows["hop"])
    row = np.flatnonzero(visible)
    now = np.where(order.leave[row] >= 0, order.leave[row], row)
    before = order.state[row]
    _begin(rows, row[before < 0], told)
    before = np.where((before < 0) & (now != row), row, before)
    row, now, before = (part[before >= 0] for part in (row, now, before))
    for at in row[_data_moved(rows, before, row) | _data_moved(rows, row, now)].tolist():
        told[at].append("data copied")
    ttl = ttls(rows)
    unlike = _unlike(rows, ttl, before, now)
    row, now, before = row[unlike], now[unlike], before[unlike]
    for differs, say in _COMPARISONS:
        for at in np.flatnonzero(differs(rows, before, now)).tolist():
            text = say(rows, int(before[at]), int(now[at]))
            if text:
                told[int(row[at])].append(text)
    fell = np.flatnonzero((ttl[before] != ttl[now]) & (ttl[before] > 0) & (ttl[now] > 0))
    old, new = ttl[before[fell]].tolist(), ttl[now[fell]].tolist()
    for at, one, other in zip(row[fell].tolist(), old, new, strict=True):
        told[at].append(f"ttl {one} → {other}")
    forked = np.flatnonzero((order.branch > 0) & (order.previous >= 0))
    forked = forked[order.branch[order.previous[forked]] != order.branch[forked]]
    # Clones share their data; what has other data was cut out of it, or put together.
    segment = (rows["hop"] == HOP.HOP_DEV_XMIT) & (rows["head"] != rows["head"][order.previous])
    for at in forked.tolist():
        told[at].insert(0, "segment" if segment[at] else "clone")
    _routes(rows, told)
    entered = order.state[invalid]
    for at in np.where(order.leave[entered] == invalid, entered, invalid).tolist():
        told[at].append(INVALID)
    for at in np.flatnonzero(rows["hop"] == HOP.HOP_QDISC_ENQUEUE).tolist():
        told[at].append(f"kept by {_text(rows['gateway'][at])}")
    return told


def _data_moved(
    rows: np.ndarray, before: NDArray[np.int64], now: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the packet was recognised anew: by the kernel, by its address, or by `roots`."""
    joined = (now != before) & (rows["flags"][now] & FLAG.HOP_JOINED > 0)
    moved: NDArray[np.bool_] = joined | (rows["packet_id"][before] != rows["packet_id"][now])
    return moved


def _unlike(
    rows: np.ndarray, ttl: NDArray[np.uint8], before: NDArray[np.int64], now: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which pairs may differ in anything: most do not, and need no closer look.

    Rows are like each other if no row between them differs from the one above it.
    """
    differs = np.zeros(len(rows), bool)
    differs[1:] = ttl[1:] != ttl[:-1]
    for name in ("packet_id", "mark", "bytes", "flags", "gso_segments"):
        column = rows[name]
        differs[1:] |= column[1:] != column[:-1]
    for name in ("tuple", "ct"):
        for word in rows[name].view((np.uint64, rows.dtype[name].itemsize // 8)).T:
            differs[1:] |= word[1:] != word[:-1]
    stretch = np.cumsum(differs)
    unlike: NDArray[np.bool_] = stretch[before] != stretch[now]
    return unlike


def in_tunnel(rows: np.ndarray, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows see the packet with a second IP header before its own.

    NAT changes addresses, only encapsulation adds bytes as well; `starts` as in branches.Order.
    """
    tuples, count = rows["tuple"], np.diff(starts)
    bare = is_bare(rows["hop"])
    size = np.where(bare, np.iinfo(np.int64).max, rows["bytes"].astype(np.int64))
    least = np.repeat(np.minimum.reduceat(size, starts[:-1]), count)
    larger: NDArray[np.bool_] = ~bare & (size - least >= IP_HEADER_BYTES)
    if not larger.any():
        return larger
    index = np.where(larger | bare, len(rows) - 1, np.arange(len(rows)))
    own = np.repeat(np.minimum.reduceat(index, starts[:-1]), count)[larger]
    at = np.flatnonzero(larger)
    for name in ("saddr", "daddr"):
        address = tuples[name]
        larger[at] &= (address[at] != address[own]).any(axis=1)
    return larger


def _begin(rows: np.ndarray, first: NDArray[np.int64], told: dict[int, list[str]]) -> None:
    """What is worth telling of a packet's first hop."""
    for at in first[rows["flags"][first] & FLAG.HOP_GSO > 0].tolist():
        told[at].append(f"GSO {rows['gso_segments'][at]} segments")
    for at in first[rows["mark"][first] > 0].tolist():
        told[at].append(f"mark {rows['mark'][at]:#x}")
    entry = rows["ct"][first]
    for at in first[(entry["present"] > 0) | (entry["info"] == UNTRACKED_INFO)].tolist():
        told[at].append(_conntrack(rows, at, at))


def _routes(rows: np.ndarray, told: dict[int, list[str]]) -> None:
    """Routing decisions; the device is added by who knows its name."""
    routes = np.flatnonzero(rows["hop"] == HOP.HOP_ROUTE)
    gateways = rows["gateway"][routes]
    facts = zip(
        routes.tolist(),
        rows["argument"][routes].tolist(),
        rows["error"][routes].tolist(),
        np.any(gateways, axis=1).tolist(),
        strict=True,
    )
    for number, (at, table, error, has_gateway) in enumerate(facts):
        text = f"table {_TABLES.get(table, table)}"
        if error:
            text = f"{_NO_ROUTE.get(error, f'error {error}')} in {text}"
        if has_gateway:
            text += f" via {address_text(gateways[number].tobytes())}"
        told[at].append(text)


def _text(name: NDArray[np.uint8]) -> str:
    """A C string."""
    return name.tobytes().partition(b"\0")[0].decode(errors="replace")


def _differ(*names: str) -> Callable[..., NDArray[np.bool_]]:
    def compare(
        rows: np.ndarray, before: NDArray[np.int64], now: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        differs = np.zeros(len(now), bool)
        for name in names:
            column = rows
            for part in name.split("."):
                column = column[part]
            unequal = column[before] != column[now]
            differs |= unequal.any(axis=1) if unequal.ndim > 1 else unequal
        return differs

    return compare


def _side(rows: np.ndarray, before: int, now: int, side: str) -> str:
    """One side of the packet, translated."""
    if _encapsulated(rows, before, now):
        return ""
    old, new = (_endpoint(rows["tuple"][at], side) for at in (before, now))
    entry = rows["ct"]
    info = int(entry["info"][now]) if entry["present"][now] else None
    return f"{_translation(info, side)} {old} → {new}"


def _encapsulated(rows: np.ndarray, before: int, now: int) -> int:
    """By how many bytes an outer IP header made the packet longer, or its going shorter."""
    more = int(rows["bytes"][now]) - int(rows["bytes"][before])
    if abs(more) < IP_HEADER_BYTES:
        return 0
    old, new = rows["tuple"][before], rows["tuple"][now]
    other = all((old[name] != new[name]).any() for name in ("saddr", "daddr"))
    return more if other else 0


def _size(rows: np.ndarray, before: int, now: int) -> str:
    more = _encapsulated(rows, before, now)
    if not more:
        was, is_now = (_is_fragment(rows[at]) for at in (before, now))
        word = "" if was == is_now else "fragmented, " if is_now else "reassembled, "
        return f"{word}{rows['bytes'][before]} → {rows['bytes'][now]} bytes"
    outer = rows["tuple"][now if more > 0 else before]
    ends = f"{_endpoint(outer, 's')} → {_endpoint(outer, 'd')}"
    carrier = f"{ends} {transport(int(outer['protocol'])).upper()}"
    name, number = tunnel_of_row(rows[now if more > 0 else before])
    tunnel = " ".join(filter(None, (name, "" if number is None else str(number), carrier)))
    return f"{'encapsulated in' if more > 0 else 'decapsulated from'} {tunnel}"


def tunnel_of_row(row: np.void) -> tuple[str, int | None]:
    """As `tunnel_of`, of a `struct hop_event`."""
    data = row["packet"].tobytes()[layout().constants["L2_BYTES"] : int(row["captured_bytes"])]
    return tunnel_of(int(row["tuple"]["ethertype"]), data)


def _is_fragment(row: np.void) -> bool:
    """Whether an IP packet is part of a larger one; of IPv6, if its first extension says so."""
    l3 = row["packet"][layout().constants["L2_BYTES"] :]
    if row["tuple"]["ethertype"] == ETH_P_IP:
        return bool(l3[6] & _MORE_OR_OFFSET or l3[7])
    return bool(row["tuple"]["ethertype"] == ETH_P_IPV6 and l3[6] == _IPPROTO_FRAGMENT)


def _endpoint(one: np.void, side: str) -> str:
    return _ends(one.tobytes())[side]


@lru_cache(maxsize=65536)
def _ends(one: bytes) -> dict[str, str]:
    """Both ends of a `struct tuple` as text."""
    has_ports = transport(one[KEY_BYTES - 1]) not in _WITHOUT_PORTS
    ports = (int.from_bytes(one[at : at + 2], "little") for at in (32, 34))
    addresses = (one[:16], one[16:32])
    return {
        side: endpoint(address_text(address), port if has_ports else None)
        for side, address, port in zip("sd", addresses, ports, strict=True)
    }


def _translation(info: int | None, side: str) -> str:
    """By what: an answer's source is what its opener's destination was."""
    if info is None:
        return {"s": "source", "d": "destination"}[side]
    is_reply = info >= IP_CT_IS_REPLY
    kind = {"s": "DNAT", "d": "SNAT"} if is_reply else {"s": "SNAT", "d": "DNAT"}
    return f"un-{kind[side]}" if is_reply else kind[side]


def _conntrack(rows: np.ndarray, before: int, now: int) -> str:
    entries = rows["ct"]
    return _conntrack_text(
        entries[before].tobytes() if before != now else b"", entries[now].tobytes()
    )


@lru_cache(maxsize=65536)
def _conntrack_text(before: bytes, now: bytes) -> str:
    """What happened to the `struct conntrack` of a packet; `before` may be empty."""
    dtype = layout().structs["conntrack"]
    entry = np.frombuffer(now, dtype)[0]
    old = np.frombuffer(before or bytes(dtype.itemsize), dtype)[0]
    info = int(entry["info"])
    if info >= len(INFO):
        return UNTRACKED
    if not entry["present"]:
        return ""
    words = ["conntrack", INFO[info]]
    if info >= IP_CT_IS_REPLY:
        words.append("reply")
    same = bool(old["present"]) and old["info"] == entry["info"]
    state = int(entry["tcp_state"])
    if same and old["tcp_state"] != entry["tcp_state"]:
        return f"conntrack {_tcp_state(int(old['tcp_state']))} → {_tcp_state(state)}"
    if same:
        newly = int(entry["status"]) & ~int(old["status"])
        return "conntrack confirmed" if newly & _IPS_CONFIRMED else ""
    if state:
        words.append(_tcp_state(state))
    words += [f"zone {entry['zone']}"] * bool(entry["zone"])
    # A mark that an entry has when the packet gets it, no rule has set on its way.
    words += [f"mark {entry['mark']:#x}"] * (not old["present"] and bool(entry["mark"]))
    return " ".join(words)


def _tcp_state(state: int) -> str:
    return TCP_STATES[state] if state < len(TCP_STATES) else str(state)


def _mark(rows: np.ndarray, before: int, now: int) -> str:
    old, new = (int(rows["mark"][at]) for at in (before, now))
    return f"mark {old:#x} → {new:#x}"


def _conntrack_mark(rows: np.ndarray, before: int, now: int) -> str:
    old, new = (rows[at]["ct"] for at in (before, now))
    if not new["present"] or not old["present"]:
        return ""
    return f"conntrack mark {int(old['mark']):#x} → {int(new['mark']):#x}"


def ttls(rows: np.ndarray) -> NDArray[np.uint8]:
    """TTL or hop limit of each row, 0 where its bytes do not tell."""
    ethertype, packet = rows["tuple"]["ethertype"], rows["packet"]
    ttl = np.zeros(len(rows), np.uint8)
    for protocol, at in _TTL_AT.items():
        offset = layout().constants["L2_BYTES"] + at
        has = (ethertype == protocol) & (rows["captured_bytes"] > offset)
        ttl[has] = packet[has, offset]
    return ttl


def _size_differs(
    rows: np.ndarray, before: NDArray[np.int64], now: NDArray[np.int64]
) -> NDArray[np.bool_]:
    whole = ~(np.isin(rows["hop"][before], _IN_SOCKET) | np.isin(rows["hop"][now], _IN_SOCKET))
    differs: NDArray[np.bool_] = whole & (rows["bytes"][before] != rows["bytes"][now])
    return differs


def _gso_differs(
    rows: np.ndarray, before: NDArray[np.int64], now: NDArray[np.int64]
) -> NDArray[np.bool_]:
    is_gso = rows["flags"] & FLAG.HOP_GSO > 0
    segments = np.where(is_gso, rows["gso_segments"], 1)
    differs: NDArray[np.bool_] = segments[before] != segments[now]
    return differs


def _gso(rows: np.ndarray, before: int, now: int) -> str:
    old, new = (max(1, int(rows["gso_segments"][at])) for at in (before, now))
    return f"{'GSO' if new < old else 'GRO'} {old} → {new} segments"


_COMPARISONS: tuple[tuple[Callable[..., NDArray[np.bool_]], Callable[..., str]], ...] = (
    (_differ("tuple.daddr", "tuple.dport"), lambda rows, old, new: _side(rows, old, new, "d")),
    (_differ("tuple.saddr", "tuple.sport"), lambda rows, old, new: _side(rows, old, new, "s")),
    (_differ("mark"), _mark),
    (_differ("ct.present", "ct.info", "ct.status", "ct.tcp_state"), _conntrack),
    (_differ("ct.mark"), _conntrack_mark),
    (_gso_differs, _gso),
    (_size_differs, _size),
)  # fmt: skip
"""Whether rows differ, and what to say then; in the order in which it is said."""
