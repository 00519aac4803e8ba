"""The selection that `trace` and `drops` leave to the kernel, on records that were kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.flows import distinct_places
from tracer.analysis.frames import netns_name
from tracer.analysis.selection import PodSelection, marks
from tracer.analysis.tunnel import inner_frame
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from tracer.analysis.drops import Context
    from tracer.model import Node

_SELECTED = 2
"""As in `selection.Marks`: a selected pod's; 1 another pod's."""


@dataclass(frozen=True, slots=True)
class Sieve:
    """What was asked for; a packet must be all of it at one place, and have the reason."""

    pods: PodSelection = field(default_factory=PodSelection)
    netns: str = ""
    """Name or inode."""
    interface: str = ""
    tcp_flags: int = 0
    """Any of these bits; of hops only."""
    sample: int = 1
    """One packet of so many; of hops only."""
    reasons: frozenset[str] = frozenset()
    """Names of enum skb_drop_reason, without their prefix."""
    accepts: Callable[[bytes, int], bool] | None = None
    """Packet filter: frame and its length on the wire → whether it is wanted."""
    inner: bool = False
    """The filter is about the packet inside a tunnel's."""


def wanted_rows(events: np.ndarray, context: Context, sieve: Sieve) -> NDArray[np.bool_]:
    """Of each hop_event or drop_event whether it is what was asked for, reasons aside."""
    node = context.node
    rows = np.ones(len(events), bool)
    if not sieve.pods.everything:
        rows &= _of_pods(events, node, sieve.pods)
    if sieve.netns:
        rows &= np.isin(events["netns"], netns_inodes(node, events["netns"], sieve.netns))
    if sieve.interface:
        rows &= _at_interface(events, node, sieve.interface)
    if sieve.tcp_flags:
        rows &= (events["tcp_flags"] & sieve.tcp_flags) > 0
    if sieve.sample > 1:
        rows &= (events["signature"] >> 1) % sieve.sample == 0
    if sieve.accepts:
        rows[rows] = _accepted(events[rows], sieve.accepts, inner=sieve.inner)
    return rows


def died_for(events: np.ndarray, context: Context, reasons: Iterable[str]) -> NDArray[np.bool_]:
    """Of each hop_event or drop_event whether it tells of a death for one of `reasons`."""
    names = set(reasons)
    if "hop" in (events.dtype.names or ()):
        dropped = events["hop"] == layout().enums["hop"]["HOP_DROPPED"]
        numbers = events["argument"]
    else:
        dropped, numbers = np.ones(len(events), bool), events["reason"]
    chosen = [one for one in np.unique(numbers).tolist() if context.reason(one) in names]
    return np.asarray(dropped & np.isin(numbers, chosen), bool)


def netns_inodes(node: Node, inodes: NDArray[np.uint32], text: str) -> list[int]:
    """Those of `inodes` that `text` names: by inode, by name, or `node`."""
    return [one for one in np.unique(inodes).tolist() if text in (str(one), netns_name(node, one))]


def _of_pods(events: np.ndarray, node: Node, pods: PodSelection) -> NDArray[np.bool_]:
    """As bpf/choose.bpf.h and bpf/hooks/skb_drop.bpf.c decide it."""
    known = marks(pods, node)

    def at_place(netns: int, ifindex: int) -> int:
        return known.places.get((netns, 0)) or known.places.get((netns, ifindex), 0)

    def at_address(column: np.ndarray) -> NDArray[np.bool_]:
        keys, which = np.unique(_as_keys(column), return_inverse=True)
        states = [known.addresses.get(key.tobytes(), 0) == _SELECTED for key in keys]
        return np.array(states, bool)[which]

    places = _by_place(events, at_place)
    ends = at_address(events["tuple"]["saddr"]) | at_address(events["tuple"]["daddr"])
    if "pod_address" not in (events.dtype.names or ()):
        # Another pod's place: its packets are chosen where the selected one has them.
        return np.asarray((places == _SELECTED) | ((places == 0) & ends), bool)
    of_cgroup = np.isin(events["cgroup_id"], sorted(known.cgroups))
    ends |= at_address(events["pod_address"])
    return np.asarray((places == _SELECTED) | ends | of_cgroup, bool)


def _at_interface(events: np.ndarray, node: Node, name: str) -> NDArray[np.bool_]:
    if "ifname" in (events.dtype.names or ()):
        return np.asarray(events["ifname"] == name.encode(), bool)

    def is_it(netns: int, ifindex: int) -> int:
        device = node.devices.get((netns, ifindex))
        return device is not None and device.name == name

    return _by_place(events, is_it) > 0


def _by_place(events: np.ndarray, value: Callable[[int, int], int]) -> NDArray[np.uint8]:
    """`value(netns, ifindex)` of each record, asked once a place."""
    places, which = distinct_places(events)
    return np.array([value(*place) for place in places], np.uint8)[which]


def _as_keys(addresses: np.ndarray) -> np.ndarray:
    """(n, 16) bytes → n values that can be sorted: pairs of numbers."""
    pair = np.dtype([("high", "<u8"), ("low", "<u8")])
    return np.ascontiguousarray(addresses).view(pair).reshape(-1)


def _accepted(
    events: np.ndarray, accepts: Callable[[bytes, int], bool], *, inner: bool
) -> list[bool]:
    header = layout().constants["L2_BYTES"]
    told = []
    for packet, captured, length in zip(
        events["packet"],
        events["captured_bytes"].tolist(),
        events["bytes"].tolist(),
        strict=True,
    ):
        outer = packet.tobytes()[:captured]
        frame = (inner_frame(outer) if inner else None) or outer
        told.append(accepts(frame, header + length - (len(outer) - len(frame))))
    return told
