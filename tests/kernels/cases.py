"""Ways to lose COUNT packets for a known cause, with nothing but namespaces, rules and sysctls.

Each case is a context manager over a `Routed` topology and a port that nothing else uses: it
breaks something, sends, yields what the records' addresses must be, and mends it again.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab import wire
from lab.expect import tcp, udp
from lab.rules import iptables, nft
from lab.traffic import family_of, open_tcp, send_udp, tcp_listener, udp_listener

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.namespaces import Namespace
    from lab.topology import Routed

COUNT = 7
IP_MTU_DISCOVER, PROBE = 10, 3
"""linux/in.h: set DF, and do not look at the path MTU known so far."""


@dataclass(frozen=True, slots=True)
class Case:
    """One cause of a drop, and what its records have to say of it."""

    name: str
    provoke: Callable[[Routed, int], Any]
    reason: str
    """What the kernel calls it, from `since` on; before that it has no reason for it."""
    since: tuple[int, int]
    """First kernel of those we boot or know that tells this reason for this cause."""
    functions: frozenset[str]
    """The kernel's functions that drop it, in one kernel or another."""
    words: tuple[str, ...]
    """Must be in the explanation or the hint, with a reason or without."""
    netfilter: tuple[str, str] = ("", "")
    """Family and hook, of drops by netfilter."""


def _send(routed: Routed, dst: str, port: int, *, sender: Namespace | None = None) -> dict:
    src = routed.left.ip6 if ":" in dst else routed.left.ip4
    send_udp(sender or routed.left.where, (dst, port), COUNT)
    return udp(src, dst, port)


def _to(dst: str) -> Callable:
    """Datagrams to an address to which there is no way, or to a port nobody reads."""

    @contextmanager
    def provoke(routed, port):
        yield _send(routed, dst or routed.right.ip4, port)

    return provoke


@contextmanager
def closed_port_ip6(routed, port):
    yield _send(routed, routed.right.ip6, port)


@contextmanager
def closed_tcp_port(routed, port):
    for _ in range(COUNT):
        assert isinstance(
            open_tcp(routed.left.where, (routed.right.ip4, port), 5), ConnectionRefusedError
        )
    yield tcp(routed.left.ip4, routed.right.ip4, port)


def _rule(place: str, hook: str, version: int = 4, family: str = "inet") -> Callable:
    """An nft rule; what is sent by `right` is dropped there, all else comes from `left`."""

    @contextmanager
    def provoke(routed, port):
        where = routed.router if place == "router" else routed.right.where
        with nft(where, family, hook, f"udp dport {port} drop"):
            if hook == "output":
                send_udp(where, (routed.left.ip(version), port), COUNT)
                yield udp(routed.right.ip(version), routed.left.ip(version), port)
            else:
                yield _send(routed, routed.right.ip(version), port)

    return provoke


def _iptables(tool: str, version: int = 4) -> Callable:
    @contextmanager
    def provoke(routed, port):
        words = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "DROP")
        with iptables(routed.router, tool, *words):
            yield _send(routed, routed.right.ip(version), port)

    return provoke


def _sysctl(key: str, value: int, dst: str = "") -> Callable:
    @contextmanager
    def provoke(routed, port):
        before = routed.router.sysctl(key, value)
        try:
            yield _send(routed, dst or routed.right.ip4, port)
        finally:
            routed.router.sysctl(key, before)

    return provoke


@contextmanager
def blackhole(routed, port):
    routed.router.ip("route add blackhole 10.247.2.0/24")
    try:
        yield _send(routed, "10.247.2.1", port)
    finally:
        routed.router.ip("route delete blackhole 10.247.2.0/24")


@contextmanager
def rp_filter(routed, port):
    """The way back to the source leads out of another device than the packet came in by."""
    before = routed.router.sysctl("ipv4/conf/to-left/rp_filter", 1)
    routed.router.ip(f"route add 10.246.99.0/24 via {routed.right.ip4}")
    src, dst = "10.246.99.9", routed.right.ip4
    try:
        packet = wire.udp(src, dst, (port, port), b"spoofed")
        wire.send(routed.left.where, wire.ip(src, dst, socket.IPPROTO_UDP, packet), COUNT)
        yield udp(src, dst, port)
    finally:
        routed.router.ip("route delete 10.246.99.0/24")
        routed.router.sysctl("ipv4/conf/to-left/rp_filter", before)


@contextmanager
def ttl_exceeded(routed, port):
    src, dst = routed.left.ip4, routed.right.ip4
    packet = wire.udp(src, dst, (port, port), b"short-lived")
    wire.send(routed.left.where, wire.ip(src, dst, socket.IPPROTO_UDP, packet, ttl=1), COUNT)
    yield udp(src, dst, port)


@contextmanager
def too_big(routed, port):
    ends = ((routed.router, "to-right"), (routed.right.where, "eth0"))
    for where, device in ends:
        where.ip(f"link set {device} mtu 1280")
    try:
        with routed.left.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PROBE)
            for _ in range(COUNT):
                sender.sendto(bytes(1400), (routed.right.ip4, port))
        yield udp(routed.left.ip4, routed.right.ip4, port)
    finally:
        for where, device in ends:
            where.ip(f"link set {device} mtu 1500")


