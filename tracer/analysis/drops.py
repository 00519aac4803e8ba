"""Drop events and drop counts of the kernel → flat records (docs/formats.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis import checksum
from tracer.analysis.conntrack import conntrack_fields
from tracer.analysis.names import pod_at, service_fields, who_fields
from tracer.analysis.netfilter import netfilter_place
from tracer.analysis.packet import parse
from tracer.analysis.selection import owner
from tracer.layout import layout
from tracer.wall_time import time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from tracer.analysis.dns_names import DnsNames
    from tracer.analysis.flow_tunnels import Ways
    from tracer.model import Node, Pod, Record

DIRECTIONS = {1: "egress", 2: "ingress"}
"""enum direction of bpf/event.h in the names of the records."""

TRACEPOINT_GLUE = ("bpf_trace_run", "__bpf_trace_", "__traceiter_")
OWN_FRAMES = 8
"""How deep the glue can stand: a program, its subprograms, the glue's two functions."""

NODE = "node"
"""`netns.name` of the node's own network namespace."""


@dataclass(frozen=True, slots=True)
class Context:
    """What turns numbers into names, at one moment."""

    node: Node
    reasons: Mapping[int, str]
    """enum skb_drop_reason of the running kernel; empty before 5.17."""
    symbol: Callable[[int], str]
    """Kernel address → `symbol+0xoffset`."""
    wall_offset_ns: int
    """CLOCK_REALTIME - CLOCK_BOOTTIME."""
    clock_steps: tuple[tuple[int, int], ...] = ()
    """(CLOCK_BOOTTIME of a step of the wall clock, offset until then), oldest first."""
    dns: DnsNames | None = None
    """What name servers told the pods, if somebody listens."""
    ways: Ways | None = None
    """By which devices the node's packets leave, if somebody asked."""

    def wall_ns(self, boot_ns: int) -> int:
        """CLOCK_BOOTTIME → what the wall clock showed then, ns since 1970."""
        for until_ns, offset_ns in self.clock_steps:
            if boot_ns < until_ns:
                return boot_ns + offset_ns
        return boot_ns + self.wall_offset_ns

    def reason(self, value: int) -> str:
        """The reason's name; a value that BTF does not name keeps its subsystem and number."""
        if not self.reasons:
            return "NOT_SPECIFIED"
        return self.reasons.get(value) or f"SUBSYS_{value >> 16}_REASON_{value & 0xFFFF}"


def place_fields(node: Node, netns: int, ifindex: int, ifname: str = "") -> Record:
    """Where on the node: device and network namespace."""
    device = node.devices.get((netns, ifindex))
    name = ifname or (device.name if device else "")
    fields: Record = {}
    if name:
        fields["interface.name"] = name
    if ifindex:
        fields["interface.index"] = ifindex
    if netns:
        fields["netns"] = netns
    namespace = node.namespaces.get(netns)
    if netns == node.netns:
        fields["netns.name"] = NODE
    elif namespace and namespace.name:
        fields["netns.name"] = namespace.name
    return fields


def end_fields(node: Node, charged: Pod | None, direction: str, packet: Record) -> Record:
    """The pods at both ends of a packet: the charged one by direction, others by address."""
    fields: Record = {}
    for prefix, own in (("src", "egress"), ("dst", "ingress")):
        at = pod_at(node, packet.get(f"{prefix}.address", ""))
        fields.update(who_fields(node, prefix, charged if charged and direction == own else at))
    return fields


def direction_by_address(charged: Pod | None, packet: Record) -> str:
    """`egress` if the pod sent it, `ingress` if it was for the pod; empty if neither is sure."""
    if charged and packet.get("src.address") in charged.addresses:
        return "egress"
    if charged and packet.get("dst.address") in charged.addresses:
        return "ingress"
    return ""


def direction_of(event: np.void, charged: Pod | None, packet: Record) -> str:
    """`egress` or `ingress` as the charged pod sees it; empty when there is no pod."""
    if charged is None:
        return ""
    if known := direction_by_address(charged, packet):
        return known
    if event["direction"]:
        return DIRECTIONS[int(event["direction"])]
    # An address nobody knows (spoofed, ARP, link-local): a packet that came in by a device of
    # the pod's own namespace was for the pod; by its device on the node, from the pod.
    received = bool(event["iif"])
    in_pod = int(event["netns"]) == charged.netns
    return "ingress" if received == in_pod else "egress"


def _own_frames_cut(stack: list[str]) -> list[str]:
    """Leave out what stands there because we look: our program and the tracepoint's glue."""
    ours = [at for at, frame in enumerate(stack[:OWN_FRAMES]) if frame.startswith(TRACEPOINT_GLUE)]
    return stack[ours[-1] + 1 :] if ours else stack


def drop_record(event: np.void, context: Context, *, with_stack: bool = False) -> Record:
    """One `struct drop_event` as a flat record, without its explanation."""
    node = context.node
    packet_bytes = event["packet"].tobytes()[: int(event["captured_bytes"])]
    packet = parse(int(event["tuple"]["ethertype"]), packet_bytes[layout().constants["L2_BYTES"] :])
    charged = owner(node, event)
    direction = direction_of(event, charged, packet)
    stack = _own_frames_cut(
        [context.symbol(address) for address in event["stack"].tolist() if address]
    )
    location = context.symbol(int(event["location"]))
    record: Record = {
        "type": "drop",
        "time": time_text(context.wall_ns(int(event["time_ns"]))),
    }
    if direction:
        record["direction"] = direction
    record["verdict"] = "dropped"
    record["k8s.node.name"] = node.name
    record.update(who_fields(node, "", charged))
    record.update(end_fields(node, charged, direction, packet))
    record.update(packet)
    record["packets"], record["bytes"] = 1, int(event["bytes"])
    record["drop.reason"] = context.reason(int(event["reason"]))
    record["drop.location"] = location
    record.update(netfilter_place(location, stack))
    name = event["ifname"].decode(errors="replace")
    record.update(place_fields(node, int(event["netns"]), int(event["ifindex"]), name))
    if event["mark"]:
        record["mark"] = int(event["mark"])
    record.update(conntrack_fields(event["ct"]))
    network = packet_bytes[layout().constants["L2_BYTES"] :]
    # Only there it explains anything, and only of a whole packet it can be told.
    if "netfilter.hook" in record and not event["ct"]["present"] and len(network) == event["bytes"]:
        record |= {"transport.checksum": "wrong"} if checksum.is_wrong(network) else {}
    record.update(service_fields(node, record))
    if with_stack:
        record["drop.stack"] = stack
    return record
