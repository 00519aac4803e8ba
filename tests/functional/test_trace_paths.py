"""`trace`: the way of each packet, hop by hop, between pods and through plain namespaces."""

from __future__ import annotations

import json
import socket

import pytest
from lab import rules, runner, ways
from lab.containerd import BRIDGE, GATEWAY4, GATEWAY6, SITE
from lab.namespaces import node
from lab.shell import run
from lab.traffic import family_of, new_port, send_numbered, tcp_listener, udp_listener

COUNT = 7
FAMILIES = pytest.mark.parametrize("version", [4, 6])
PORTS = "udp portrange 20001-29999 or tcp portrange 20001-29999"
"""Of everything that the tests send, and of no one else on this machine."""
TCP_BYTES = 200_000
IDENTICAL = 101
GROUP, STRANGER = "239.77.77.77", f"10.244.{SITE}.250"


@pytest.fixture(scope="module", autouse=True)
def _made(cluster, routed):
    """The cluster first: it sweeps away what a killed run left, and `routed` looks the same."""


@pytest.fixture(scope="module")
def trace(_made, cri_env):
    """One `tracer trace` for the module; both topologies are there before it looks."""
    with runner.whole("trace", PORTS, "-o", "json", env=cri_env) as live:
        yield live


def bridged(sender, receiver, version=4):
    """The way from a pod onto the bridge, and out of it into another's netns."""
    ports = (sender.node_device, receiver.node_device)
    return ways.sent(sender.name, version) + ways.bridged(BRIDGE, ports, version)


def passages(record):
    """(device, what the bridge did, port by which it came) of hops where a bridge is told of."""
    told = [hop for hop in record["hops"] if "bridge.name" in hop]
    assert {hop["bridge.name"] for hop in told} <= {BRIDGE}
    return [(x["interface.name"], x["bridge.action"], x.get("bridge.port")) for x in told]


def udp(src, dst, port):
    """The fields of a datagram's record."""
    wanted = {"type": "packet", "transport": "udp", "dst.port": port}
    return wanted | {"src.address": src, "dst.address": dst}


def receive(listener):
    for number in range(COUNT):
        assert listener.recv(100)[:4] == number.to_bytes(4, "big")


@FAMILIES
def test_pod_to_pod(cluster, packets, version):
    client, web, port = cluster.client, cluster.web, new_port()
    src, dst = (client.ip4, web.ip4) if version == 4 else (client.ip6, web.ip6)
    with udp_listener(web.where, port, family_of(dst)) as listener:
        send_numbered(client.where, (dst, port), COUNT)
        receive(listener)
        found = packets.expect(COUNT, udp(src, dst, port))
    way = bridged(client, web, version) + ways.received(web.name, version)
    for record in found:
        ways.check(record, way, "delivered")
        assert (record["k8s.src.pod.name"], record["k8s.dst.pod.name"]) == ("client-0", "web-0")
        ports = client.node_device, web.node_device
        assert passages(record) == [(ports[0], "in", None), (ports[1], "forwarded", ports[0])]
    assert len({record["flow"] for record in found}) == 1


@FAMILIES
def test_to_the_bridge_itself(cluster, packets, version):
    client, port = cluster.client, new_port()
    src, dst = (client.ip4, GATEWAY4) if version == 4 else (client.ip6, GATEWAY6)
    with udp_listener(node(), port, family_of(dst)) as listener:
        send_numbered(client.where, (dst, port), COUNT)
        receive(listener)
        found = packets.expect(COUNT, udp(src, dst, port))
    came = client.node_device
    for record in found:
        assert record["verdict"] == "delivered", record
        assert passages(record) == [(came, "in", None), (BRIDGE, "delivered", came)]


@pytest.mark.parametrize("goal", [GROUP, STRANGER])
def test_flooded_to_all_ports(cluster, packets, goal):
    """A group that nobody has asked for, and an address that no port is known for."""
    client, port = cluster.client, new_port()
    neighbour = f"{goal} lladdr 02:00:00:00:00:77 dev eth0 nud permanent"
    if goal == STRANGER:
        client.where.ip(f"neigh replace {neighbour}")
    try:
        send_numbered(client.where, (goal, port), COUNT)
        found = packets.expect(COUNT, udp(client.ip4, goal, port))
    finally:
        if goal == STRANGER:
            client.where.ip(f"neigh del {neighbour}")
    came = client.node_device
    links = json.loads(run("ip", "-j", "-d", "link", "show", "master", BRIDGE, "up"))
    reflecting = {x["ifname"] for x in links if x["linkinfo"]["info_slave_data"]["hairpin"]}
    others = {link["ifname"] for link in links} - ({came} - reflecting)
    for record in found:
        told = passages(record)
        assert (came, "in", None) in told
        assert {name for name, action, _ in told if action == "flooded"} == others, record
        assert {port for _, action, port in told if action == "flooded"} == {came}
        assert not [one for one in told if one[1] == "forwarded"]


