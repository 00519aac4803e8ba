"""`tracer trace` where packets go through modules: IPVS, ipvlan, tunnels."""

from __future__ import annotations

import datapaths
import pytest
import tracing
from lab import runner
from lab import ways as hops
from lab.traffic import ask, new_port, send_numbered, udp_listener
from ways import WAIT_S, kinds_of

COUNT = 5
SENT = ("net_dev_queue", "net_dev_start_xmit")


@pytest.fixture(scope="module")
def pod(routed):
    """All that is on the routed topology while the module runs; the pod has ipvlan."""
    with datapaths.tunnels(routed), datapaths.ipvlan(routed) as made:
        places = (routed.left.where, routed.router, routed.right.where, made.where)
        with datapaths.hooked(*places):
            yield made


@pytest.fixture(scope="module")
def trace(routed, pod):  # noqa: ARG001 - all is there before it looks
    words = "(udp or proto gre) and net 10.246.0.0/16"
    with tracing.running(words, kinds_of("trace")[0]) as live:
        yield live


@pytest.fixture
def packets(trace):
    """What `trace` writes during this test."""
    return runner.watch(trace.live)


def deliver(packets, sender, receiver, address):
    """COUNT numbered datagrams, received; their records."""
    port = new_port()
    with udp_listener(receiver.where, port) as listener:
        send_numbered(sender.where, (address, port), COUNT)
        for number in range(COUNT):
            assert listener.recv(100)[:4] == number.to_bytes(4, "big")
        return packets.expect(COUNT, {"dst.port": port}, WAIT_S)


def test_ipvlan(trace, packets, routed, pod):
    """A pod that shares its node's device: packets change over without a crossing."""
    left = routed.left
    router, right = routed.router.name, routed.right.where.name
    wire = [f"{right} eth0 {hook}" for hook in ("netif_rx", "netif_receive_skb")]
    way = [*hops.sent(left.where.name), *hops.forwarded(router, ("to-left", "to-right"))]
    trace.check(
        deliver(packets, left, pod, pod.ip4),
        [*way, *wire, *hops.received(pod.where.name)[2:]],
    )
    wire = [f"{right} eth0 {hook}" for hook in SENT]
    way = [*hops.forwarded(router, ("to-right", "to-left")), *hops.received(left.where.name)]
    trace.check(deliver(packets, pod, left, left.ip4), [*hops.sent(pod.where.name), *wire, *way])


def tunnelled(routed, device):
    """Into a tunnel's device on the left, routed in it, out of it on the right."""
    left, right = routed.left.where.name, routed.right.where.name
    return (
        hops.sent(left, device=device),
        [
            *hops.sent(left),
            *hops.forwarded(routed.router.name, ("to-left", "to-right")),
            *hops.received(right),
        ],
        # No backlog: the tunnel's device hands it on at once.
        hops.received(right, device=device)[1:],
    )


@pytest.mark.parametrize("kind", ["ipip", "geneve", "vxlan"])
def test_tunnel(packets, routed, kind):
    """One packet, in the tunnel and in what carries it."""
    found = deliver(packets, routed.left, routed.right, datapaths.inner(kind, 2))
    way = [line for part in tunnelled(routed, f"{kind}-t") for line in part]
    for record in found:
        assert hops.told(record) == way, record
        assert record["verdict"] == "delivered"
        assert record["src.address"] == datapaths.inner(kind, 1)
        assert routed.right.ip4 in record["tunnel.packet"]


def test_gre(packets, routed):
    """It may be told in parts; before and behind the tunnel all of it is."""
    port = new_port()
    with udp_listener(routed.right.where, port) as listener:
        send_numbered(routed.left.where, (datapaths.inner("gre", 2), port), COUNT)
        for _ in range(COUNT):
            listener.recv(100)
        runner.until_quiet(packets.live, 3, WAIT_S)
    before, _, behind = tunnelled(routed, "gre-t")
    parts = {}
    for record in packets.find({"dst.port": port}):
        parts.setdefault(record["ip.id"], []).extend(hops.told(record))
    assert len(parts) == COUNT
    for told in parts.values():
        assert [line for line in told if " gre-t " in line] == [*before, *behind]


def test_ipvs(trace, packets, routed):
    """A Service of kube-proxy in mode ipvs: taken out of INPUT, sent through OUTPUT."""
    left, right, port, target = routed.left, routed.right, new_port(), new_port()
    with datapaths.ipvs(routed, port, target), udp_listener(right.where, target) as server:
        asked_from, _ = ask(left.where, (datapaths.IPVS_VIP, port), [server], COUNT)
        there = packets.expect(COUNT, {"src.port": asked_from, "dst.port": port}, WAIT_S)
        back = packets.expect(COUNT, {"src.port": target}, WAIT_S)
    router, ipvs = routed.router.name, datapaths.IPVS_VIP
    first, last = hops.nf(4, "PREROUTING", "INPUT"), hops.nf(4, "OUTPUT", "POSTROUTING")
    through = [f"{router} to-left {hook}" for hook in ("netif_rx", "netif_receive_skb", *first)]
    through += [f"{router} to-right {hook}" for hook in (*last, *SENT)]
    trace.check(
        there,
        [*hops.sent(left.where.name), *through, *hops.received(right.where.name)],
    )
    trace.check(
        back,
        [
            *hops.sent(right.where.name),
            *hops.forwarded(router, ("to-right", "to-left")),
            *hops.received(left.where.name),
        ],
    )
    assert {tracing.ends(each) for each in there} == {(left.ip4, ipvs, None, right.ip4)}
    assert {tracing.ends(each) for each in back} == {(right.ip4, left.ip4, ipvs, None)}
