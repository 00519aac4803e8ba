"""Packets that a rule drops: every hook of the node and of a pod, every kind of rule."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import pytest
from lab import namespaces, wire
from lab.expect import NETFILTER, at, destination, owner, place, say, source, tcp, udp
from lab.rules import iptables, nft
from lab.traffic import new_port, open_tcp, send_udp

COUNT = 7
NFT = {**NETFILTER, **at("nft_do_chain")}
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def hook(name, family="inet"):
    return {"netfilter.hook": name.upper(), "netfilter.family": family}


class Way(NamedTuple):
    """From where a packet is sent, to where, and whom its loss concerns."""

    sender: namespaces.Namespace
    src: str
    dst: str
    concerns: dict


def way(cluster, kind, version):
    client, web, node = cluster.client, cluster.web, namespaces.node()
    pods = {4: (client.ip4, web.ip4), 6: (client.ip6, web.ip6)}[version]
    out = {4: cluster.outside_ip4, 6: cluster.outside_ip6}[version]
    here = {4: cluster.node_ip4, 6: cluster.node_ip6}[version]
    bridge = {4: "10.244.77.1", 6: "fd00:10:244:77::1"}[version]
    egress = owner(client, "egress") | source(client)
    ingress = owner(client, "ingress") | destination(client)
    return {
        "out": Way(client.where, pods[0], out, egress),
        "to-node": Way(client.where, pods[0], here, egress),
        "from-node": Way(node, bridge, pods[0], ingress),
        "in": Way(cluster.outside, out, pods[0], ingress),
        "pod-to-pod": Way(client.where, *pods, source(client) | destination(web)),
        "pod-back": Way(web.where, pods[1], pods[0], source(web) | destination(client)),
    }[kind]


@FAMILIES
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prerouting", "out"),
        ("forward", "out"),
        ("forward", "in"),
        ("postrouting", "out"),
        ("input", "to-node"),
        ("output", "from-node"),
    ],
)
def test_nft_drop_on_the_node(cluster, watch, version, name, kind):
    port, path = new_port(), way(cluster, kind, version)
    with nft(namespaces.node(), "inet", name, f"udp dport {port} drop"):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    wanted = NFT | hook(name) | path.concerns | place(namespaces.node())
    say(found, wanted | {"verdict": "dropped"}, name)


@FAMILIES
@pytest.mark.parametrize(
    ("name", "kind", "direction"),
    [
        ("prerouting", "pod-to-pod", "ingress"),
        ("input", "pod-to-pod", "ingress"),
        ("output", "pod-back", "egress"),
        ("postrouting", "pod-back", "egress"),
    ],
)
def test_nft_drop_inside_a_pod(cluster, watch, version, name, kind, direction):
    port, path, web = new_port(), way(cluster, kind, version), cluster.web
    with nft(web.where, "inet", name, f"udp dport {port} drop"):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    wanted = NFT | hook(name) | path.concerns | owner(web, direction) | place(web.where)
    say(found, wanted, name)


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_nft_family_of_one_protocol(cluster, watch, family):
    port, path = new_port(), way(cluster, "out", 6 if family == "ip6" else 4)
    with nft(namespaces.node(), family, "forward", f"udp dport {port} drop"):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    say(found, NFT | hook("forward", family) | path.concerns)


@pytest.mark.parametrize(
    ("tool", "function"),
    [
        ("iptables-nft", "nft_do_chain"),
        ("iptables-legacy", "nf_hook_slow"),
        ("ip6tables-nft", "nft_do_chain"),
        ("ip6tables-legacy", "nf_hook_slow"),
    ],
)
@pytest.mark.parametrize("target", ["DROP", "REJECT"])
def test_iptables_in_forward(cluster, watch, tool, function, target):
    family = "ip6" if tool.startswith("ip6") else "ip"
    port, path = new_port(), way(cluster, "out", 6 if family == "ip6" else 4)
    rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", target)
    with iptables(namespaces.node(), tool, *rule):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    wanted = NETFILTER | at(function) | hook("forward", family) | path.concerns
    say(found, wanted | place(namespaces.node()), "forward")


def test_tcp_that_a_rule_drops(cluster, watch):
    port, path = new_port(), way(cluster, "out", 4)
    rule = ("FORWARD", "-p", "tcp", "--dport", str(port), "-j", "DROP")
    with iptables(namespaces.node(), "iptables-nft", *rule):
        assert open_tcp(path.sender, (path.dst, port)) is not None
        found = watch.expect(1, tcp(path.src, path.dst, port))
    say(found, NETFILTER | path.concerns | {"tcp.flags": "SYN"})


def test_bridged_pod_to_pod_traffic(cluster, watch):
    """br_netfilter takes bridged packets through FORWARD, where kube-proxy's rules are."""
    node = namespaces.node()
    if node.sysctl("bridge/bridge-nf-call-iptables") != "1":
        pytest.skip("br_netfilter is off: bridged packets see no rules")
    port, path = new_port(), way(cluster, "pod-to-pod", 4)
    with iptables(node, "iptables-nft", "FORWARD", "-p", "udp", "--dport", str(port), "-j", "DROP"):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    say(found, NFT | hook("forward", "ip") | path.concerns | place(node))


