"""Flow counts as the kernel's maps hold them: summed, and moved to where they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tracer.model import Node

KNOWN, UNKNOWN, NODE_ONLY = range(3)


def sum_flows(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row a flow: sums, earliest times, latest last time and what was known then, OR of flags.

    `keys` (n,) flow_key and `counts` (n,) flow_count, of several CPUs and places each.
    """
    if not len(keys):
        return keys, counts
    raw = np.ascontiguousarray(keys).view(f"V{keys.itemsize}")
    _, first, flow = np.unique(raw, return_index=True, return_inverse=True)
    sums = np.zeros(len(first), counts.dtype)
    for name in ("packets", "bytes"):
        np.add.at(sums[name], flow, counts[name])
    sums["first_ns"] = np.iinfo(np.uint64).max
    np.minimum.at(sums["first_ns"], flow, counts["first_ns"])
    np.maximum.at(sums["last_ns"], flow, counts["last_ns"])
    np.bitwise_or.at(sums["tcp_flags"], flow, counts["tcp_flags"])
    for name in ("resets", "zero_windows", "retransmits"):
        rows = np.flatnonzero(counts[name])
        np.add.at(sums[name], flow[rows], counts[name][rows])
    rows = np.flatnonzero(counts["sample_rate"])
    np.maximum.at(sums["sample_rate"], flow[rows], counts["sample_rate"][rows])
    _earliest("syn_ns", sums, flow, counts)
    for name in ("dscp", "rtt_us"):
        _latest(name, sums, flow, counts)
    return keys[first], sums


def _earliest(name: str, sums: np.ndarray, flow: np.ndarray, counts: np.ndarray) -> None:
    """Of the rows that know a time, not 0, the first."""
    rows = np.flatnonzero(counts[name])
    sums[name][flow[rows]] = counts[name][rows]
    np.minimum.at(sums[name], flow[rows], counts[name][rows])


def _latest(name: str, sums: np.ndarray, flow: np.ndarray, counts: np.ndarray) -> None:
    """Of the rows that know it, not 0, that which was counted in last."""
    rows = np.flatnonzero(counts[name])
    rows = rows[np.argsort(counts["last_ns"][rows], kind="stable")]
    sums[name][flow[rows]] = counts[name][rows]


def at_pods(keys: np.ndarray, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Move keys counted at the node's end of a pair to the pod's end, where the pod has it.

    `keys` is (n,) flow_key. Returns the moved keys, and (n,) how each one's place is known: one of
    `KNOWN`, `UNKNOWN` (nobody has named it yet), `NODE_ONLY` (a pair within the node).
    """
    moved = keys.copy()
    places = np.stack((keys["netns"], keys["ifindex"]), axis=1)
    unique, inverse = np.unique(places, axis=0, return_inverse=True)
    known = np.empty(len(unique), np.int8)
    for index, (netns, ifindex) in enumerate(unique.tolist()):
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
            unique[index] = peer
    moved["netns"], moved["ifindex"] = unique[inverse.ravel()].T
    return moved, known[inverse.ravel()]


def unpaired_places(node: Node) -> frozenset[tuple[int, int]]:
    """Find (netns, ifindex) of devices whose packets do not come from the node by a pair."""
    return frozenset(
        key
        for key, device in node.devices.items()
        if device.netns != node.netns
        and device.name != "lo"
        and not (device.peer and device.peer[0] == node.netns)
    )
