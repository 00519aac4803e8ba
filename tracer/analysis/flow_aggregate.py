"""Flow records summed by pod, workload, Service, or whatever fields they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.packet import TCP_FLAGS
from tracer.errors import TracerError
from tracer.flow_table import (
    FIELDS,
    Column,
    FlowTable,
    coded,
    known_fields,
    powers_of,
    powers_text,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ALWAYS = (
    "type", "direction", "verdict", "k8s.node.name", "network.type", "transport",
    "network.iana_number", "drop.reason", "flow.other",
)  # fmt: skip
_WORKLOADS = tuple(
    f"k8s.{end}{name}"
    for end, names in (
        ("", ("pod.namespace", "owner.kind", "owner.name")),
        ("src.", ("namespace", "owner.kind", "owner.name")),
        ("dst.", ("namespace", "owner.kind", "owner.name")),
    )
    for name in names
)
_PODS = (*_WORKLOADS, "k8s.pod.name", "k8s.src.pod.name", "k8s.dst.pod.name")
_SERVICES = ("service.namespace", "service.name", "service.address", "service.port", "dst.port")
GROUPS = {
    name: fields
    for name, fields in (
        ("pod", _PODS),
        ("workload", _WORKLOADS),
        ("service", (*_WORKLOADS, *_SERVICES)),
    )
    if FIELDS.keys() >= set(fields)
}
"""What `--aggregate` has names for; `service` from when flows tell Services on."""
_COUNTS = (
    "packets", "bytes", "tcp.retransmits", "tcp.resets", "tcp.zero_windows", "transit.count",
    "transit.sum_ns",
)  # fmt: skip
_BACK = "flow.reverse."
_SUMS = (*_COUNTS, *(f"{_BACK}{name}" for name in _COUNTS), "count")
_EARLIEST = ("time",)
_LARGEST = ("end_time", "sample.rate", "transit.max_ns", f"{_BACK}transit.max_ns")
_FLAGS = "tcp.flags", f"{_BACK}tcp.flags"
_HISTOGRAMS = "transit.histogram", f"{_BACK}transit.histogram"
_MEANS = {
    "tcp.rtt_ns": "packets",
    f"{_BACK}tcp.rtt_ns": f"{_BACK}packets",
    "tcp.handshake_ns": None,
}
"""What a sum has the mean of, and what a record weighs; None: each the same, as one handshake."""
_MADE = {*_SUMS, *_EARLIEST, *_LARGEST, *_FLAGS, *_HISTOGRAMS, *_MEANS}
"""What sums have of their own: nothing to sum by."""


def grouping(text: str) -> tuple[str, ...]:
    """`pod`, `workload` or field names → the columns that stay; TracerError for neither."""
    if text in GROUPS:
        return (*_ALWAYS, *GROUPS[text])
    found = known_fields([name.strip() for name in text.split(",")], "--aggregate")
    names = [name for name in found if name not in _MADE]
    if not names:
        raise TracerError(
            f"--aggregate '{text}': a sum, nothing to sum by", "dst.port, k8s.dst, dscp, …"
        )
    return (*_ALWAYS, *names)


def aggregate(whole: FlowTable, by: Sequence[str]) -> FlowTable:
    """One row for each combination of the columns `by` (and of sources of losses).

    Packets, bytes, other counts and histograms are summed, times span all, TCP flags are all that
    were seen; round trips are means, see _MEANS, of the records that tell one. Other columns are
    left out. Earliest first.
    """
    names = [name for name in (*by, "source") if name in whole.columns]
    if not whole.rows or not names:
        return whole
    first, group = _groups([_code(whole.columns[name]) for name in names])
    columns = {name: _at(whole.columns[name], first) for name in names}
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(first)))
    for some, combine in ((_SUMS, np.add), (_EARLIEST, np.minimum), (_LARGEST, np.maximum)):
        for name in some:
            if name in whole.columns:
                columns[name] = _combined(whole.columns[name], order, starts, combine)
    for name, weight in _MEANS.items():
        if name in whole.columns:
            weights = whole.columns.get(weight) if weight else None
            columns[name] = _mean(whole.columns[name], weights, order, starts)
    for some_texts, joined in ((_FLAGS, _flags), (_HISTOGRAMS, _histogram)):
        for name in some_texts:
            if name in whole.columns:
                columns[name] = joined(whole.columns[name], group, len(first))
    return table(len(first), columns)


def _code(column: Column) -> NDArray[np.int64]:
    """A number for each value; -1 is absent."""
    if column.words is not None:
        return column.values.astype(np.int64)
    return np.where(column.present, column.values.astype(np.int64), -1)


def _groups(codes: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each combination, in order of rows, and which of them each row is."""
    group = np.zeros(len(codes[0]), np.int64)
    for code in codes:
        distinct, number = np.unique(code, return_inverse=True)
        # Numbered anew each time: the product of few distinct values cannot overflow.
        group = np.unique(group * len(distinct) + number.ravel(), return_inverse=True)[1].ravel()
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return first[order], rank[number.ravel()]


def _at(column: Column, rows: NDArray[np.int64]) -> Column:
    held = None if column.held is None else column.held[rows]
    return Column(column.values[rows], column.words, held)


def _combined(
    column: Column, order: NDArray[np.int64], starts: NDArray[np.int64], combine: np.ufunc
) -> Column:
    held = np.maximum.reduceat(column.present[order], starts)
    values = column.values
    if column.held is not None:
        values = np.where(column.held, values, 0)
    return Column(combine.reduceat(values[order], starts), None, None if held.all() else held)


def _mean(
    column: Column, weights: Column | None, order: NDArray[np.int64], starts: NDArray[np.int64]
) -> Column:
    weight = column.present.astype(float)
    if weights is not None:
        # Of a flow that only retransmitted no packet was counted.
        weight *= np.maximum(np.where(weights.present, weights.values.astype(float), 0), 1)
    total = np.add.reduceat((weight * column.values.astype(float))[order], starts)
    by = np.add.reduceat(weight[order], starts)
    means = np.rint(total / np.where(by > 0, by, 1)).astype(column.values.dtype)
    return Column(means, None, None if by.all() else by > 0)


def _histogram(column: Column, group: NDArray[np.int64], groups: int) -> Column:
    """What a group has in each power of two, added up."""
    told = [powers_of(word) for word in column.words or ()]
    powers = sorted({power for one in told for power in one})
    counts = np.array([[one.get(power, 0) for power in powers] for one in told], np.uint64)
    rows = np.flatnonzero(column.present)
    sums = np.zeros((groups, len(powers)), np.uint64)
    np.add.at(sums, group[rows], counts[column.values[rows].astype(np.int64)])
    return coded(powers_text(zip(powers, row, strict=True)) for row in sums.tolist())


def _flags(column: Column, group: NDArray[np.int64], groups: int) -> Column:
    """All flags that a group has seen, in the order in which the records write them."""
    seen: list[dict[str, None]] = [{} for _ in range(groups)]
    pairs = np.unique(np.stack((group, column.values.astype(np.int64))), axis=1).T.tolist()
    for number, word in pairs:
        if word >= 0:
            seen[number].update(dict.fromkeys((column.words or ())[word].split(",")))
    ranks = {name: rank for rank, name in enumerate(TCP_FLAGS)}
    return coded(",".join(sorted(one, key=ranks.__getitem__)) for one in seen)