def test_bridge_family(cluster, watch):
    port, path = new_port(), way(cluster, "pod-to-pod", 4)
    with nft(namespaces.node(), "bridge", "forward", f"udp dport {port} drop", priority=1):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    say(found, NFT | hook("forward", "bridge") | path.concerns)


def test_netdev_ingress_of_a_pod(cluster, watch):
    port, path, web = new_port(), way(cluster, "pod-to-pod", 4), cluster.web
    with nft(web.where, "netdev", "ingress device eth0", f"udp dport {port} drop"):
        send_udp(path.sender, (path.dst, port), COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port))
    wanted = NFT | hook("ingress", "netdev") | path.concerns | owner(web, "ingress")
    say(found, wanted | place(web.where, "eth0"))


def test_conntrack_invalid(cluster, watch):
    port, path = new_port(), way(cluster, "out", 4)
    segment = wire.tcp(path.src, path.dst, (port, port), flags=wire.RST, sequence=1000)
    with nft(namespaces.node(), "inet", "forward", f"tcp dport {port} ct state invalid drop"):
        wire.send(path.sender, wire.ip(path.src, path.dst, 6, segment), COUNT)
        found = watch.expect(COUNT, tcp(path.src, path.dst, port))
    say(found, NFT | hook("forward") | path.concerns, "conntrack")


def test_conntrack_state_and_tuple_before_nat(cluster, watch):
    """A Service address is gone from the packet when FORWARD drops it: conntrack still has it."""
    node, client, web, port = namespaces.node(), cluster.client, cluster.web, new_port()
    to = f"{web.ip4}:{port}"
    dnat = ("PREROUTING", "-t", "nat", "-d", "10.96.77.7", "-p", "udp", "-j", "DNAT")
    drop = ("FORWARD", "-d", web.ip4, "-p", "udp", "--dport", str(port), "-j", "DROP")
    with ExitStack() as rules:
        rules.enter_context(iptables(node, "iptables-nft", *dnat, "--to-destination", to))
        rules.enter_context(iptables(node, "iptables-nft", *drop))
        send_udp(client.where, ("10.96.77.7", 53), COUNT)
        found = watch.expect(COUNT, udp(client.ip4, web.ip4, port))
    before = {"conntrack.orig.dst.address": "10.96.77.7", "conntrack.orig.dst.port": 53}
    ends = source(client) | destination(web)
    say(found, NETFILTER | ends | before | {"conntrack.state": "new"})


def test_icmp_and_icmpv6(cluster, watch):
    client, web, number = cluster.client, cluster.web, new_port()
    with nft(web.where, "inet", "input", "meta l4proto { icmp, icmpv6 } drop"):
        four = wire.ip(client.ip4, web.ip4, 1, wire.echo(client.ip4, web.ip4, number))
        six = wire.ip(client.ip6, web.ip6, 58, wire.echo(client.ip6, web.ip6, number))
        wire.send(client.where, four, COUNT)
        wire.send(client.where, six, COUNT)
        ends = {"src.address": client.ip4, "dst.address": web.ip4, "transport": "icmp"}
        say(watch.expect(COUNT, ends), NFT | hook("input") | owner(web, "ingress"))
        ends = {"src.address": client.ip6, "dst.address": web.ip6, "transport": "icmpv6"}
        # Neighbour discovery is ICMPv6 too: only the echo requests are ours.
        ends |= {"icmp.type": 128}
        say(watch.expect(COUNT, ends), NFT | hook("input") | owner(web, "ingress"))


def test_sctp(cluster, watch):
    port, path = new_port(), way(cluster, "out", 4)
    packet = wire.ip(path.src, path.dst, wire.SCTP, wire.sctp((port, port)))
    with nft(namespaces.node(), "inet", "forward", f"sctp dport {port} drop"):
        wire.send(path.sender, packet, COUNT)
        found = watch.expect(COUNT, udp(path.src, path.dst, port) | {"transport": "sctp"})
    say(found, NFT | hook("forward") | path.concerns)


def test_arp(cluster, watch):
    client, web = cluster.client, cluster.web
    request = wire.arp_request(wire.mac_of(client.where, "eth0"), client.ip4, web.ip4)
    with nft(web.where, "arp", "input", "arp operation request drop"):
        wire.send_frames(client.where, "eth0", request, COUNT)
        ends = {"network.type": "arp", "src.address": client.ip4, "dst.address": web.ip4}
        found = watch.expect(COUNT, ends)
    wanted = NFT | hook("input", "arp") | owner(web, "ingress") | place(web.where, "eth0")
    say(found, wanted | {"arp.operation": "request"})
