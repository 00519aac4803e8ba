"""`trace` through the rules that kube-proxy really made, in iptables and in nftables mode.

Pods, Services and addresses are those of the node where the rules were recorded.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
from lab import kube_node as kube
from lab import runner, ways
from lab.traffic import (
    ANSWER_BYTES,
    ask,
    converse,
    family_of,
    send_numbered,
    tcp_listener,
    udp_listener,
)

COUNT = 5
VERSIONS = pytest.mark.parametrize("version", [4, 6])
OURS = "(udp or tcp or icmp or icmp6[0] == 1)"
NETS = "net 10.244.0.0/24 or net 198.51.100.0/24 or net fd00:10:244::/64 or net fd00:5100::/64"
TCP_ENDS = {"tcp_probe", "skb_copy_datagram_iovec", "consume_skb", "kfree_skb"}


@pytest.fixture(scope="module")
def trace(kube_node, cri_env):  # noqa: ARG001 - all is there before it looks
    """One `tracer trace` for the module."""
    with runner.running("trace", f"{OURS} and ({NETS})", "-o", "json", env=cri_env) as live:
        yield live
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


@pytest.fixture
def packets(trace, proxy):  # noqa: ARG001
    """What `trace` writes during this test."""
    return runner.watch(trace)


def asked(node, packets, asker, to):
    """Questions and answers between a host and a pod of the Service, and that pod."""
    family = family_of(to[0])
    with ExitStack() as stack:
        servers = [
            stack.enter_context(udp_listener(pod.where, kube.WEB_PORT, family)) for pod in node.web
        ]
        port, which = ask(asker.where, to, servers, COUNT)
        there = packets.expect(COUNT, {"src.port": port, "dst.port": to[1]})
        reply = {"src.port": kube.WEB_PORT, "type": "packet"}
        back = packets.expect(COUNT, reply)
    for record in back:
        assert record["bytes"] == ANSWER_BYTES + (28 if family_of(to[0]) == 2 else 48)
    one_flow(there + back, f":{port} → ", to[0])
    return there, back, node.web[which]


def one_flow(records, *words):
    """All are of one connection, named as its opener wrote it."""
    (flow,) = {record["flow"] for record in records}
    assert all(word in flow for word in words), flow
    assert len({record["network.community_id"] for record in records}) == 1
    assert len({record["conntrack.orig.dst.address"] for record in records}) == 1


def check(records, way):
    for record in records:
        ways.check(record, way, "delivered")


def translated(record, node, hook):
    """What a netfilter hook of the node changed, without ttl."""
    return [text for text in ways.changes(record, node.node.name, hook) if "NAT " in text]


def ends(record):
    """Addresses before and after translation."""
    names = ("src.address", "dst.address", "nat.src.address", "nat.dst.address")
    return tuple(record.get(name) for name in names)


@VERSIONS
def test_pod_to_service(kube_node, packets, version):
    client = kube_node.pods["client"]
    there, back, web = asked(kube_node, packets, client, kube.WEB[version])
    check(there, kube_node.between(client, web, version))
    check(back, kube_node.between(web, client, version))
    service, (pre, post) = kube.WEB[version][0], ways.nf(version, "PREROUTING", "POSTROUTING")
    own, theirs = client.ip(version), web.ip(version)
    for record in there:
        assert ends(record) == (own, service, None, theirs)
        assert record["nat.dst.port"] == kube.WEB_PORT
        assert any(text.startswith("DNAT") for text in translated(record, kube_node, pre))
        assert record["conntrack.reply.src.address"] == theirs
    for record in back:
        assert ends(record) == (theirs, own, service, None)
        assert record["conntrack.direction"] == "reply"
        assert any(text.startswith("un-DNAT") for text in translated(record, kube_node, post))


@VERSIONS
def test_node_port_from_outside(kube_node, packets, version):
    """DNAT, and the node's own address for the sender's, so that answers come back."""
    to = (kube.NODE[version], kube.NODE_PORT)
    there, back, web = asked(kube_node, packets, kube_node.outside, to)
    check(there, kube_node.inward(web, version))
    check(back, kube_node.outward(web, version))
    sender, theirs = kube_node.outside.ip(version), web.ip(version)
    for record in there:
        assert ends(record) == (sender, to[0], kube.GATEWAY[version], theirs)
        pre, post = ways.nf(version, "PREROUTING", "POSTROUTING")
        assert any(text.startswith("DNAT") for text in translated(record, kube_node, pre))
        assert any(text.startswith("SNAT") for text in translated(record, kube_node, post))
        assert record["conntrack.reply.dst.address"] == kube.GATEWAY[version]
        assert record["conntrack.reply.dst.port"] == record["nat.src.port"]
    for record in back:
        assert ends(record) == (theirs, kube.GATEWAY[version], to[0], sender)


@VERSIONS
def test_masquerade_out(kube_node, packets, version):
    client, to = kube_node.pods["client"], (kube.FAR[version], 7070)
    with kube_node.outside.where.socket(family_of(to[0]), socket.SOCK_DGRAM) as server:
        server.bind(to)
        port, _ = ask(client.where, to, [server], COUNT)
        there = packets.expect(COUNT, {"src.port": port, "dst.port": to[1]})
        back = packets.expect(COUNT, {"src.port": to[1], "type": "packet"})
    check(there, kube_node.outward(client, version))
    check(back, kube_node.inward(client, version))
    one_flow(there + back, f":{port} → ", to[0])
    for record in there:
        assert ends(record) == (client.ip(version), to[0], kube.NODE[version], None)
        assert record["conntrack.reply.dst.address"] == kube.NODE[version]
        assert record["conntrack.reply.dst.port"] == record.get("nat.src.port", port)
    for record in back:
        assert ends(record) == (to[0], kube.NODE[version], None, client.ip(version))


def talk(packets, asker, to, server):
    """Segments of a short TCP connection, there and back."""
    with tcp_listener(server.where, kube.POD_PORT) as listener:
        port = converse(asker.where, to, listener)
        runner.until_quiet(packets.live, 1.4, 8)
    found = packets.find({"transport": "tcp"})
    there = [record for record in found if record["dst.port"] == to[1]]
    back = [record for record in found if record["src.port"] == kube.POD_PORT]
    assert len(there) + len(back) == len(found)
    one_flow(found, f"{asker.ip4}:{port} → {to[0]}:{to[1]} TCP")
    for records, first in ((there, "SYN"), (back, "SYN,ACK")):
        flags = [record["tcp.flags"] for record in records]
        assert flags.count(first) == 1, flags
        assert sum("FIN" in each for each in flags) == 1, flags
        assert sum("PSH" in each for each in flags) == 1, flags
    return there, back


def check_tcp(records, way):
    """The way of each segment; its end depends on what it holds."""
    for record in records:
        end = ways.told(record)[len(way) :]
        assert {hop.split()[-1] for hop in end} <= TCP_ENDS, end
        ways.follows(record, [*way, *end])
        assert record["verdict"] == "delivered", record
        assert "incomplete" not in record, record
        # TCP keeps its data for retransmission: a router needs a copy to change the ttl.
        copied = any("data copied" in hop.get("changes", ()) for hop in record["hops"])
        assert record.get("inferred", False) == copied, record


def test_hairpin(kube_node, packets):
    """A pod reaches itself through its Service: it sees the node's address as the asker's."""
    single = kube_node.pods["single"]
    there, back = talk(packets, single, kube.SINGLE, single)
    check_tcp(there + back, kube_node.between(single, single))
    for record in there:
        assert ends(record) == (single.ip4, kube.SINGLE[0], kube.GATEWAY[4], single.ip4)
    for record in back:
        assert ends(record) == (single.ip4, kube.GATEWAY[4], kube.SINGLE[0], single.ip4)


def test_external_ip(kube_node, packets):
    single = kube_node.pods["single"]
    there, back = talk(packets, kube_node.outside, kube.EXTERNAL, single)
    check_tcp(there, kube_node.inward(single))
    check_tcp(back, kube_node.outward(single))
    for record in there:
        assert ends(record) == (
            kube_node.outside.ip4,
            kube.EXTERNAL[0],
            kube.GATEWAY[4],
            single.ip4,
        )


def test_host_port(kube_node, packets):
    """The CNI's portmap: DNAT alone."""
    pod, to = kube_node.pods["hostport"], (kube.NODE[4], kube.HOST_PORT)
    there, back = talk(packets, kube_node.outside, to, pod)
    check_tcp(there, kube_node.inward(pod))
    check_tcp(back, kube_node.outward(pod))
    for record in there:
        assert ends(record) == (kube_node.outside.ip4, to[0], None, pod.ip4)
    for record in back:
        assert ends(record) == (pod.ip4, kube_node.outside.ip4, to[0], None)


