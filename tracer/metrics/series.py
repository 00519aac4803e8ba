"""Flow tables → sums by namespace, workload and direction or reason, of which there are few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.flow_table import Column, powers_of, texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from tracer.flow_table import FlowTable

OTHER = "_other"
"""Stands for every label set that found no room; no Kubernetes name holds an underscore."""

Labels = tuple[str, ...]
_WORKLOAD = ("k8s.pod.namespace", "k8s.owner.kind", "k8s.owner.name")
TRAFFIC, DROPS = (*_WORKLOAD, "direction"), (*_WORKLOAD, "drop.reason")
"""The columns that label what arrived and what died."""
POD, NETNS = "Pod", "NetworkNamespace"
"""Kinds of workload where nothing is known to have made the pod, and where there is no pod."""
TRANSIT = "transit.histogram"
"""Its text is that of flow_table.powers_text, in nanoseconds."""
FIRST_BUCKET_NS, BUCKETS = 1 << 10, 24
"""Latencies are told apart from 1 µs to 8 s, by powers of two."""


class Bounded:
    """Packets and bytes by labels; what comes after `most` label sets goes to one of `OTHER`."""

    def __init__(self, labels: int, most: int) -> None:
        """`labels` is how many each key has."""
        self._sums: dict[Labels, tuple[int, int]] = {}
        self._most, self._other = most, (OTHER,) * labels
        self.diverted = 0
        """Sums that went to `OTHER`, one for each interval and label set without room."""

    def add(self, labels: Labels, packets: int, size_bytes: int) -> None:
        """Count."""
        if labels not in self._sums and len(self._sums) >= self._most:
            self.diverted += 1
            labels = self._other
        before = self._sums.get(labels, (0, 0))
        self._sums[labels] = before[0] + packets, before[1] + size_bytes

    def items(self) -> list[tuple[Labels, tuple[int, int]]]:
        """(labels, (packets, bytes)), as they are now."""
        return list(self._sums.items())


class Histogram:
    """How many values lie below each power of two."""

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS + 1, np.uint64)
        self.sum_ns = 0

    def add(self, values_ns: NDArray[np.generic]) -> None:
        """Count each value."""
        bounds = FIRST_BUCKET_NS << np.arange(BUCKETS, dtype=np.uint64)
        at = np.searchsorted(bounds, values_ns.astype(np.uint64))
        self.counts += np.bincount(at, minlength=BUCKETS + 1).astype(np.uint64)
        self.sum_ns += int(values_ns.sum(dtype=np.uint64))

    def add_powers(self, powers: Mapping[int, int], sum_ns: int) -> None:
        """Count as many values from each power of two on, up to the next; `sum_ns` of all."""
        for power, count in powers.items():
            at = (2 * power // FIRST_BUCKET_NS).bit_length() - 1
            self.counts[min(max(at, 0), BUCKETS)] += np.uint64(count)
        self.sum_ns += sum_ns

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound in seconds as text, how many lie below): cumulative, the last is +Inf."""
        bounds = [(FIRST_BUCKET_NS << index) / 1e9 for index in range(BUCKETS)]
        texts = [*map(str, bounds), "+Inf"]
        return list(zip(texts, map(float, np.cumsum(self.counts)), strict=True))


def sums(table: FlowTable, *, dropped: bool) -> Iterator[tuple[Labels, int, int]]:
    """(labels, packets, bytes) of the flows that were `dropped`, or were not.

    Labels are those of `TRAFFIC` or `DROPS`.
    """
    if not table.rows or "packets" not in table.columns:
        return
    mine = _is(table, "type", "flow") & (_is(table, "verdict", "dropped") == dropped)
    columns = [_column(table, name) for name in (DROPS if dropped else TRAFFIC)]
    columns[1], columns[2] = _named(table, columns[1], columns[2])
    code = np.zeros(table.rows, np.int64)
    for column in columns:
        code = code * (len(column.words or ()) + 1) + _codes(column) + 1
    distinct, first, row = np.unique(code[mine], return_index=True, return_inverse=True)
    totals = [np.zeros(len(distinct), np.uint64) for _ in range(2)]
    for total, name in zip(totals, ("packets", "bytes"), strict=True):
        np.add.at(total, row.ravel(), _numbers(table, name, 0)[mine])
    rows = np.flatnonzero(mine)[first]
    for at, packets, size_bytes in zip(
        rows.tolist(), *(one.tolist() for one in totals), strict=True
    ):
        yield tuple(_word(column, at) for column in columns), packets, size_bytes


def values(table: FlowTable, name: str) -> NDArray[np.generic] | None:
    """The numbers of a column where it is known; None without the column."""
    column = table.columns.get(name)
    return None if column is None else column.values[column.present]


def transits(table: FlowTable) -> tuple[dict[int, int], int]:
    """(power of two in ns → how many, nanoseconds in all) of the packets timed, of all flows."""
    found: dict[int, int] = {}
    for text in texts(table.columns[TRANSIT]):
        for power, count in powers_of(text or "").items():
            found[power] = found.get(power, 0) + count
    return found, int(_numbers(table, "transit.sum_ns", 0).sum())


def _named(table: FlowTable, kinds: Column, names: Column) -> tuple[Column, Column]:
    """Kind and name of the owner; without one the pod's, without a pod the namespace's."""
    for kind, fallback in ((POD, "k8s.pod.name"), (NETNS, "netns.name")):
        other = _column(table, fallback)
        unknown = (_codes(names) < 0) & (_codes(other) >= 0)
        kinds = _filled(kinds, unknown, Column(np.zeros(table.rows, np.int32), (kind,)))
        names = _filled(names, unknown, other)
    return kinds, names


def _filled(column: Column, where: NDArray[np.bool_], other: Column) -> Column:
    words = column.words or ()
    shifted = _codes(other) + len(words)
    return Column(np.where(where, shifted, _codes(column)), (*words, *(other.words or ())))


def _codes(column: Column) -> NDArray[np.int32]:
    return column.values.astype(np.int32)


def _column(table: FlowTable, name: str) -> Column:
    """A column of text, also where the table has none."""
    return table.columns.get(name) or Column(np.full(table.rows, -1, np.int32), ())


def _word(column: Column, row: int) -> str:
    index = int(column.values[row])
    return (column.words or ())[index] if index >= 0 else ""


def _is(table: FlowTable, name: str, word: str) -> NDArray[np.bool_]:
    column = _column(table, name)
    words = column.words or ()
    wanted = words.index(word) if word in words else len(words)
    return np.asarray(column.values == wanted)


def _numbers(table: FlowTable, name: str, missing: int) -> NDArray[np.uint64]:
    column = table.columns.get(name)
    if column is None:
        return np.full(table.rows, missing, np.uint64)
    return np.where(column.present, column.values, missing).astype(np.uint64)