@contextmanager
def neighbour_silent(routed, port):
    before = routed.router.sysctl("ipv4/neigh/to-right/retrans_time_ms", 50)
    # All wait in the neighbour's queue, and die together when it does not answer.
    try:
        yield _send(routed, "10.246.2.77", port)
    finally:
        routed.router.sysctl("ipv4/neigh/to-right/retrans_time_ms", before)


def _bad_checksum(protocol: int) -> Callable:
    @contextmanager
    def provoke(routed, port):
        src, dst = routed.left.ip4, routed.right.ip4
        if protocol == socket.IPPROTO_UDP:
            payload, listener, wanted = (
                wire.udp(src, dst, (port, port), b"broken", spoil=1),
                udp_listener(routed.right.where, port, family_of(dst)),
                udp(src, dst, port),
            )
        else:
            payload, listener, wanted = (
                wire.tcp(src, dst, (port, port), wire.SYN, spoil=1),
                tcp_listener(routed.right.where, port, family_of(dst)),
                tcp(src, dst, port),
            )
        with listener:
            wire.send(routed.left.where, wire.ip(src, dst, protocol, payload), COUNT)
            yield wanted

    return provoke


NFT = frozenset({"nft_do_chain", "nf_hook_slow"})
XTABLES = frozenset({"nf_hook_slow"})
UDP4 = frozenset({"__udp4_lib_rcv", "udp_rcv", "udp_unicast_rcv_skb"})
ROUTE = frozenset({"ip_error"})
RECEIVE = frozenset({"ip_rcv_finish_core"})

CASES = (
    Case("closed UDP port", _to(""), "NO_SOCKET", (5, 17), UDP4, ("udp", "socket")),
    Case("closed UDP port, IPv6", closed_port_ip6, "NO_SOCKET", (5, 17),
         frozenset({"__udp6_lib_rcv", "udpv6_rcv"}), ("udp", "socket")),
    Case("closed TCP port", closed_tcp_port, "NO_SOCKET", (5, 17),
         frozenset({"tcp_v4_rcv"}), ("tcp", "socket")),
    Case("nft, prerouting", _rule("router", "prerouting"), "NETFILTER_DROP", (5, 18),
         NFT, ("prerouting",), ("inet", "PREROUTING")),
    Case("nft, forward", _rule("router", "forward"), "NETFILTER_DROP", (5, 18),
         NFT, ("forward",), ("inet", "FORWARD")),
    Case("nft, forward, IPv6", _rule("router", "forward", 6), "NETFILTER_DROP", (5, 18),
         NFT, ("forward",), ("inet", "FORWARD")),
    Case("nft, postrouting", _rule("router", "postrouting"), "NETFILTER_DROP", (5, 18),
         NFT, ("postrouting",), ("inet", "POSTROUTING")),
    Case("nft, input", _rule("right", "input"), "NETFILTER_DROP", (5, 18),
         NFT, ("input",), ("inet", "INPUT")),
    Case("nft, output, IPv6", _rule("right", "output", 6), "NETFILTER_DROP", (5, 18),
         NFT, ("output",), ("inet", "OUTPUT")),
    Case("nft, device ingress", _rule("router", "ingress device to-left", 4, "netdev"),
         "NETFILTER_DROP", (5, 18), NFT, ("ingress",), ("netdev", "INGRESS")),
    Case("iptables-nft, forward", _iptables("iptables-nft"), "NETFILTER_DROP", (5, 18),
         NFT, ("forward",), ("ip", "FORWARD")),
    Case("iptables-legacy, forward", _iptables("iptables-legacy"), "NETFILTER_DROP", (5, 18),
         XTABLES, ("forward",), ("ip", "FORWARD")),
    Case("ip6tables-legacy, forward", _iptables("ip6tables-legacy", 6), "NETFILTER_DROP", (5, 18),
         XTABLES, ("forward",), ("ip6", "FORWARD")),
    Case("no route", _to("10.247.1.1"), "IP_INNOROUTES", (5, 19), ROUTE, ("route",)),
    Case("no route, IPv6", _to("fd00:99::1"), "IP_INNOROUTES", (5, 19),
         frozenset({"ip6_pkt_discard", "ip6_pkt_drop"}), ("route",)),
    Case("blackhole route", blackhole, "NOT_SPECIFIED", (5, 10),
         ROUTE | {"dst_discard", "dst_discard_out"}, ("route",)),
    Case("ip_forward off", _sysctl("ipv4/ip_forward", 0), "IP_INADDRERRORS", (5, 19),
         ROUTE, ("ip_forward",)),
    Case("rp_filter", rp_filter, "IP_RPFILTER", (5, 18), RECEIVE, ("rp_filter",)),
    Case("TTL exceeded", ttl_exceeded, "IP_INHDR", (5, 19), frozenset({"ip_forward"}), ("ttl",)),
    Case("too big, DF", too_big, "PKT_TOO_BIG", (5, 19), frozenset({"ip_forward"}), ("mtu",)),
    Case("silent neighbour", neighbour_silent, "NEIGH_FAILED", (5, 18),
         frozenset({"neigh_invalidate", "arp_error_report"}), ("neighbour",)),
    Case("bad UDP checksum", _bad_checksum(socket.IPPROTO_UDP), "UDP_CSUM", (5, 17),
         UDP4, ("checksum",)),
    Case("bad TCP checksum", _bad_checksum(socket.IPPROTO_TCP), "TCP_CSUM", (5, 17),
         frozenset({"tcp_v4_rcv"}), ("checksum",)),
)  # fmt: skip
