"""Where packets go: a node with a bridge and a Service, IPVS, ipvlan, tunnels.

Made with few calls: a program starts slowly on an emulated processor, so `ip -batch` does all.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import namespaces, ways
from lab.rules import TABLE
from lab.topology import Host
from lab.traffic import family_of, send_udp, udp_listener

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace
    from lab.topology import Routed

BRIDGE = "cni0"
GATEWAY = {4: "10.244.9.1", 6: "fd00:10:244:9::1"}
VIP = {4: "10.96.9.9", 6: "fd00:10:96::99"}
"""Addresses of a Service that no device has."""
IPVS_VIP = "10.96.9.77"
TUNNELS = {
    "ipip": "type ipip local {local} remote {remote}",
    "gre": "type gre local {local} remote {remote}",
    "geneve": "type geneve id 7 remote {remote}",
    "vxlan": "type vxlan id 7 dstport 4789 local {local} remote {remote} dev eth0",
}
"""Kind → what `ip link add NAME` wants; both ends have the packets routed between them."""

INET_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
EMPTY_TABLE = "tracer-tests-empty"

TRIES = 100


def batch(where: Namespace, *commands: str) -> None:
    """Many `ip` commands at the price of one."""
    where.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")


def reach(left: Namespace, right: Namespace, address: str) -> None:
    """Send until one datagram has arrived: a new device loses what comes too early."""
    with udp_listener(right, 7, family_of(address)) as listener:
        listener.settimeout(0.3)
        for _ in range(TRIES):
            send_udp(left, (address, 7), 1)
            with suppress(TimeoutError):
                listener.recv(100)
                return
    raise AssertionError(f"{left.name} does not reach {address} in {right.name}")


@dataclass(frozen=True, slots=True)
class Bridged:
    """Pods `eth0` -- `to-NUMBER` on bridge `cni0` of `node`, with br_netfilter."""

    node: Namespace
    client: Host
    server: Host

    def between(self, one: Host, other: Host, version: int) -> list[str]:
        """The way of a packet between two pods, or from one back to itself."""
        ports = tuple(f"to-{pod.ip4[-1]}" for pod in (one, other))
        return [
            *ways.sent(one.where.name, version),
            *ways.bridged(BRIDGE, ports, version, self.node.name),
            *ways.received(other.where.name, version),
        ]


def _mac(number: int) -> str:
    return f"02:00:00:00:09:0{number}"


def _pod(name: str, number: int) -> Host:
    return Host(namespaces.create(name), f"10.244.9.{number}", f"fd00:10:244:9::{number}")


@contextmanager
def bridged() -> Iterator[Bridged]:
    """The node, its pods and who knows whom for sure, without a Service."""
    names = ("kn-node", "kn-client", "kn-server")
    try:
        made = Bridged(namespaces.create(names[0]), _pod(names[1], 2), _pod(names[2], 3))
        made.node.sysctl("ipv4/ip_forward", 1)
        made.node.sysctl("ipv6/conf/all/forwarding", 1)
        pods = (made.client, made.server)
        lines = [f"link add {BRIDGE} address {_mac(1)} type bridge forward_delay 0"]
        lines += [f"link set {BRIDGE} up", f"address add {GATEWAY[4]}/24 dev {BRIDGE}"]
        lines += [f"address add {GATEWAY[6]}/64 dev {BRIDGE} nodad"]
        for number, pod in enumerate(pods, 2):
            lines += _port(number, pod)
        batch(made.node, *lines)
        for number, pod in enumerate(pods, 2):
            batch(pod.where, *_inside(number, pod))
        for here, there in (pods, pods[::-1]):
            for version in (4, 6):
                reach(here.where, there.where, there.ip(version))
                reach(made.node, there.where, there.ip(version))
        yield made
    finally:
        for name in names:
            namespaces.delete(name)


def _port(number: int, pod: Host) -> list[str]:
    inside = pod.where.name
    return [
        f"link add to-{number} type veth peer name eth0 address {_mac(number)} netns {inside}",
        f"link set to-{number} master {BRIDGE} up",
        f"link set to-{number} type bridge_slave hairpin on",
        *(
            f"neigh replace {address} lladdr {_mac(number)} dev {BRIDGE} nud permanent"
            for address in (pod.ip4, pod.ip6)
        ),
    ]


def _inside(number: int, pod: Host) -> list[str]:
    other = 5 - number
    near = {f"10.244.9.{other}": other, f"fd00:10:244:9::{other}": other}
    near |= {GATEWAY[4]: 1, GATEWAY[6]: 1}
    return [
        "link set eth0 up",
        f"address add {pod.ip4}/24 dev eth0",
        f"address add {pod.ip6}/64 dev eth0 nodad",
        f"route add default via {GATEWAY[4]}",
        f"route add default via {GATEWAY[6]}",
        *(
            f"neigh replace {address} lladdr {_mac(whose)} dev eth0 nud permanent"
            for address, whose in near.items()
        ),
    ]


def hook_all(where: Namespace) -> None:
    """A chain that does nothing in every hook: some ways of attaching see no other hooks."""
    lines = [f"add table inet {EMPTY_TABLE}"]
    for hook in INET_HOOKS:
        chain = f"{{ type filter hook {hook} priority 300; }}"
        lines.append(f"add chain inet {EMPTY_TABLE} {hook} {chain}")
    where.run("nft", "-f", "-", stdin="\n".join(lines) + "\n")


def unhook(where: Namespace) -> None:
    """Take these chains away."""
    where.run("nft", "delete", "table", "inet", EMPTY_TABLE)


@contextmanager
def hooked(*places: Namespace) -> Iterator[None]:
    """All their netfilter hooks have something registered."""
    with ExitStack() as undo:
        for where in places:
            hook_all(where)
            undo.callback(unhook, where)
        yield


@contextmanager
def service(made: Bridged, pod: Host, port: int, target: int) -> Iterator[None]:
    """`VIP:port` (UDP) leads to the pod; what a pod sends to itself comes from the gateway."""
    tables = []
    for version, family in ((4, "ip"), (6, "ip6")):
        to = pod.ip4 if version == 4 else f"[{pod.ip6}]"
        match = f"{family} daddr {VIP[version]} udp dport {port}"
        own = f"{family} saddr {pod.ip(version)} {family} daddr {pod.ip(version)}"
        tables.append(f"""table {family} {TABLE} {{
            chain pre {{ type nat hook prerouting priority -100; {match} dnat to {to}:{target}; }}
            chain post {{ type nat hook postrouting priority 100; {own} masquerade; }}
        }}\n""")
    made.node.run("nft", "-f", "-", stdin="".join(tables))
    try:
        yield
    finally:
        made.node.run(
            "nft", "-f", "-", stdin=f"delete table ip {TABLE}\ndelete table ip6 {TABLE}\n"
        )


@contextmanager
def addressed(routed: Routed, to: Namespace, name: str) -> Iterator[None]:
    """What `left` sends beyond its router has the link address of device `name` in `to`."""
    left, gateway = routed.left.where, routed.left.ip4[:-1] + "1"
    left.ip(f"neigh replace {gateway} lladdr {to.link_address(name)} dev eth0 nud permanent")
    try:
        yield
    finally:
        left.ip(f"neigh delete {gateway} dev eth0")


@contextmanager
def ipvs(routed: Routed, port: int, target: int) -> Iterator[None]:
    """`IPVS_VIP:port` (UDP) leads to right's `target`, as kube-proxy in mode ipvs does it."""
    router, to = routed.router, f"{routed.right.ip4}:{target}"
    batch(
        router,
        "link add kube-ipvs0 type dummy",
        f"address add {IPVS_VIP}/32 dev kube-ipvs0",
    )
    try:
        rules = f"-A -u {IPVS_VIP}:{port} -s rr\n-a -u {IPVS_VIP}:{port} -r {to} -m\n"
        router.run("ipvsadm", "-R", stdin=rules)
        router.sysctl("ipv4/vs/conntrack", 1)
        yield
    finally:
        router.run("ipvsadm", "-C")
        router.ip("link delete kube-ipvs0")


