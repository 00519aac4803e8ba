"""A node with wires and bridges to hosts: what the rules of a network plugin are loaded into."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from lab import namespaces
from lab.namespaces import End, Namespace
from lab.topology import Host, meet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Wire:
    """How the node reaches one host: by a device of its own, or by a bridge."""

    device: str
    """Of the node; hosts that name the same bridge are its ports."""
    ip4: str
    """Of the host, with the length of its network; the network's first address is the node's."""
    ip6: str
    bridge: bool = False


@dataclass(frozen=True, slots=True)
class Wired:
    """The node, and the hosts by name."""

    node: Namespace
    hosts: Mapping[str, Host]


def _gateways(wire: Wire) -> tuple[str, str]:
    first = (ip_interface(text).network for text in (wire.ip4, wire.ip6))
    ip4, ip6 = (f"{network[1]}/{network.prefixlen}" for network in first)
    return ip4, ip6


def _bridge(node: Namespace, wire: Wire) -> None:
    node.ip(f"link add {wire.device} type bridge forward_delay 0 mcast_snooping 0")
    node.ip(f"link set {wire.device} up")
    for address in _gateways(wire):
        nodad = " nodad" if ":" in address else ""
        node.ip(f"address add {address} dev {wire.device}{nodad}")


def _join(node: Namespace, name: str, wire: Wire, host: Namespace) -> None:
    port = f"to-{name}" if wire.bridge else wire.device
    namespaces.join(
        End(node, port, () if wire.bridge else _gateways(wire)),
        End(host, "eth0", (wire.ip4, wire.ip6)),
    )
    if wire.bridge:
        node.ip(f"link set {port} master {wire.device}")
    for gateway in _gateways(wire):
        host.ip(f"route add default via {gateway.partition('/')[0]}")


@contextmanager
def wired(node_name: str, wires: Mapping[str, Wire]) -> Iterator[Wired]:
    """The node and a host for each wire, all acquainted with the node; gone after the block."""
    names = [node_name, *(f"{node_name}-{name}" for name in wires)]
    for name in names:
        namespaces.delete(name)  # a killed run's
    try:
        node = namespaces.create(node_name)
        node.sysctl("ipv4/ip_forward", 1)
        node.sysctl("ipv6/conf/all/forwarding", 1)
        for wire in {wire.device: wire for wire in wires.values() if wire.bridge}.values():
            _bridge(node, wire)
        hosts = {}
        for name, wire in wires.items():
            where = namespaces.create(f"{node_name}-{name}")
            _join(node, name, wire, where)
            ip4, ip6 = (text.partition("/")[0] for text in (wire.ip4, wire.ip6))
            hosts[name] = Host(where, ip4, ip6)
            meet(node, where, ip4)
            meet(node, where, ip6)
        yield Wired(node, hosts)
    finally:
        for name in names:
            namespaces.delete(name)