@VERSIONS
def test_icmp_error_about_a_translated_packet(kube_node, packets, version):
    """No one listens: what the pod answers is translated back, and so is what it quotes."""
    client, to = kube_node.pods["client"], kube.WEB[version]
    send_numbered(client.where, to, 1)
    (died,) = packets.expect(1, {"verdict": "dropped"})
    (error,) = packets.expect(1, {"transport": "icmp" if version == 4 else "icmpv6"})
    (web,) = [pod for pod in kube_node.web if pod.ip(version) == died["nat.dst.address"]]
    assert died["drop.reason"] == "NO_SOCKET"
    ways.check(
        died,
        [*kube_node.between(client, web, version), f"{web.where.name} eth0 kfree_skb"],
        "dropped",
    )
    ways.check(error, kube_node.between(web, client, version), "delivered")
    assert ends(error) == (web.ip(version), client.ip(version), to[0], None)
    if version == 4:  # of IPv6, the bytes kept of a hop end before the addresses that are quoted
        assert web.ip4 in error["icmp.inner"]
    assert error["flow"] == died["flow"]
    assert error["conntrack.state"] == "related"


def test_service_without_endpoints(kube_node, packets):
    """REJECT in the node's FORWARD hook; the explanation is that of a rule."""
    client = kube_node.pods["client"]
    with client.where.socket(2, 1) as sender, pytest.raises(OSError, match="refused"):
        sender.connect(kube.NO_ENDPOINTS)
    (died,) = packets.expect(1, {"dst.address": kube.NO_ENDPOINTS[0], "tcp.flags": "SYN"})
    way = kube_node.outward(client)
    place = kube_node.node.name
    last = f"{place} eth0 nf ip FORWARD"
    ways.follows(died, [*way[: way.index(last) + 1], f"{place} {kube.BRIDGE} kfree_skb"])
    assert (died["verdict"], died["netfilter.hook"]) == ("dropped", "FORWARD")
    assert died["hops"][-2]["verdict"] == "drop"
