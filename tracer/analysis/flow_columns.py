"""Flow counts and flow drops of one interval → tables of flow records (tracer.flow_table).

Names are looked up once for each place, address and number that occurs, never for each flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.connections import Details, Linked, link, no_details
from tracer.analysis.drops import DIRECTIONS, place_fields
from tracer.analysis.flow_details import connection_columns, detail_columns
from tracer.analysis.flow_ends import Ends, Pods, distinct_places, named, numbers, spread
from tracer.analysis.flows import sum_flows
from tracer.analysis.packet import tcp_flags
from tracer.analysis.services import service_columns
from tracer.flow_table import Column, FlowTable, concat, constant, take
from tracer.flow_table import table as as_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tracer.analysis.drops import Context
    from tracer.model import Node

Numbers = np.ndarray
_EGRESS, _INGRESS = 1, 2
_TCP = 6
TABLE_ROWS = 1 << 14
"""Flows told in one table: of a million all columns at once would take half a gigabyte."""


def flow_tables(
    keys: Numbers, counts: Numbers, context: Context, details: Details | None = None
) -> Iterator[FlowTable]:
    """Packets that crossed pod devices: `keys` (n,) flow_key, `counts` (n,) flow_count, in rows.

    Rows of one flow are summed; earliest first, in tables of up to TABLE_ROWS.
    """
    details = details or no_details()
    keys, totals = sum_flows(keys, counts)
    linked = link(keys, totals["syn_ns"], details)
    order = np.argsort(totals["first_ns"], kind="stable")
    pods = Pods(context.node)
    for at in range(0, len(order), TABLE_ROWS):
        rows = order[at : at + TABLE_ROWS]
        columns = _flow_columns(keys[rows], totals[rows], linked.at(rows), context, pods, details)
        yield as_table(len(rows), columns)


def flow_table(
    keys: Numbers, counts: Numbers, context: Context, details: Details | None = None
) -> FlowTable:
    """All of `flow_tables` in one."""
    return concat(list(flow_tables(keys, counts, context, details)))


def _flow_columns(
    keys: Numbers,
    totals: Numbers,
    linked: Linked,
    context: Context,
    pods: Pods,
    details: Details,
) -> dict[str, Column]:
    ends = Ends(keys["tuple"])
    charged = pods.at_places(keys)
    unplaced = charged < 0
    charged[unplaced] = pods.by_address(ends)[ends.source[unplaced]]
    flags = named(totals["tcp_flags"], tcp_flags, (keys["tuple"]["protocol"] == _TCP) & ends.ip)
    return {
        **_common(keys, context, pods, charged, keys["direction"], ends),
        **connection_columns(details.entries, linked, ends, pods, context.node),
        **detail_columns(totals, linked, ends),
        **_times(_wall_ns(totals["first_ns"], context), _wall_ns(totals["last_ns"], context)),
        "verdict": constant("forwarded", len(keys)),
        "packets": Column(totals["packets"]),
        "bytes": Column(totals["bytes"]),
        "tcp.flags": flags,
    }
<<<<<<< ours
    asker = pods.namespaces(charged, keys["netns"])
    columns |= _dns(asker, ends, (totals["first_ns"], totals["last_ns"]), context)
    return as_table(len(keys), columns)


def _if_any(values: NDArray[np.unsignedinteger]) -> Column:
    """Numbers that are absent where they are 0."""
    return Column(values, None, values > 0)
=======
>>>>>>> theirs


def drop_table(
    keys: Numbers, counts: Numbers, context: Context, interval_ns: tuple[int, int]
) -> FlowTable:
    """Packets of pods' flows that died: `keys` (n,) flow_drop_key, `counts` (n, cpus) drop_count.

    `interval_ns` is the interval's begin and end, wall clock: drops are not timed one by one.
    Drops in the node's own namespace that concern no pod are left out.
    """
    flow = keys["flow"]
    ends = Ends(flow["tuple"])
    pods = Pods(context.node)
    charged = pods.at_places(flow)
    unplaced = charged < 0
    end = np.where(flow["direction"] == _INGRESS, ends.goal, ends.source)
    charged[unplaced] = pods.by_address(ends)[end[unplaced]]
    # The kernel's direction is that of the first address it knew, maybe of the other pod.
    direction = np.where(pods.owns(ends, charged, ends.goal), _INGRESS, flow["direction"])
    direction = np.where(pods.owns(ends, charged, ends.source), _EGRESS, direction)
    columns = _common(flow, context, pods, charged, direction, ends)
    columns |= {
        **_times(np.full(len(keys), interval_ns[0]), np.full(len(keys), interval_ns[1])),
        "verdict": constant("dropped", len(keys)),
        "packets": Column(counts["packets"].sum(axis=1)),
        "bytes": Column(counts["bytes"].sum(axis=1)),
        **service_columns(ends.flow, ends.addresses, (ends.goal, ends.source), context.node),
        "drop.reason": named(keys["reason"], context.reason),
        "drop.location": named(keys["location"], context.symbol),
    }
    now_ns = np.full(len(keys), interval_ns[1] - context.wall_offset_ns)
    columns |= _dns(pods.namespaces(charged, flow["netns"]), ends, (now_ns, now_ns), context)
    whole = as_table(len(keys), columns)
    return take(whole, (charged >= 0) | (flow["netns"] != context.node.netns))


def other_table(
    keys: Numbers, packets: Numbers, sizes: Numbers, context: Context, now_ns: int
) -> FlowTable:
    """What found no room in the flow map, summed by pod device: `keys` (n,) flow_other_key."""
    pods = Pods(context.node)
    columns = _common(keys, context, pods, pods.at_places(keys), keys["direction"])
    columns |= {
        **_times(np.full(len(keys), now_ns), np.full(len(keys), now_ns)),
        "verdict": constant("forwarded", len(keys)),
        "flow.other": Column(np.ones(len(keys), bool)),
        "packets": Column(packets),
        "bytes": Column(sizes),
    }
    return as_table(len(keys), columns)


def _common(
    places: Numbers,
    context: Context,
    pods: Pods,
    charged: NDArray[np.int64],
    direction: NDArray[np.generic],
    ends: Ends | None = None,
) -> dict[str, Column]:
    """What every record has: the pod, its device, and where known the packet and both ends."""
    columns = {
        "type": constant("flow", len(places)),
        "direction": named(direction, lambda value: DIRECTIONS.get(value, "")),
        "k8s.node.name": constant(context.node.name, len(places)),
        **pods.columns("k8s.pod.namespace", "k8s.pod.name", "k8s.owner", charged),
        **_places(places, context.node),
    }
    if ends is None:
        return columns | _end_columns(pods, charged, direction, None)
    return columns | ends.columns() | _end_columns(pods, charged, direction, ends)


def _end_columns(
    pods: Pods, charged: NDArray[np.int64], direction: NDArray[np.generic], ends: Ends | None
) -> dict[str, Column]:
    """The pods at both ends: the charged one by direction, others by address."""
    nobody = np.full(len(charged), -1)
    columns: dict[str, Column] = {}
    for name, own in (("src", _EGRESS), ("dst", _INGRESS)):
        pod = nobody
        if ends is not None:
            pod = pods.by_address(ends)[ends.source if name == "src" else ends.goal]
        pod = np.where((charged >= 0) & (direction == own), charged, pod)
        prefix = f"k8s.{name}"
        names = f"{prefix}.namespace", f"{prefix}.pod.name", f"{prefix}.owner"
        columns |= pods.columns(*names, pod)
    return columns


def _dns(
    asker: Numbers, ends: _Ends, times_ns: tuple[Numbers, Numbers], context: Context
) -> dict[str, Column]:
    """The names that led the pods of the namespaces `asker` (n,) to the addresses at both ends."""
    if context.dns is None:
        return {}
    return {
        f"{end}.dns.name": context.dns.column(asker, ends.addresses, code, times_ns)
        for end, code in (("src", ends.source), ("dst", ends.goal))
    }


def _times(first_ns: Numbers, last_ns: Numbers) -> dict[str, Column]:
    return {"time": Column(first_ns.astype(np.int64)), "end_time": Column(last_ns.astype(np.int64))}


def _wall_ns(boot_ns: Numbers, context: Context) -> NDArray[np.int64]:
    """The same as Context.wall_ns, of many."""
    until = np.array([step[0] for step in context.clock_steps], np.int64)
    offset = np.array([*(step[1] for step in context.clock_steps), context.wall_offset_ns])
    times = boot_ns.astype(np.int64)
    return np.asarray(times + offset[np.searchsorted(until, times, side="right")])


def _places(keys: Numbers, node: Node) -> dict[str, Column]:
    """Where on the node: device and network namespace."""
    distinct, code = distinct_places(keys)
    fields = [place_fields(node, *place) for place in distinct]
    names = "interface.name", "netns.name"
    columns = {name: spread([one.get(name) for one in fields], code) for name in names}
    for name, column in (("interface.index", "ifindex"), ("netns", "netns")):
        columns[name] = numbers(keys[column], keys[column] > 0)
    return columns
<<<<<<< ours


@dataclass(frozen=True)
class _Ends:
    """Who sent and who was to receive, by numbers of the distinct addresses."""

    flow: Numbers
    """(n,) tuple of bpf/event.h."""
    addresses: list[str] = field(init=False)
    """Each once; canonical text."""
    source: NDArray[np.int64] = field(init=False)
    """(n,): index into `addresses`; -1 where the packet has none. `goal` likewise."""
    goal: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Number the addresses: IPv4 by their 32 bits, the few others by all bytes."""
        flow = self.flow
        raw = np.concatenate((flow["saddr"], flow["daddr"]))
        ip = np.concatenate((self.ip, self.ip))
        words = np.ascontiguousarray(raw).view(np.uint32)
        is_v4 = (words[:, :3] == _MAPPED).all(axis=1) & ip
        code = np.full(len(raw), -1)
        v4, code[is_v4] = _number(words[is_v4, 3])
        rest = ip & ~is_v4
        v6, other = _number(np.ascontiguousarray(raw[rest]).view("V16").ravel())
        code[rest] = other + len(v4)
        texts = [inet_ntoa(one.tobytes()) for one in v4]
        texts += [str(IPv6Address(one.tobytes())) for one in v6]
        object.__setattr__(self, "addresses", texts)
        object.__setattr__(self, "source", code[: len(flow)])
        object.__setattr__(self, "goal", code[len(flow) :])

    @cached_property
    def ip(self) -> NDArray[np.bool_]:
        """(n,): IPv4 and IPv6: what has addresses and a transport."""
        return np.isin(self.flow["ethertype"], (ETH_P_IP, ETH_P_IPV6))

    def columns(self) -> dict[str, Column]:
        """Addresses, ports and protocols."""
        flow = self.flow
        protocol = flow["protocol"]
        icmp = np.isin(protocol, (_ICMP, _ICMPV6)) & self.ip
        ports = self.ip & ~icmp & ((flow["sport"] > 0) | (flow["dport"] > 0))
        return {
            "network.type": _named(flow["ethertype"], network_type),
            "transport": _named(protocol, transport, self.ip),
            "network.iana_number": _numbers(protocol, self.ip),
            "src.address": _spread(self.addresses, self.source),
            "dst.address": _spread(self.addresses, self.goal),
            "src.port": _numbers(flow["sport"], ports),
            "dst.port": _numbers(flow["dport"], ports),
            "icmp.type": _numbers(flow["sport"].astype(np.uint8), icmp),
            "icmp.code": _numbers(flow["dport"].astype(np.uint8), icmp),
        }


