"""The way of a packet as `trace` should tell it, put together from what the test built.

A hop is one line of text, `place device hook`: the place is the pod's name, or the namespace's.
Routing decisions are left out: whether one is needed depends on what the kernel has cached. So is
that a reader freed the packet: some do it where no tracepoint tells.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.runner import Record

ROUTE = "fib_table_lookup"
UNSURE = (ROUTE, "consume_skb")
SLOW_NS = 200_000_000
"""No hop of the tests' packets waits this long: a later one is another packet's."""


def told(record: Record) -> list[str]:
    """The way that a packet record tells, without hops that may or may not be."""
    return [_line(hop) for hop in record["hops"] if hop["hook"] not in UNSURE]


def routes(record: Record) -> list[str]:
    """Where a routing table was asked and chose a device: `place device>device`."""
    return [
        f"{_place(hop)} {hop['interface.name']}>{hop['route.interface.name']}"
        for hop in record["hops"]
        if hop["hook"] == ROUTE and "route.interface.name" in hop
    ]


def changes(record: Record, place: str, hook: str) -> list[str]:
    """What is told to have changed at the one hop of that place and hook."""
    (found,) = [hop for hop in record["hops"] if (_place(hop), hop["hook"]) == (place, hook)]
    texts: list[str] = found.get("changes", [])
    return texts


def _place(hop: Record) -> str:
    return str(hop.get("k8s.pod.name") or hop.get("netns.name") or hop["netns"])


def _line(hop: Record) -> str:
    return f"{_place(hop)} {hop.get('interface.name')} {hop['hook']}"


def sent(place: str, version: int = 4, device: str = "eth0") -> list[str]:
    """From a socket onto a device."""
    hooks = (*nf(version, "OUTPUT", "POSTROUTING"), "net_dev_queue", "net_dev_start_xmit")
    return [f"{place} {device} {hook}" for hook in hooks]


def received(place: str, version: int = 4, device: str = "eth0") -> list[str]:
    """From the other end of a veth pair into a socket."""
    hooks = ("netif_rx", "netif_receive_skb", *nf(version, "PREROUTING", "INPUT"))
    return [f"{place} {device} {hook}" for hook in hooks]


def bridged(
    bridge: str, ports: tuple[str, str], version: int = 4, place: str = "node"
) -> list[str]:
    """Through the bridge of a node, with br_netfilter."""
    came, left = ports
    return [
        *(f"{place} {came} {hook}" for hook in ("netif_rx", "netif_receive_skb")),
        *(f"{place} {bridge} {hook}" for hook in nf(version, *THROUGH)),
        *(f"{place} {left} {hook}" for hook in ("net_dev_queue", "net_dev_start_xmit")),
    ]


def forwarded(place: str, devices: tuple[str, str], version: int = 4) -> list[str]:
    """Through a router."""
    came, left = devices
    first, *others = nf(version, *THROUGH)
    return [
        *(f"{place} {came} {hook}" for hook in ("netif_rx", "netif_receive_skb", first)),
        *(f"{place} {left} {hook}" for hook in (*others, "net_dev_queue", "net_dev_start_xmit")),
    ]


THROUGH = ("PREROUTING", "FORWARD", "POSTROUTING")


def nf(version: int, *hooks: str) -> tuple[str, ...]:
    """Names of netfilter hooks."""
    return tuple(f"nf {'ip' if version == 4 else 'ip6'} {hook}" for hook in hooks)


def follows(record: Record, way: list[str]) -> None:
    """The packet's hops are exactly those of `way`."""
    found = told(record)
    assert found == way, "\n".join([record["packet"], *difflib.ndiff(way, found)])


def check(record: Record, way: list[str], verdict: str) -> None:
    """One packet: its way hop by hop, its verdict, no hop of another packet, nothing in doubt."""
    follows(record, way)
    assert record["verdict"] == verdict, record
    assert "inferred" not in record, record
    assert "incomplete" not in record, record
    for hop in record["hops"][1:]:
        assert 0 <= hop.get("delta_ns", 0) < SLOW_NS, hop
