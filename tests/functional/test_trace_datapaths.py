"""`trace` where packets go other ways than through a bridge: routed pods, macvlan, splits."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import pytest
from lab import namespaces, runner, ways
from lab.namespaces import End
from lab.topology import meet
from lab.traffic import (
    family_of,
    new_port,
    send_numbered,
    send_udp,
    tcp_listener,
    udp_listener,
)

COUNT = 5
FRAGMENTED_BYTES = 4000
"""Three fragments on a wire that takes 1500."""
NETS = "net 10.253.0.0/16 or net fd00:10:253::/48"


@contextmanager
def spaces(*names):
    """New namespaces, gone after the block."""
    try:
        yield [namespaces.create(name) for name in names]
    finally:
        for name in names:
            namespaces.delete(name)


@pytest.fixture(scope="module")
def calico(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    """Two pods with addresses of their own and a gateway that only proxy ARP answers for."""
    with spaces("cali", "cali-1", "cali-2") as (node, *pods):
        node.sysctl("ipv4/ip_forward", 1)
        node.sysctl("ipv6/conf/all/forwarding", 1)
        node.ip("route add default dev lo")  # who answers for an address has to have a way there
        for number, pod in enumerate(pods, 1):
            device, own = f"cali{number}", (f"10.253.1.{number}", f"fd00:10:253::{number}")
            namespaces.join(
                End(node, device, ()), End(pod, "eth0", (f"{own[0]}/32", f"{own[1]}/128"))
            )
            node.sysctl(f"ipv4/conf/{device}/proxy_arp", 1)
            node.sysctl(f"ipv4/neigh/{device}/proxy_delay", 0)
            node.ip(f"-6 address add fe80::ca:{number}/64 dev {device} nodad")
            for address in own:
                node.ip(f"route add {address} dev {device}")
            pod.ip("route add 169.254.1.1 dev eth0 scope link")
            pod.ip("route add default via 169.254.1.1 dev eth0")
            pod.ip(f"-6 route add default via fe80::ca:{number} dev eth0")
        meet(pods[0], pods[1], "10.253.1.2")
        meet(pods[1], pods[0], "10.253.1.1")
        meet(pods[0], pods[1], "fd00:10:253::2")
        yield node, *pods


@pytest.fixture(scope="module")
def macvlan(cluster):  # noqa: ARG001
    """A pod whose device is a macvlan of the node's, and a host on the same wire."""
    with spaces("mac", "mac-1", "mac-out") as (node, pod, outside):
        namespaces.join(End(node, "eth0", ()), End(outside, "eth0", ("10.253.3.9/24",)))
        node.ip("link add link eth0 name mac0 type macvlan mode bridge")
        node.run("ip", "link", "set", "mac0", "netns", pod.path)
        pod.ip("link set mac0 name eth0")
        pod.ip("address add 10.253.3.1/24 dev eth0")
        pod.ip("link set eth0 up")
        meet(pod, outside, "10.253.3.9")
        meet(outside, pod, "10.253.3.1")
        yield node, pod, outside


@pytest.fixture(scope="module")
def trace(calico, macvlan, cri_env):  # noqa: ARG001 - all is there before it looks
    """One `tracer trace` for the module."""
    with runner.whole("trace", f"(udp or tcp) and ({NETS})", "-o", "json", env=cri_env) as live:
        yield live


def deliver(packets, sender, receiver, address):
    """COUNT numbered datagrams, received; their records."""
    port = new_port()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with udp_listener(receiver, port, family) as listener:
        send_numbered(sender, (address, port), COUNT)
        for number in range(COUNT):
            assert listener.recv(100)[:4] == number.to_bytes(4, "big")
        return packets.expect(COUNT, {"dst.port": port})


@pytest.mark.parametrize("version", [4, 6])
def test_routed_pods_without_a_bridge(calico, packets, version):
    node, one, other = calico
    address = "10.253.1.2" if version == 4 else "fd00:10:253::2"
    way = [
        *ways.sent(one.name, version),
        *ways.forwarded(node.name, ("cali1", "cali2"), version),
        *ways.received(other.name, version),
    ]
    for record in deliver(packets, one, other, address):
        ways.check(record, way, "delivered")
        assert "trt-cali cali1>cali2" in ways.routes(record)