def _number(values: Numbers) -> tuple[Numbers, NDArray[np.int64]]:
    """Distinct values, and which of them each row has."""
    distinct, code = np.unique(values, return_inverse=True)
    return distinct, code.ravel()


class _Pods:
    """The node's pods, and those of the cluster that occur, by small numbers; -1 is no pod."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pods: list[Pod | ClusterPod] = list(node.pods.values())
        self._number = {uid: number for number, uid in enumerate(node.pods)}
        self._by_address: tuple[_Ends, NDArray[np.int64]] | None = None

    @cached_property
    def _names(self) -> tuple[Column, ...]:
        """Of each pod: namespace, name, kind and name of its owner."""
        owners = [owner_of(self._node, pod) for pod in self._pods]
        return (
            coded(pod.namespace for pod in self._pods),
            coded(pod.name or getattr(pod, "uid", "") for pod in self._pods),
            coded(owner.kind if owner else None for owner in owners),
            coded(owner.name if owner else None for owner in owners),
        )

    def _of(self, uid: str | None) -> int:
        return -1 if uid is None else self._number.get(uid, -1)

    def at_places(self, keys: Numbers) -> NDArray[np.int64]:
        """(n,): whose namespace or device it is."""
        node = self._node
        distinct, code = _distinct_places(keys)
        numbers = [
            self._of(node.pod_by_netns.get(place[0]) or node.pod_by_device.get(place))
            for place in distinct
        ]
        return np.array(numbers, np.int64)[code]

    def by_address(self, ends: _Ends) -> NDArray[np.int64]:
        """The pod of each distinct address; the last is for -1, no address."""
        if self._by_address is None or self._by_address[0] is not ends:
            uids = map(self._node.pod_by_address.get, ends.addresses)
            numbers = [*map(self._of, uids), -1]
            for at, address in enumerate(ends.addresses):
                if numbers[at] < 0 and (pod := pod_at(self._node, address)):
                    numbers[at] = self._remote(pod)
            self._by_address = ends, np.array(numbers)
        return self._by_address[1]

    def _remote(self, pod: Pod | ClusterPod) -> int:
        """The number of a pod of another node."""
        if pod.key not in self._number:
            self._number[pod.key] = len(self._pods)
            self._pods.append(pod)
            self.__dict__.pop("_names", None)
        return self._number[pod.key]

    def namespaces(self, charged: NDArray[np.int64], places: Numbers) -> Numbers:
        """(n,): network namespace of the charged pod, without one that of the place."""
        own = [getattr(pod, "netns", None) or 0 for pod in self._pods]
        found = np.array([*own, 0], np.int64)[charged]
        return np.where(found > 0, found, places)

    def owns(
        self, ends: _Ends, charged: NDArray[np.int64], address: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """(n,): whether the address is one of the charged pod's own."""
        numbered = dict(zip(ends.addresses, range(len(ends.addresses)), strict=True))
        pairs = [
            number * len(numbered) + numbered[text]
            for number in np.unique(charged[charged >= 0]).tolist()
            for text in self._pods[number].addresses
            if text in numbered
        ]
        own = np.isin(charged * len(numbered) + address, np.array(pairs, np.int64))
        return np.asarray(own & (charged >= 0) & (address >= 0))

    def columns(
        self, namespace: str, name: str, owner: str, pods: NDArray[np.int64]
    ) -> dict[str, Column]:
        """The names of (n,) pods, under these names."""
        names = namespace, name, f"{owner}.kind", f"{owner}.name"
        return {
            name: Column(np.append(of.values, np.int32(-1))[pods], of.words)
            for name, of in zip(names, self._names, strict=True)
        }
=======
>>>>>>> theirs
