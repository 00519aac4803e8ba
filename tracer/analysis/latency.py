"""Where the time goes: latencies of every flow's steps, in histograms of fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.analysis.paths import where
from tracer.analysis.verdict import is_freed_later

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tracer.model import Record

    Key = tuple[Any, ...]

PARTS_BITS = 3
"""Each power of two is told apart in 8 parts: percentiles are within 1/16."""
PARTS = 1 << PARTS_BITS
MAX_BITS = 43
"""Latencies above 2^43 ns (2.4 hours) are counted as that."""
BUCKETS = (MAX_BITS - PARTS_BITS + 1) * PARTS
MAX_STEPS = 8192
PERCENTILES = {"p50_ns": 0.5, "p90_ns": 0.9, "p99_ns": 0.99}
_TOTAL, _HOOK, _STEP = "way", "hook", "step"
_OTHER: tuple[str, ...] = ("", "other")


def bucket_of(latencies_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bucket of each latency: 8 of 1 ns, then 8 to each power of two."""
    value = np.clip(latencies_ns, 0, (1 << MAX_BITS) - 1)
    exponent = np.frexp(np.maximum(value, 1).astype(np.float64))[1] - 1
    shift = np.maximum(exponent - PARTS_BITS, 0)
    return np.asarray(shift * PARTS + (value >> shift))


def lower_bounds() -> NDArray[np.int64]:
    """The least latency of each bucket, in ns, and of the one after the last."""
    index = np.arange(BUCKETS + 1)
    shift = np.maximum(index // PARTS - 1, 0)
    return np.asarray((index - shift * PARTS) << shift)


class Latency:
    """Latencies by flow and step: the whole way, inside one netfilter hook, hop to hop.

    At most MAX_STEPS rows of 328 buckets; what finds no room is counted in the row `other`.
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._max_steps = max_steps
        self._rows: dict[Key, int] = {_OTHER: 0}
        self._community_ids: dict[str, str] = {}
        self._counts = np.zeros((16, BUCKETS), np.uint64)
        self._longest_ns = np.zeros(16, np.int64)

    def add(self, records: Sequence[Record]) -> None:
        """Count `packet` records; those of other types are left out."""
        rows: list[int] = []
        values_ns: list[int] = []
        for record in records:
            if record["type"] != "packet":
                continue
            self._community_ids.setdefault(record["flow"], record.get("network.community_id", ""))
            for key, value_ns in _steps(record):
                rows.append(self._row(key))
                values_ns.append(value_ns)
        if not rows:
            return
        row, value = np.array(rows), np.array(values_ns, np.int64)
        np.add.at(self._counts, (row, bucket_of(value)), np.uint64(1))
        np.maximum.at(self._longest_ns, row, value)

    def _row(self, key: Key) -> int:
        row = self._rows.get(key)
        if row is not None:
            return row
        row = len(self._rows)
        if row >= self._max_steps:
            return 0
        self._rows[key] = row
        if row >= len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._longest_ns = np.concatenate([self._longest_ns, np.zeros_like(self._longest_ns)])
        return row

    def records(self) -> list[Record]:
        """One `latency` record a row, flow by flow, each with its way first."""
        flows: dict[str, list[tuple[Key, int]]] = {}
        for key, row in self._rows.items():
            if self._counts[row].any():
                flows.setdefault(key[0], []).append((key, row))
        other = flows.pop("", [])
        ordered = [
            one for rows in flows.values() for one in sorted(rows, key=lambda r: r[0][1] != _TOTAL)
        ]
        return [self._record(key, row) for key, row in [*ordered, *other]]

    def _record(self, key: Key, row: int) -> Record:
        record: Record = {"type": "latency"}
        if key == _OTHER:
            record["flow.other"] = True
        else:
            record["flow"] = key[0]
            if self._community_ids.get(key[0]):
                record["network.community_id"] = self._community_ids[key[0]]
            record |= {"latency.of": key[1], "latency.from": key[2], "latency.to": key[3]}
        counts = self._counts[row]
        longest_ns = int(self._longest_ns[row])
        record["packets"] = int(counts.sum())
        record |= percentiles(counts, longest_ns)
        record["max_ns"] = longest_ns
        record["histogram"] = _powers(counts)
        return record


def percentiles(counts: NDArray[np.uint64], longest_ns: int) -> Record:
    """Percentiles of one row of buckets: the middle of the bucket they fall into."""
    bounds, cumulated = lower_bounds(), np.cumsum(counts)
    found: Record = {}
    for name, share in PERCENTILES.items():
        wanted = max(1, int(np.ceil(share * float(cumulated[-1]))))
        bucket = int(np.searchsorted(cumulated, wanted))
        middle_ns = int(bounds[bucket] + bounds[bucket + 1]) // 2
        found[name] = min(middle_ns, longest_ns)
    return found


def _powers(counts: NDArray[np.uint64]) -> dict[str, int]:
    """Power of two, as its least latency in ns → count; the empty ones are left out."""
    bounds = lower_bounds()
    sums: dict[str, int] = {}
    for bucket in np.flatnonzero(counts).tolist():
        least_ns = int(bounds[bucket])
        name = str(1 << least_ns.bit_length() - 1 if least_ns else 0)
        sums[name] = sums.get(name, 0) + int(counts[bucket])
    return sums


def _steps(record: Record) -> Iterator[tuple[Key, int]]:
    """What one packet adds: (flow, what, from, to) and latency in ns."""
    flow, hops = record["flow"], record["hops"]
    names = [_name(hop) for hop in hops]
    latest: dict[int, int] = {}
    for at, hop in enumerate(hops):
        branch = hop.get("branch", 0)
        before = hop.get("after", latest.get(branch, -1))
        latest[branch] = at
        if "delta_ns" in hop and before >= 0 and not is_freed_later(hop.get("location", "")):
            yield (flow, _STEP, names[before], names[at]), hop["delta_ns"]
        if "duration_ns" in hop:
            yield (flow, _HOOK, names[at], names[at]), hop["duration_ns"]
    if hops:
        goal = f"{record['verdict']} in {where(hops[-1])}"
        yield (flow, _TOTAL, where(hops[0]), goal), record["duration_ns"]


def _name(hop: Record) -> str:
    """`net_dev_queue eth0 in pod shop/web-0`."""
    device = hop.get("interface.name") or hop.get("interface.index", "")
    return f"{hop['hook']} {device} in {where(hop)}"
