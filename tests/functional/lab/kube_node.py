"""A node with a bridge CNI, whose packet filter rules are those that a real node had.

The rules were recorded (tests/data/kube-proxy) on a node with these addresses; the pods are plain
namespaces. Names, addresses and Services are the recorded ones.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import namespaces, ways
from lab.namespaces import End, Namespace
from lab.topology import Host, meet

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Path(__file__).parents[2] / "data" / "kube-proxy"
MODES = ("iptables", "nftables")
BRIDGE = "cni0"
GATEWAY = {4: "10.244.0.1", 6: "fd00:10:244::1"}
NODE = {4: "198.51.100.10", 6: "fd00:5100::10"}
OUTSIDE = {4: "198.51.100.20", 6: "fd00:5100::20"}
FAR = {4: "203.0.113.5", 6: "2001:db8::5"}
"""An address far away, behind `outside`."""
WEB = {4: ("10.96.10.1", 53), 6: ("fd00:10:96::2b98", 53)}
"""UDP Service of all pods `web`."""
WEB_PORT = 8081
NODE_PORT = 30053
"""UDP node port of the same."""
SINGLE, EXTERNAL = ("10.96.10.2", 80), ("203.0.113.50", 80)
"""TCP Services of the pod `single` alone, the second with an external address."""
HOST_PORT, POD_PORT = 18080, 8080
NO_ENDPOINTS = ("10.96.10.5", 80)
_PODS = {"client": 9, "web-8": 8, "web-11": 11, "web-12": 12, "single": 10, "hostport": 15}
_NFACCT = re.compile(r" -m nfacct --nfacct-name +\S+")
"""Counts packets in an object that kube-proxy makes by netlink; it decides nothing."""


@dataclass(frozen=True, slots=True)
class KubeNode:
    """Pods -- `to-NAME` on bridge `cni0` of `node` -- `eth0` -- `outside`."""

    node: Namespace
    outside: Host
    pods: dict[str, Host]

    @property
    def web(self) -> list[Host]:
        """The endpoints of the Service `WEB`."""
        return [pod for name, pod in self.pods.items() if name.startswith("web-")]

    def port_of(self, pod: Host) -> str:
        """The pod's port of the bridge."""
        return next(f"to-{name}" for name, other in self.pods.items() if other == pod)

    def between(self, one: Host, other: Host, version: int = 4) -> list[str]:
        """The way of a packet between two pods, or from one back to itself."""
        ports = self.port_of(one), self.port_of(other)
        return [
            *ways.sent(one.where.name, version),
            *ways.bridged(BRIDGE, ports, version, self.node.name),
            *ways.received(other.where.name, version),
        ]

    def inward(self, pod: Host, version: int = 4) -> list[str]:
        """The way from outside to a pod: routed, then through the bridge."""
        place = self.node.name
        return [
            *ways.sent(self.outside.where.name, version),
            *ways.forwarded(place, ("eth0", BRIDGE), version),
            *(f"{place} {self.port_of(pod)} {x}" for x in ("net_dev_queue", "net_dev_start_xmit")),
            *ways.received(pod.where.name, version),
        ]

    def outward(self, pod: Host, version: int = 4) -> list[str]:
        """The way from a pod to the outside: br_netfilter, then routed."""
        place, came = self.node.name, self.port_of(pod)
        first, *others = ways.nf(version, *ways.THROUGH)
        return [
            *ways.sent(pod.where.name, version),
            *(f"{place} {came} {hook}" for hook in ("netif_rx", "netif_receive_skb")),
            f"{place} {BRIDGE} {first}",
            f"{place} {BRIDGE} netif_receive_skb",
            *(f"{place} eth0 {x}" for x in (*others, "net_dev_queue", "net_dev_start_xmit")),
            *ways.received(self.outside.where.name, version),
        ]


