"""What flows tell besides packets and bytes, as columns of flow records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.conntrack import INFO, STATUS, TCP_STATES
from tracer.analysis.flow_ends import Ends, Pods, numbers, spread
from tracer.analysis.services import service_columns
from tracer.flow_table import Column, coded, powers_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tracer.analysis.connections import Linked
    from tracer.model import Node

_ICMP = (1, 58)
_NS_PER_US = np.uint64(1000)
_BYTE = 256
_EXPECTED, _SEEN_REPLY = (1 << STATUS.index(name) for name in ("expected", "seen-reply"))
_TCP_STATES = (None, *TCP_STATES[1:], *[None] * (_BYTE - len(TCP_STATES)))
"""Of each number that a byte can hold."""


def detail_columns(totals: np.ndarray, linked: Linked, ends: Ends) -> dict[str, Column]:
    """Of (n,) flow_count: traffic class, TCP, times across the node."""
    return {
        "dscp": _if_any(np.where(ends.ip, totals["dscp"], 0)),
        "tcp.retransmits": _if_any(totals["retransmits"]),
        "tcp.resets": _if_any(totals["resets"]),
        "tcp.zero_windows": _if_any(totals["zero_windows"]),
        "tcp.rtt_ns": _if_any(totals["rtt_us"].astype(np.uint64) * _NS_PER_US),
        "tcp.handshake_ns": _if_any(linked.handshake_ns),
        **_transit_columns(linked),
    }


def _if_any(values: NDArray[np.unsignedinteger]) -> Column:
    """Numbers that are absent where they are 0."""
    return Column(values, None, values > 0)


def _transit_columns(linked: Linked) -> dict[str, Column]:
    held = linked.transit >= 0
    if not held.any():
        return {}
    used, row = np.unique(linked.transit[held], return_inverse=True)
    told = linked.transits[used]
    at = np.zeros(len(held), np.int64)
    at[held] = row.ravel()
    texts = [
        powers_text((1 << bucket, count) for bucket, count in enumerate(buckets))
        for buckets in told["buckets"].tolist()
    ]
    return {
        "transit.count": Column(told["buckets"].sum(axis=1, dtype=np.uint64)[at], None, held),
        "transit.sum_ns": Column(told["sum_ns"][at], None, held),
        "transit.max_ns": Column(told["max_ns"][at], None, held),
        "transit.histogram": spread(texts, np.where(held, at, -1)),
    }


def connection_columns(
    entries: np.ndarray, linked: Linked, flows: Ends, pods: Pods, node: Node
) -> dict[str, Column]:
    """Of flows whose conntrack entry is known: its number and state, and both sides of its NAT.

    `entries` is (m,) conntrack, `linked` tells which of them are the flows'. Service columns are
    those of the flow's own addresses where it has no entry.
    """
    held = linked.entry >= 0
    if not held.any():
        return service_columns(flows.flow, flows.addresses, (flows.goal, flows.source), node)
    rows = np.flatnonzero(held)
    told = entries[linked.entry[rows]]
    columns = {
        "flow.id": _if_any(linked.flow_id[rows]),
        "conntrack.state": spread(INFO, _states(told["status"])),
        "conntrack.direction": spread(("original", "reply"), linked.reply[rows].astype(np.int8)),
        "conntrack.tcp.state": spread(_TCP_STATES, told["tcp_state"]),
        "conntrack.zone": _if_any(told["zone"]),
        "conntrack.mark": _if_any(told["mark"]),
        **_nat_columns(told, flows, rows, linked.reply[rows], pods),
    }
    services: dict[str, Column] = {}
    if node.services:
        asked = _asked(flows, rows, told["orig"])
        services = service_columns(asked.flow, asked.addresses, (asked.goal, asked.source), node)
    expanded = {name: _expanded(one, rows, len(held)) for name, one in columns.items()}
    return _with_services(expanded, services)


def _states(status: NDArray[np.uint32]) -> NDArray[np.int8]:
    """(n,) index in INFO: the connection's own, whatever ICMP error related to it came last."""
    unanswered = np.where(status & _EXPECTED, INFO.index("related"), INFO.index("new"))
    states = np.where(status & _SEEN_REPLY, INFO.index("established"), unanswered)
    return states.astype(np.int8)


