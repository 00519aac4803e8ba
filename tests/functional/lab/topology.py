"""Two hosts and a router between them, in namespaces of their own; no pod takes part."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import namespaces
from lab.namespaces import End, Namespace
from lab.traffic import send_udp, udp_listener

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one device, `eth0`, and its two addresses."""

    where: Namespace
    ip4: str
    ip6: str

    def ip(self, family: int) -> str:
        """Its address of family 4 or 6."""
        return self.ip4 if family == 4 else self.ip6


@dataclass(frozen=True, slots=True)
class Routed:
    """`left` eth0 -- `to-left` router `to-right` -- eth0 `right`."""

    left: Host
    router: Namespace
    right: Host


def _host(name: str, net: int) -> Host:
    return Host(namespaces.create(name), f"10.246.{net}.2", f"fd00:10:246:{net}::2")


def _connect(router: Namespace, host: Host, device: str) -> None:
    gateways = host.ip4[:-1] + "1", host.ip6[:-1] + "1"
    namespaces.join(
        End(router, device, (f"{gateways[0]}/24", f"{gateways[1]}/64")),
        End(host.where, "eth0", (f"{host.ip4}/24", f"{host.ip6}/64")),
    )
    for gateway in gateways:
        host.where.ip(f"route add default via {gateway}")


def meet(left: Namespace, right: Namespace, address: str) -> None:
    """Send and receive one datagram, so that both ends know their neighbours."""
    family = 10 if ":" in address else 2
    with udp_listener(right, 7, family) as listener:
        send_udp(left, (address, 7), 1)
        listener.recv(100)


@contextmanager
def routed(suffix: str = "") -> Iterator[Routed]:
    """The topology, forwarding both families, neighbours known; gone after the block."""
    names = [f"left{suffix}", f"router{suffix}", f"right{suffix}"]
    for name in names:
        namespaces.delete(name)  # a killed run's
    try:
        made = Routed(_host(names[0], 1), namespaces.create(names[1]), _host(names[2], 2))
        made.router.sysctl("ipv4/ip_forward", 1)
        made.router.sysctl("ipv6/conf/all/forwarding", 1)
        _connect(made.router, made.left, "to-left")
        _connect(made.router, made.right, "to-right")
        meet(made.left.where, made.right.where, made.right.ip4)
        meet(made.left.where, made.right.where, made.right.ip6)
        yield made
    finally:
        for name in names:
            namespaces.delete(name)
