"""Flow counts and flow drops of one interval → flat records (docs/formats.md), in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.addresses import address_bytes
from tracer.analysis.conntrack import tuple_fields
from tracer.analysis.drops import (
    DIRECTIONS,
    direction_by_address,
    end_fields,
    place_fields,
    pod_fields,
)
from tracer.analysis.packet import network_type, tcp_flags
from tracer.analysis.selection import owner
from tracer.analysis.time import format_time

if TYPE_CHECKING:
    from tracer.analysis.drops import Context
    from tracer.model import Node, Record

KNOWN, UNKNOWN, NODE_ONLY = range(3)


def sum_flows(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row a flow: sums, earliest first and latest last time, OR of the TCP flags.

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
    return keys[first], sums


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


def flow_records(keys: np.ndarray, counts: np.ndarray, context: Context) -> list[Record]:
    """Packets that crossed pod devices: `keys` (n,) flow_key, `counts` (n,) flow_count, in rows."""
    keys, totals = sum_flows(keys, counts)
    order = np.argsort(totals["first_ns"], kind="stable")
    return [_flow(keys[index], totals[index], context) for index in order]


def _flow(key: np.void, total: np.void, context: Context) -> Record:
    offset_ns = context.wall_offset_ns
    record: Record = {
        "type": "flow",
        "time": format_time(int(total["first_ns"]) + offset_ns),
        "end_time": format_time(int(total["last_ns"]) + offset_ns),
    }
    packet = _packet(key)
    record.update(_charge(key, packet, context, packet.get("src.address", "")))
    record["verdict"] = "forwarded"
    record.update(packet)
    record["packets"], record["bytes"] = int(total["packets"]), int(total["bytes"])
    if packet.get("transport") == "tcp":
        record["tcp.flags"] = tcp_flags(int(total["tcp_flags"]))
    record.update(place_fields(context.node, int(key["netns"]), int(key["ifindex"])))
    return record


def _packet(key: np.void) -> Record:
    flow = key["tuple"]
    packet: Record = {"network.type": network_type(int(flow["ethertype"]))}
    if packet["network.type"] in ("ipv4", "ipv6"):
        packet.update(tuple_fields(flow))
    return packet


def _charge(
    key: np.void, packet: Record, context: Context, address: str, *, dropped: bool = False
) -> Record:
    """Direction, charged pod, and the pods at both ends."""
    place = {
        "netns": key["netns"],
        "ifindex": key["ifindex"],
        "pod_address": np.frombuffer(address_bytes(address) if address else bytes(16), np.uint8),
        "cgroup_id": 0,
    }
    pod = owner(context.node, place)
    direction = DIRECTIONS.get(int(key["direction"]), "")
    if dropped:
        # The kernel's direction is that of the first address it knew, maybe of the other pod.
        direction = direction_by_address(pod, packet) or direction
    record: Record = {"direction": direction} if direction else {}
    record["k8s.node.name"] = context.node.name
    record.update(pod_fields("", pod))
    record.update(end_fields(context.node, pod, direction, packet))
    return record


def flow_drop_records(
    keys: np.ndarray, counts: np.ndarray, context: Context, interval_ns: tuple[int, int]
) -> list[Record]:
    """Packets of pods' flows that died: `keys` (n,) flow_drop_key, `counts` (n, cpus) drop_count.

    `interval_ns` is the interval's begin and end, wall clock: drops are not timed one by one.
    Drops in the node's own namespace that concern no pod are left out.
    """
    records = []
    for index in range(len(keys)):
        record = _flow_drop(keys[index], counts[index], context, interval_ns)
        if "k8s.pod.name" in record or record.get("netns") != context.node.netns:
            records.append(record)
    return records


def _flow_drop(
    key: np.void, counts: np.void, context: Context, interval_ns: tuple[int, int]
) -> Record:
    flow = key["flow"]
    packet = _packet(flow)
    end = "dst.address" if DIRECTIONS.get(int(flow["direction"])) == "ingress" else "src.address"
    record: Record = {
        "type": "flow",
        "time": format_time(interval_ns[0]),
        "end_time": format_time(interval_ns[1]),
    }
    record.update(_charge(flow, packet, context, packet.get(end, ""), dropped=True))
    record["verdict"] = "dropped"
    record.update(packet)
    record["packets"], record["bytes"] = int(counts["packets"].sum()), int(counts["bytes"].sum())
    record["drop.reason"] = context.reason(int(key["reason"]))
    record["drop.location"] = context.symbol(int(key["location"]))
    record.update(place_fields(context.node, int(flow["netns"]), int(flow["ifindex"])))
    return record


def other_records(
    keys: np.ndarray, packets: np.ndarray, sizes: np.ndarray, context: Context, now_ns: int
) -> list[Record]:
    """What found no room in the flow map, summed by pod device: `keys` (n,) flow_other_key."""
    records = []
    for key, count, size in zip(keys, packets, sizes, strict=True):
        record: Record = {
            "type": "flow",
            "time": format_time(now_ns),
            "end_time": format_time(now_ns),
            **_charge(key, {}, context, ""),
            "verdict": "forwarded",
            "flow.other": True,
            "packets": int(count),
            "bytes": int(size),
            **place_fields(context.node, int(key["netns"]), int(key["ifindex"])),
        }
        records.append(record)
    return records