def _make() -> KubeNode:
    node, outside = (namespaces.create(name) for name in ("kube", "kube-out"))
    node.ip(f"link add {BRIDGE} type bridge forward_delay 0")
    node.ip(f"link set {BRIDGE} up")
    for version, bits in ((4, 24), (6, 64)):
        nodad = " nodad" if version == 6 else ""
        node.ip(f"address add {GATEWAY[version]}/{bits} dev {BRIDGE}{nodad}")
    namespaces.join(
        End(node, "eth0", (f"{NODE[4]}/24", f"{NODE[6]}/64")),
        End(outside, "eth0", (f"{OUTSIDE[4]}/24", f"{OUTSIDE[6]}/64")),
    )
    for version, prefix in ((4, "0.0.0.0/0"), (6, "::/0")):
        outside.ip(f"address add {FAR[version]} dev lo")
        outside.ip(f"route add {prefix} via {NODE[version]}")
        node.ip(f"route add {prefix} via {OUTSIDE[version]}")
    node.sysctl("ipv4/ip_forward", 1)
    node.sysctl("ipv6/conf/all/forwarding", 1)
    pods = {name: _pod(node, name, number) for name, number in _PODS.items()}
    return KubeNode(node, Host(outside, OUTSIDE[4], OUTSIDE[6]), pods)


def _pod(node: Namespace, name: str, number: int) -> Host:
    pod = Host(namespaces.create(name), f"10.244.0.{number}", f"fd00:10:244::{number:x}")
    namespaces.join(
        End(node, f"to-{name}", ()),
        End(pod.where, "eth0", (f"{pod.ip4}/24", f"{pod.ip6}/64")),
    )
    node.ip(f"link set to-{name} master {BRIDGE}")
    node.ip(f"link set to-{name} type bridge_slave hairpin on")
    for version in (4, 6):
        pod.where.ip(f"-{version} route add default via {GATEWAY[version]}")
    return pod


def _acquaint(made: KubeNode) -> None:
    """All know their neighbours for sure, and have used them.

    A bridged packet that DNAT turns to another port goes on through the bridge only then; to a
    neighbour that is not confirmed it is sent by the bridge's own device (br_netfilter).
    """
    ends = [*made.pods.values(), made.outside]
    gateway = made.node
    for end in ends:
        inner = end.where.link_address("eth0")
        device = "eth0" if end == made.outside else BRIDGE
        outer = gateway.link_address(device)
        for version in (4, 6):
            near = (NODE if end == made.outside else GATEWAY)[version]
            gateway.ip(f"neigh replace {end.ip(version)} lladdr {inner} dev {device} nud permanent")
            end.where.ip(f"neigh replace {near} lladdr {outer} dev eth0 nud permanent")
            for other in made.pods.values():
                if end not in (other, made.outside):
                    address = other.where.link_address("eth0")
                    end.where.ip(
                        f"neigh replace {other.ip(version)} lladdr {address} dev eth0 nud permanent"
                    )
            meet(gateway, end.where, end.ip(version))


@contextmanager
def kube_node() -> Iterator[KubeNode]:
    """The topology, without rules; gone after the block."""
    names = ["kube", "kube-out", *_PODS]
    try:
        made = _make()
        _acquaint(made)
        yield made
    finally:
        for name in names:
            namespaces.delete(name)


@contextmanager
def rules(node: Namespace, mode: str, backend: str = "nft") -> Iterator[None]:
    """The recorded rules of kube-proxy in this mode, with kubelet's and the CNI's.

    `backend` loads those of iptables; of `legacy` they stay for as long as the namespace.
    """
    folder = RULES / mode
    try:
        for tool in ("iptables", "ip6tables"):
            text = _NFACCT.sub("", (folder / f"{tool}-save.txt").read_text())
            node.run(f"{tool}-{backend}-restore", stdin=text)
        if mode == "nftables":
            node.run("nft", "-f", str(folder / "kube-proxy.nft"))
        yield
    finally:
        node.run("nft", "flush", "ruleset")