def test_macvlan(macvlan, packets):
    """Packets change over from the pod's device to the node's and back, without a crossing."""
    node, pod, outside = macvlan
    wire = [f"{node.name} eth0 {hook}" for hook in ("net_dev_queue", "net_dev_start_xmit")]
    for record in deliver(packets, pod, outside, "10.253.3.9"):
        way = [*ways.sent(pod.name), *wire, *ways.received(outside.name)]
        ways.check(record, way, "delivered")
    wire = [f"{node.name} eth0 {hook}" for hook in ("netif_rx", "netif_receive_skb")]
    for record in deliver(packets, outside, pod, "10.253.3.1"):
        way = [*ways.sent(outside.name), *wire, *ways.received(pod.name)[2:]]
        ways.check(record, way, "delivered")


@pytest.mark.parametrize("version", [4, 6])
def test_fragments(calico, packets, version):
    """Each fragment is a packet of its own; the first is the datagram that was sent."""
    node, one, other = calico
    address, family = ("10.253.1.2", "ip") if version == 4 else ("fd00:10:253::2", "ip6")
    port = new_port()
    with udp_listener(other, port, family_of(address)) as listener:
        send_udp(one, (address, port), 1, bytes(FRAGMENTED_BYTES))
        assert len(listener.recv(2 * FRAGMENTED_BYTES)) == FRAGMENTED_BYTES
        (first,) = packets.expect(1, {"dst.port": port})
    rest = packets.expect(2, {"ip.fragment.offset": bool})
    through = ways.forwarded(node.name, ("cali1", "cali2"), version)
    way = [*ways.sent(one.name, version), *through, *ways.received(other.name, version)]
    ways.follows(first, way)
    assert first["verdict"] == "delivered"
    (queued,) = [hop for hop in first["hops"] if hop["hook"] == "net_dev_queue"][:1]
    assert queued["changes"][0].startswith("fragmented, ")
    # IPv4 is put together before its INPUT hook, IPv6 behind it.
    part = [x for x in way if version == 6 or not x.endswith("INPUT")][2:]
    for record in rest:
        ways.follows(record, part)
        assert record["verdict"] == ("consumed" if version == 4 else "delivered")
    assert [record["ip.fragment.more"] for record in rest] == [True, False]
    if version == 4:
        told = [text for hop in first["hops"] for text in hop.get("changes", ())]
        assert any(text.startswith("reassembled, ") for text in told), (family, told)


@contextmanager
def without_segmentation(where, device):
    """Neither the device nor its driver takes more than a frame at once."""
    both = ("tso", "gso")
    where.run("ethtool", "-K", device, *(word for one in both for word in (one, "off")))
    try:
        yield
    finally:
        where.run("ethtool", "-K", device, *(word for one in both for word in (one, "on")))


def test_segments(calico, packets):
    """What one sk_buff was goes on as several, each a branch with its own end."""
    node, one, other = calico
    port = new_port()
    with (
        without_segmentation(node, "cali2"),
        tcp_listener(other, port) as listener,
        one.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.connect(("10.253.1.2", port))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            client.sendall(bytes(FRAGMENTED_BYTES))
            left = FRAGMENTED_BYTES
            while left:
                left -= len(accepted.recv(left))
            runner.until_quiet(packets.live, 1.4, 8)
    (record,) = packets.find({"dst.port": port, "tcp.flags": "PSH,ACK"})
    hops = [hop for hop in record["hops"] if hop["hook"] not in ways.UNSURE]
    segments = [hop for hop in hops if "segment" in hop.get("changes", ())]
    assert record["hops"][0]["changes"] == ["GSO 3 segments"]
    assert len(segments) == len({hop["branch"] for hop in segments}) == 3
    way = [f"{node.name} cali2 net_dev_start_xmit", *ways.received(other.name)]
    for segment in segments:
        assert "GSO 3 → 1 segments" in segment["changes"]
        mine = {**record, "hops": [hop for hop in hops if hop["branch"] == segment["branch"]]}
        assert ways.told(mine)[: len(way)] == way
    assert record["verdict"] == "delivered"
