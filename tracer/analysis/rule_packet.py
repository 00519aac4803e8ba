"""A drop, as the hooks saw it → the packet that rules are evaluated against."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.analysis.conntrack import conntrack_fields
from tracer.analysis.packet import TCP_FLAGS, parse
from tracer.analysis.ruleset.model import Conntrack, Host, Packet, Tuple
from tracer.layout import layout

if TYPE_CHECKING:
    import numpy as np

    from tracer.model import Node, Record

_FAMILIES = {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp"}
_ETHERNET_BYTES = 14
_NAT_BITS = frozenset(("snat", "dnat", "src-nat-done", "dst-nat-done"))
_CONNTRACK_IN_RULES = {"src-nat": "snat", "dst-nat": "dnat"}
"""Where rules have other words than conntrack-tools."""


def packet_at(event: np.void, record: Record, node: Node) -> Packet:
    """The packet of a `struct drop_event` and its record, in the hook that dropped it.

    A rule may have changed what it was when it entered the hook; nothing tells that.
    """
    return _packet(event, record, _devices(event, record, node), _conntrack(event["ct"]))


def packet_in_hop(
    row: np.void, devices: tuple[str | None, str | None], tracked: np.void | None = None
) -> Packet:
    """The packet of a `struct hop_event` in a netfilter hook, as it was at that hop.

    `tracked`: where conntrack itself runs within the hook, the hop that has its entry.
    """
    data = row["packet"].tobytes()[: int(row["captured_bytes"])]
    record = parse(int(row["tuple"]["ethertype"]), data[layout().constants["L2_BYTES"] :])
    ct = _conntrack((row if tracked is None else tracked)["ct"])
    if tracked is not None and ct.status is not None and "confirmed" not in ct.status:
        # The first packet of a connection: what NAT does in this hook is not done yet.
        ct = replace(ct, status=ct.status - _NAT_BITS)
    return _packet(row, record, devices, ct)


def _packet(
    row: np.void, record: Record, devices: tuple[str | None, str | None], ct: Conntrack
) -> Packet:
    data = row["packet"].tobytes()[: int(row["captured_bytes"])]
    network = data[layout().constants["L2_BYTES"] :]
    ethertype = int(row["tuple"]["ethertype"])
    family = _FAMILIES.get(ethertype, "")
    iif, oif = devices
    has_mac = bool(row["has_mac"]) and len(data) >= _ETHERNET_BYTES
    return Packet(
        family=family,
        saddr=record.get("src.address"),
        daddr=record.get("dst.address"),
        protocol=int(row["tuple"]["protocol"]) if family in ("ip", "ip6") else None,
        sport=record.get("src.port"),
        dport=record.get("dst.port"),
        tcp_flags=_tcp_flags(record),
        icmp_type=record.get("icmp.type"),
        icmp_code=record.get("icmp.code"),
        iif=iif,
        oif=oif,
        mark=int(row["mark"]),
        ct=ct,
        length_bytes=record.get("ip.length"),
        ttl=record.get("ip.ttl"),
        dscp=_dscp(family, network),
        fragment_offset=record.get("ip.fragment.offset", 0),
        ether_daddr=data[:6].hex(":") if has_mac else None,
        ether_saddr=data[6:12].hex(":") if has_mac else None,
        ether_type=ethertype,
        arp_operation=int.from_bytes(network[6:8], "big") if family == "arp" else None,
        arp_saddr=record.get("arp.sender.mac"),
        arp_daddr=record.get("arp.target.mac"),
    )


def host_of(node: Node, netns: int) -> Host:
    """The addresses that are a namespace's own."""
    own = (device.addresses for key, device in node.devices.items() if key[0] == netns)
    return Host(frozenset(address for addresses in own for address in addresses))


def _devices(event: np.void, record: Record, node: Node) -> tuple[str | None, str | None]:
    """Input and output device by the hook; None where the drop does not tell."""
    here, hook = record.get("interface.name"), record.get("netfilter.hook", "")
    netns = int(event["netns"])
    came, goes = (node.devices.get((netns, int(event[end]))) for end in ("iif", "out_ifindex"))
    bridge = _bridge_of(node, netns, int(event["ifindex"]))
    if record.get("netfilter.family") == "bridge":
        return _ports(hook, here, came.name if came else None)
    if bridge and hook in ("FORWARD", "POSTROUTING"):
        # br_netfilter shows a bridged packet to rules as if the bridge had routed it.
        return bridge if hook == "FORWARD" else "", bridge
    sent = "" if not event["iif"] else None
    ways = {
        "INGRESS": (here, ""),
        "PREROUTING": (here, ""),
        "INPUT": (here, ""),
        "FORWARD": (here or (came.name if came else None), goes.name if goes else None),
        "OUTPUT": ("", here),
        "POSTROUTING": (came.name if came else sent, here),
    }
    return ways.get(hook, (None, None))


def _ports(hook: str, here: str | None, came: str | None) -> tuple[str | None, str | None]:
    """The same of a chain of the family bridge, which sees ports."""
    ways = {
        "PREROUTING": (here, ""), "INPUT": (came, ""), "FORWARD": (came, here),
        "OUTPUT": ("", here), "POSTROUTING": ("", here),
    }  # fmt: skip
    return ways.get(hook, (None, None))


def _bridge_of(node: Node, netns: int, ifindex: int) -> str:
    """Name of the bridge that a device is a port of; empty where it is none."""
    port = node.devices.get((netns, ifindex))
    bridge = node.devices.get((netns, port.master)) if port and port.master else None
    return bridge.name if bridge and bridge.kind == "bridge" else ""


def _tcp_flags(record: Record) -> int | None:
    text = record.get("tcp.flags")
    if text is None:
        return None
    return sum(1 << TCP_FLAGS.index(name) for name in text.split(",") if name)


def _dscp(family: str, network: bytes) -> int | None:
    if family == "ip" and len(network) > 1:
        return network[1] >> 2
    if family == "ip6" and len(network) > 1:
        return (int.from_bytes(network[:2], "big") >> 4 & 0xFF) >> 2
    return None


def _conntrack(entry: np.void) -> Conntrack:
    record = conntrack_fields(entry)
    if "conntrack.status" in record:
        status = record["conntrack.status"]
        return Conntrack(
            state=record["conntrack.state"],
            status=frozenset(_CONNTRACK_IN_RULES.get(word, word) for word in status),
            direction=record["conntrack.direction"],
            mark=record["conntrack.mark"],
            zone=record["conntrack.zone"],
            original=_tuple(record, "orig"),
            reply=_tuple(record, "reply"),
        )
    # Rules that look for an entry and find none take the packet for invalid, whatever the cause;
    # but for what is not to be tracked, as neighbour discovery is.
    return Conntrack(state=record.get("conntrack.state", "invalid"))


def _tuple(record: Record, way: str) -> Tuple:
    dot = f"conntrack.{way}."
    return Tuple(
        record.get(f"{dot}src.address", ""),
        record.get(f"{dot}dst.address", ""),
        record.get(f"{dot}src.port"),
        record.get(f"{dot}dst.port"),
    )
