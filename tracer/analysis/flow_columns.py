"""Flow counts and flow drops of one interval → tables of flow records (tracer.flow_table).

Names are looked up once for each place, address and number that occurs, never for each flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.connections import Details, Linked, link, link_dead, no_details
from tracer.analysis.drops import DIRECTIONS, place_fields
from tracer.analysis.flow_details import connection_columns, detail_columns
from tracer.analysis.flow_ends import Ends, Pods, named, numbers, spread
from tracer.analysis.flow_tunnels import tunnel_columns
from tracer.analysis.flows import distinct_places, sum_flows
from tracer.analysis.packet import tcp_flags
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
    keys, counts = sum_flows(keys, counts)
    linked = link(keys, counts["syn_ns"], details)
    pods = Pods(context.node)
    for rows in by_time(counts):
        columns = flow_columns(keys[rows], counts[rows], linked.at(rows), context, pods, details)
        yield as_table(len(rows), columns)


def by_time(totals: Numbers) -> Iterator[NDArray[np.int64]]:
    """Rows of (n,) flow_count, earliest first, as many at once as one table takes."""
    order = np.argsort(totals["first_ns"], kind="stable")
    for at in range(0, len(order), TABLE_ROWS):
        yield order[at : at + TABLE_ROWS]


def flow_table(
    keys: Numbers, counts: Numbers, context: Context, details: Details | None = None
) -> FlowTable:
    """All of `flow_tables` in one."""
    return concat(list(flow_tables(keys, counts, context, details)))


def flow_columns(
    keys: Numbers,
    totals: Numbers,
    linked: Linked,
    context: Context,
    pods: Pods,
    details: Details,
) -> dict[str, Column]:
    """Of (n,) flow_key, each once, with their sums and what belongs to them."""
    ends = Ends(keys["tuple"])
    charged = pods.at_places(keys)
    unplaced = charged < 0
    charged[unplaced] = pods.by_address(ends)[ends.source[unplaced]]
    asker = pods.namespaces(charged, keys["netns"])
    columns = {
        **_common(keys, context, pods, charged, keys["direction"], ends),
        **_dns(asker, ends, (totals["first_ns"], totals["last_ns"]), context),
        **connection_columns(details.entries, linked, ends, pods, context.node),
        **detail_columns(totals, linked, ends),
        **_times(_wall_ns(totals["first_ns"], context), _wall_ns(totals["last_ns"], context)),
        "verdict": constant("forwarded", len(keys)),
        "packets": Column(totals["packets"]),
        "bytes": Column(totals["bytes"]),
        "sample.rate": numbers(totals["sample_rate"], totals["sample_rate"] > 1),
        "tcp.flags": flags_column(totals, ends),
    }
    return columns | tunnel_columns(columns, context.node, context.ways)


def flags_column(totals: Numbers, ends: Ends) -> Column:
    """All that were seen, of TCP."""
    return named(totals["tcp_flags"], tcp_flags, (ends.flow["protocol"] == _TCP) & ends.ip)


def drop_table(
    keys: Numbers,
    counts: Numbers,
    context: Context,
    interval_ns: tuple[int, int],
    entries: Numbers | None = None,
) -> FlowTable:
    """Packets of pods' flows that died: `keys` (n,) flow_drop_key, `counts` (n, cpus) drop_count.

    `interval_ns` is the interval's begin and end, wall clock: drops are not timed one by one.
    `entries` is (m,) conntrack: connections that crossed the node or died there, newest last.
    Drops in the node's own namespace that concern no pod are left out.
    """
    flow = keys["flow"]
    ends = Ends(flow["tuple"])
    pods = Pods(context.node)
    charged, direction = _charged(flow, ends, pods)
    # In the node's namespace the kernel knows what the sender wrote, in others what crossed.
    sent = (flow["netns"] == context.node.netns) | (direction == _EGRESS)
    entries = no_details().entries if entries is None else entries
    linked = link_dead(ends.flow, sent, entries)
    columns = _common(flow, context, pods, charged, direction, ends)
    columns |= {
        **connection_columns(entries, linked, ends, pods, context.node),
        **_times(np.full(len(keys), interval_ns[0]), np.full(len(keys), interval_ns[1])),
        "verdict": constant("dropped", len(keys)),
        "packets": Column(counts["packets"].sum(axis=1)),
        "bytes": Column(counts["bytes"].sum(axis=1)),
        "drop.reason": named(keys["reason"], context.reason),
        "drop.location": named(keys["location"], context.symbol),
    }
    now_ns = np.full(len(keys), interval_ns[1] - context.wall_offset_ns)
    columns |= _dns(pods.namespaces(charged, flow["netns"]), ends, (now_ns, now_ns), context)
    whole = as_table(len(keys), columns | tunnel_columns(columns, context.node, context.ways))
    return take(whole, (charged >= 0) | (flow["netns"] != context.node.netns))


def _charged(
    flow: Numbers, ends: Ends, pods: Pods
) -> tuple[NDArray[np.int64], NDArray[np.generic]]:
    """Whose drops these are, of (n,) flow_key, or -1, and their direction as that pod sees it."""
    charged = pods.at_places(flow)
    unplaced = charged < 0
    end = np.where(flow["direction"] == _INGRESS, ends.goal, ends.source)
    charged[unplaced] = pods.by_address(ends)[end[unplaced]]
    # The kernel's direction is that of the first address it knew, maybe of the other pod.
    direction = np.where(pods.owns(ends, charged, ends.goal), _INGRESS, flow["direction"])
    return charged, np.where(pods.owns(ends, charged, ends.source), _EGRESS, direction)


def other_table(
    keys: Numbers, counts: Numbers, context: Context, now_ns: int, sample_rate: int = 1
) -> FlowTable:
    """What found no room in the flow map, summed by pod device.

    `keys` is (n,) flow_other_key, `counts` (n, cpus) drop_count.
    """
    pods = Pods(context.node)
    rates = np.full(len(keys), sample_rate, np.uint16)
    columns = _common(keys, context, pods, pods.at_places(keys), keys["direction"])
    columns |= {
        **_times(np.full(len(keys), now_ns), np.full(len(keys), now_ns)),
        "verdict": constant("forwarded", len(keys)),
        "flow.other": Column(np.ones(len(keys), bool)),
        "packets": Column(counts["packets"].sum(axis=1)),
        "bytes": Column(counts["bytes"].sum(axis=1)),
        "sample.rate": numbers(rates, rates > 1),
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
    asker: Numbers, ends: Ends, times_ns: tuple[Numbers, Numbers], context: Context
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