@FAMILIES
def test_closed_port(cluster, packets, version):
    client, web, port = cluster.client, cluster.web, new_port()
    src, dst = (client.ip4, web.ip4) if version == 4 else (client.ip6, web.ip6)
    send_numbered(client.where, (dst, port), COUNT)
    way = bridged(client, web, version) + ways.received(web.name, version)
    for record in packets.expect(COUNT, udp(src, dst, port)):
        ways.check(record, [*way, "web-0 eth0 kfree_skb"], "dropped")
        assert record["drop.reason"] == "NO_SOCKET"
        assert record["hops"][-1]["drop.reason"] == "NO_SOCKET"
        assert str(port) in record["explanation"]


def test_dropped_in_forward(cluster, packets):
    client, port = cluster.client, new_port()
    with rules.nft(node(), "ip", "forward", f"udp dport {port} drop"):
        send_numbered(client.where, (cluster.outside_ip4, port), COUNT)
        found = packets.expect(COUNT, udp(client.ip4, cluster.outside_ip4, port))
    came = client.node_device
    way = [
        *ways.sent(client.name),
        *(f"node {came} {hook}" for hook in ("netif_rx", "netif_receive_skb")),
        f"node {BRIDGE} nf ip PREROUTING",
        f"node {BRIDGE} netif_receive_skb",
        f"node {cluster.node_device} nf ip FORWARD",
        f"node {BRIDGE} kfree_skb",
    ]
    for record in found:
        ways.check(record, way, "dropped")
        assert record["hops"][-2]["verdict"] == "drop"
        assert record["drop.reason"] == "NETFILTER_DROP"
        assert record["netfilter.hook"] == "FORWARD"
        assert ways.routes(record) == [f"node {BRIDGE}>{cluster.node_device}"]


@FAMILIES
def test_routed_without_a_bridge(routed, packets, version):
    left, right, port = routed.left, routed.right, new_port()
    with udp_listener(right.where, port, family_of(right.ip(version))) as listener:
        send_numbered(left.where, (right.ip(version), port), COUNT)
        receive(listener)
        found = packets.expect(COUNT, udp(left.ip(version), right.ip(version), port))
    way = [
        *ways.sent("trt-left", version),
        *ways.forwarded("trt-router", ("to-left", "to-right"), version),
        *ways.received("trt-right", version),
    ]
    forward = ways.nf(version, "FORWARD")[0]
    for record in found:
        ways.check(record, way, "delivered")
        assert any("64 → 63" in x for x in ways.changes(record, "trt-router", forward)), record


def test_identical_packets(routed, packets):
    """The same bytes again, in the same memory: each is a packet of its own."""
    left, right, port = routed.left, routed.right, new_port()
    with (
        udp_listener(right.where, port) as listener,
        left.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(IDENTICAL):
            sender.sendto(b"the same", (right.ip4, port))
            listener.recv(100)
        found = packets.expect(IDENTICAL, udp(left.ip4, right.ip4, port))
    through = ways.forwarded("trt-router", ("to-left", "to-right"))
    for record in found:
        way = ways.sent("trt-left") + through + ways.received("trt-right")
        ways.check(record, way, "delivered")


def test_tcp_with_large_segments(cluster, packets):
    """Every segment is followed whole, as the one sk_buff that it is between two pods."""
    client, web, port = cluster.client, cluster.web, new_port()
    with tcp_listener(web.where, port) as listener:
        transfer(client, (web.ip4, port), listener)
    runner.until_quiet(packets.live, 1.4, 8)
    there = packets.find({"dst.port": port, "transport": "tcp"})
    back = packets.find({"src.port": port, "transport": "tcp"})
    ends = {"tcp_probe", "skb_copy_datagram_iovec", "consume_skb", "kfree_skb"}
    for records, pods in ((there, (client, web)), (back, (web, client))):
        way = bridged(*pods) + ways.received(pods[1].name)
        for record in records:
            assert ways.told(record)[: len(way)] == way
            assert {hop.split()[-1] for hop in ways.told(record)[len(way) :]} <= ends
            assert record["verdict"] == "delivered", record
    assert [record["tcp.flags"] for record in (there[0], back[0])] == ["SYN", "SYN,ACK"]
    payload = [record["bytes"] - 52 for record in there if record["tcp.flags"] != "SYN"]
    assert sum(payload) == TCP_BYTES
    assert max(payload) > 1500
    assert len({record["flow"] for record in there + back}) == 1


def transfer(client, to, listener):
    """Send TCP_BYTES to a listener, and close both ends."""
    with client.where.socket(socket.AF_INET, socket.SOCK_STREAM) as sender:
        sender.connect(to)
        accepted, _ = listener.accept()
        with accepted:
            sender.sendall(bytes(TCP_BYTES))
            sender.shutdown(socket.SHUT_WR)
            while accepted.recv(65536):
                pass