def _nat_columns(
    told: np.ndarray,
    flows: Ends,
    rows: NDArray[np.int64],
    reply: NDArray[np.bool_],
    pods: Pods,
) -> dict[str, Column]:
    """Who opened, whom he asked, who answers, and from where he seems to come."""
    source = _differs(told, "saddr", "sport", "daddr", "dport")
    destination = _differs(told, "daddr", "dport", "saddr", "sport")
    pod = pods.by_address(flows)
    sender, receiver = pod[flows.source[rows]], pod[flows.goal[rows]]
    client, backend = np.where(reply, (receiver, sender), (sender, receiver))
    changed = np.flatnonzero(source | destination)
    # Only of what NAT changed the ends are others than the flow's own.
    opened, answered = Ends(told["orig"][changed]), Ends(told["reply"][changed])
    client[changed] = pods.by_address(opened)[opened.source]
    backend[changed] = pods.by_address(answered)[answered.source]
    columns = {
        **pods.columns("k8s.client.namespace", "k8s.client.pod.name", "k8s.client.owner", client),
        **pods.columns(
            "k8s.backend.namespace", "k8s.backend.pod.name", "k8s.backend.owner", backend
        ),
    }
    everywhere = np.ones(len(changed), bool)
    for name, side, end, port, where in (
        ("client", opened, opened.source, "sport", everywhere),
        ("service", opened, opened.goal, "dport", destination[changed]),
        ("nat.src", answered, answered.goal, "dport", source[changed]),
        ("nat.dst", answered, answered.source, "sport", destination[changed]),
    ):
        address = spread(side.addresses, np.where(where, end, -1))
        number = numbers(side.flow[port], where & side.has_ports)
        columns[f"{name}.address"] = _expanded(address, changed, len(rows))
        columns[f"{name}.port"] = _expanded(number, changed, len(rows))
    return columns


def _differs(
    told: np.ndarray, address: str, port: str, reply_address: str, reply_port: str
) -> NDArray[np.bool_]:
    """Whether one end of the connection is not what its answers have there."""
    orig, reply = told["orig"], told["reply"]
    other = (orig[address] != reply[reply_address]).any(axis=1)
    # ICMP's type and code are there instead.
    ports = ~np.isin(orig["protocol"], _ICMP)
    return np.asarray(other | (orig[port] != reply[reply_port]) & ports)


def _asked(flows: Ends, rows: NDArray[np.int64], orig: np.ndarray) -> Ends:
    """The flows as if each were the first packet that its connection's opener wrote."""
    asked = flows.flow.copy()
    asked[rows] = orig
    return Ends(asked)


def _expanded(column: Column, rows: NDArray[np.int64], count: int) -> Column:
    """A column of some rows as one of `count`, absent elsewhere."""
    if column.words is not None:
        codes = np.full(count, -1, np.int32)
        codes[rows] = column.values
        return Column(codes, column.words)
    values, held = np.zeros(count, column.values.dtype), np.zeros(count, bool)
    values[rows], held[rows] = column.values, column.present
    return Column(values, None, held)


def _with_services(
    columns: Mapping[str, Column], services: Mapping[str, Column]
) -> dict[str, Column]:
    """Where the API knows the Service its names, and elsewhere the address that DNAT took away."""
    joined = {**columns, **services}
    for name in ("service.address", "service.port"):
        if name in columns and name in services:
            joined[name] = _either(services[name], columns[name])
    return joined


def _either(first: Column, second: Column) -> Column:
    """`first`, where it is absent `second`."""
    if first.words is None or second.words is None:
        values = np.where(first.present, first.values, second.values)
        return Column(values, None, first.present | second.present)
    merged = coded((*first.words, *second.words))
    other = second.values.astype(np.int32)
    shifted = np.where(other >= 0, other + len(first.words), -1)
    codes = np.where(first.present, first.values, shifted)
    return Column(np.append(merged.values, np.int32(-1))[codes], merged.words)