@contextmanager
def ipvlan(routed: Routed) -> Iterator[Host]:
    """A pod on right's eth0 by ipvlan (l2)."""
    pod = namespaces.create("kn-ipvlan")
    try:
        words = f"link add link eth0 name ipvl0 netns {pod.name} type ipvlan mode l2"
        batch(routed.right.where, words)
        batch(
            pod,
            "link set ipvl0 name eth0",
            "link set eth0 up",
            "address add 10.246.2.9/24 dev eth0",
            "route add default via 10.246.2.1",
        )
        host = Host(pod, "10.246.2.9", "")
        reach(routed.left.where, pod, host.ip4)
        reach(pod, routed.left.where, routed.left.ip4)
        yield host
    finally:
        namespaces.delete("kn-ipvlan")


def inner(kind: str, number: int) -> str:
    """An address in the tunnel of that kind: 1 is left's, 2 is right's."""
    return f"10.246.{100 + list(TUNNELS).index(kind)}.{number}"


@contextmanager
def tunnels(routed: Routed) -> Iterator[None]:
    """One of each kind between left and right, through the router: `KIND-t` on both."""
    ends = (routed.left, routed.right)
    for number, (here, there) in enumerate((ends, ends[::-1]), 1):
        lines = []
        for kind, words in TUNNELS.items():
            lines += [
                f"link add {kind}-t {words.format(local=here.ip4, remote=there.ip4)}",
                f"address add {inner(kind, number)}/24 dev {kind}-t",
                f"link set {kind}-t up",
            ]
        batch(here.where, *lines)
    try:
        for kind in TUNNELS:
            reach(routed.left.where, routed.right.where, inner(kind, 2))
            reach(routed.right.where, routed.left.where, inner(kind, 1))
        yield
    finally:
        for host in ends:
            batch(host.where, *(f"link delete {kind}-t" for kind in TUNNELS))
