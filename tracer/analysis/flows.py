"""Flow counts as the kernel's maps hold them: summed, and moved to where they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracer.model import Node

KNOWN, UNKNOWN, NODE_ONLY = range(3)


_SUMS = {
    "packets": np.add, "bytes": np.add, "resets": np.add, "zero_windows": np.add,
    "retransmits": np.add, "first_ns": np.minimum, "last_ns": np.maximum,
    "tcp_flags": np.bitwise_or, "sample_rate": np.maximum,
}  # fmt: skip


def sum_flows(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row a flow: sums, earliest times, latest last time and what was known then, OR of flags.

    `keys` (n,) flow_key and `counts` (n,) flow_count, of several CPUs and places each; what is
    returned may be the same arrays.
    """
    order, starts = grouped(keys)
    if len(starts) == len(keys):
        return keys, counts
    sizes = np.diff(starts, append=len(keys))
    first, several = order[starts], sizes > 1
    rows = order[np.repeat(several, sizes)]
    kept = np.sort(first)  # to be read as they lie
    sums = counts[kept]
    summed = _summed(counts[rows], np.cumsum(sizes[several]) - sizes[several])
    sums[np.searchsorted(kept, first[several])] = summed
    return keys[kept], sums


def _summed(counts: np.ndarray, starts: NDArray[np.int64]) -> np.ndarray:
    """Sums of the rows from each start to the next."""
    sums = np.zeros(len(starts), counts.dtype)
    for name, combine in _SUMS.items():
        sums[name] = combine.reduceat(counts[name], starts)
    one = np.uint64(1)  # of a time that is not known, 0, one less is the latest of all
    sums["syn_ns"] = np.minimum.reduceat(counts["syn_ns"] - one, starts) + one
    flow = numbered(starts, len(counts))
    for name in ("dscp", "rtt_us"):
        _latest(name, sums, flow, counts)
    return sums


def _latest(name: str, sums: np.ndarray, flow: np.ndarray, counts: np.ndarray) -> None:
    """Of the rows that know it, not 0, that which was counted in last."""
    rows = np.flatnonzero(counts[name])
    rows = rows[np.argsort(counts["last_ns"][rows], kind="stable")]
    sums[name][flow[rows]] = counts[name][rows]


def grouped(keys: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of (n,) records in an order that has equal ones together, and where each kind begins.

    Records are of whole words of 4 bytes; of equal ones the order stays.
    """
    raw = np.ascontiguousarray(keys).view(f"V{keys.itemsize}")
    words = raw.view(np.uint32).reshape(len(keys), keys.itemsize // 4)
    factors = np.random.default_rng(0).integers(1 << 63, size=words.shape[1], dtype=np.uint64)
    hashes = np.zeros(len(keys), np.uint64)
    for word, factor in zip(words.T, factors, strict=True):
        hashes += word * factor
    # Numbers are sorted ten times as fast as records: these only where two kinds share a number.
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    again = np.flatnonzero(same)
    if (words[order[again]] != words[order[again + 1]]).any():
        order = np.argsort(raw, kind="stable")
        same = raw[order[1:]] == raw[order[:-1]]
    return order, np.flatnonzero(np.append(len(keys) > 0, ~same))


def numbered(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Of `count` rows the number of their kind, where each begins as `grouped` tells."""
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=count))


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """All rows of `parts`, which are forgotten: a million flows need not be there twice."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def place_codes(keys: np.ndarray) -> NDArray[np.uint64]:
    """(n,): netns and ifindex of each record as one number."""
    codes: NDArray[np.uint64] = keys["netns"].astype(np.uint64) << np.uint64(32) | keys["ifindex"]
    return codes


def distinct_places(keys: np.ndarray) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Each (netns, ifindex) once, and which of them each row has."""
    distinct, code = np.unique(place_codes(keys), return_inverse=True)
    return [(one >> 32, one & 0xFFFFFFFF) for one in distinct.tolist()], code


def at_pods(keys: np.ndarray, node: Node) -> tuple[np.ndarray, NDArray[np.int8]]:
    """Move keys counted at the node's end of a pair to the pod's end, where the pod has it.

    `keys` is (n,) flow_key. Returns the moved keys, and (n,) how each one's place is known: one of
    `KNOWN`, `UNKNOWN` (nobody has named it yet), `NODE_ONLY` (a pair within the node).
    """
    places, row = distinct_places(keys)
    known = np.empty(len(places), np.int8)
    moved = list(places)
    for index, (netns, ifindex) in enumerate(places):
        known[index] = KNOWN if netns in node.namespaces else UNKNOWN
        if netns != node.netns:
            continue
        device = node.devices.get((netns, ifindex))
        peer = device.peer if device else None
        if peer is None:
            known[index] = UNKNOWN
        elif peer[0] == netns:
            known[index] = NODE_ONLY
        else:
            moved[index] = peer
    if moved != places:
        keys = keys.copy()
        keys["netns"], keys["ifindex"] = np.array(moved)[row].T
    return keys, known[row]


def unpaired_places(node: Node) -> frozenset[tuple[int, int]]:
    """Find (netns, ifindex) of devices whose packets do not come from the node by a pair."""
    return frozenset(
        key
        for key, device in node.devices.items()
        if device.netns != node.netns
        and device.name != "lo"
        and not (device.peer and device.peer[0] == node.netns)
    )
