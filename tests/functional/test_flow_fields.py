"""What `tracer flows` tells besides packets and bytes, provoked and held against the kernel."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import ExitStack, contextmanager

import pytest
from lab import namespaces, runner
from lab.rules import counted, iptables, nft
from lab.shell import CommandFailedError, run, until
from lab.traffic import (
    converse,
    family_of,
    new_port,
    open_tcp,
    send_udp,
    tcp_listener,
    udp_listener,
)

EXPEDITED = 46
"""DSCP of expedited forwarding (RFC 3246)."""
ABORT = struct.pack("ii", 1, 0)
"""struct linger: close() resets the connection."""


@pytest.fixture
def flows(cri_env):
    """Run flows around a block of traffic; its records once it has stopped."""

    def around(*options):
        return runner.running("flows", "--interval", "300ms", *options, env=cri_env)

    return around


def told(records, field, **wanted):
    """Values of one field in the forwarded flows that match."""
    wanted = {name.replace("_", "."): value for name, value in wanted.items()}
    wanted["verdict"] = "forwarded"
    return [r[field] for r in records if runner.matches(r, wanted) and field in r]


def mib(where, name):
    """One of the kernel's counters of a namespace."""
    return int(where.run("nstat", "-asz", name).split()[-2])


@contextmanager
def connected(client, web, port):
    """One TCP connection: (the client's socket, the server's)."""
    with (
        tcp_listener(web.where, port) as listener,
        client.where.socket(socket.AF_INET, socket.SOCK_STREAM) as sender,
    ):
        sender.connect((web.ip4, port))
        accepted, _ = listener.accept()
        with accepted:
            yield sender, accepted


@pytest.mark.parametrize("version", [4, 6])
def test_traffic_class(cluster, flows, version):
    """As the sender asked for it, at both ends; absent where it asked for nothing."""
    port, plain, client, web = new_port(), new_port(), cluster.client, cluster.web
    to = web.ip4 if version == 4 else web.ip6
    level, option = (
        (socket.IPPROTO_IP, socket.IP_TOS)
        if version == 4
        else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    )
    with (
        udp_listener(web.where, port, family_of(to)),
        udp_listener(web.where, plain, family_of(to)),
        flows() as live,
        client.where.socket(family_of(to), socket.SOCK_DGRAM) as sender,
    ):
        sender.sendto(b"x", (to, plain))
        sender.setsockopt(level, option, EXPEDITED << 2)
        for _ in range(3):
            sender.sendto(b"x", (to, port))
        done = live.stop()
    for pod, direction in ((client, "egress"), (web, "ingress")):
        about = {"netns": pod.where.inode, "direction": direction}
        assert set(told(done.records, "dscp", dst_port=port, **about)) == {EXPEDITED}
        assert sum(told(done.records, "packets", dst_port=plain, **about)) == 1
        assert told(done.records, "dscp", dst_port=plain, **about) == []


@contextmanager
def overlay(network):
    """A tunnel to other nodes, by which the node reaches their pods; its name."""
    name = f"{namespaces.PREFIX}vx"
    run("ip", "link", "del", name, check=False)  # a killed run's
    try:
        run(*f"ip link add {name} type vxlan id 77 dstport 8472 local 127.0.0.1".split())
    except CommandFailedError as error:
        pytest.skip(f"this kernel makes no vxlan device: {error}")
    try:
        run(*f"ip link set {name} up".split())
        run(*f"ip route add {network} dev {name}".split())
        yield name
    finally:
        run("ip", "link", "del", name)


def test_the_tunnel_to_another_node(cluster, flows):
    """By the node's routes; not of what stays on the node."""
    port, client, web = new_port(), cluster.client, cluster.web
    with (
        overlay("10.247.77.0/24") as name,
        udp_listener(web.where, port),
        flows() as live,
    ):
        send_udp(client.where, ("10.247.77.9", port), 7)
        send_udp(client.where, (web.ip4, port), 3)
        done = live.stop()
    away = {"dst_address": "10.247.77.9", "dst_port": port, "direction": "egress"}
    assert sum(told(done.records, "packets", **away)) == 7
    assert set(told(done.records, "tunnel.interface.name", **away)) == {name}
    assert set(told(done.records, "tunnel.type", **away)) == {"vxlan"}
    home = {"dst_address": web.ip4, "dst_port": port}
    assert sum(told(done.records, "packets", **home)) == 2 * 3
    assert told(done.records, "tunnel.type", **home) == []


def test_round_trip_times(cluster, flows):
    """Of the handshake at both pods, and smoothed where each of them sends."""
    port, client, web = new_port(), cluster.client, cluster.web
    with tcp_listener(web.where, port) as listener, flows("--interval", "1m") as live:
        source = converse(client.where, (web.ip4, port), listener)
        done = live.stop()
    for pod in (client, web):
        here = {"netns": pod.where.inode}
        both = [{"src_port": source}, {"dst_port": source}]
        handshakes = {told(done.records, "tcp.handshake_ns", **here, **way)[0] for way in both}
        assert len(handshakes) == 1, "the same of both directions"
        assert 0 < handshakes.pop() < 10**10
        assert len(told(done.records, "tcp.rtt_ns", direction="egress", **here)) == 1
        assert 0 < told(done.records, "tcp.rtt_ns", direction="egress", **here)[0] < 10**10
        assert told(done.records, "tcp.rtt_ns", direction="ingress", **here) == []


def test_round_trip_times_of_a_sum(cluster, flows):
    """Of three connections one record at each end, whose round trips are their mean."""
    port, client, web = new_port(), cluster.client, cluster.web
    options = ("--interval", "1m", "--aggregate", "dst.port")
    with tcp_listener(web.where, port) as listener, flows(*options) as live:
        for _ in range(3):
            converse(client.where, (web.ip4, port), listener)
        done = live.stop()
    about = {"dst.port": port, "verdict": "forwarded"}
    (sent,), (got,) = (
        [r for r in done.records if runner.matches(r, {**about, "direction": direction})]
        for direction in ("egress", "ingress")
    )
    assert min(sent["packets"], got["packets"]) > 3
    assert 0 < sent["tcp.rtt_ns"] < 10**10
    assert 0 < min(sent["tcp.handshake_ns"], got["tcp.handshake_ns"]) < 10**10
    assert "tcp.rtt_ns" not in got


def test_retransmits(cluster, flows):
    """As many as the kernel's own counter has grown by."""
    port, client, web = new_port(), cluster.client, cluster.web
    with flows() as live, connected(client, web, port) as (sender, _):
        before = mib(client.where, "TcpRetransSegs")
        with nft(namespaces.node(), "inet", "forward", f"tcp dport {port} counter drop"):
            sender.sendall(b"lost")
            until(lambda: mib(client.where, "TcpRetransSegs") >= before + 3, "retransmissions")
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            sender.close()
        grew = mib(client.where, "TcpRetransSegs") - before
        done = live.stop()
    about = {"netns": client.where.inode, "dst_port": port}
    assert sum(told(done.records, "tcp.retransmits", **about)) == grew
    assert sum(told(done.records, "tcp.retransmits", dst_port=port)) == grew, "of the sender only"


def test_resets(cluster, flows):
    """Seven connections to a port that is closed: seven answers with RST, seen at both pods."""
    port, client, web = new_port(), cluster.client, cluster.web
    with flows() as live:
        for _ in range(7):
            assert isinstance(open_tcp(client.where, (web.ip4, port)), ConnectionRefusedError)
        done = live.stop()
    for pod, direction in ((web, "egress"), (client, "ingress")):
        about = {"netns": pod.where.inode, "direction": direction}
        assert sum(told(done.records, "tcp.resets", src_port=port, **about)) == 7
    assert told(done.records, "tcp.resets", dst_port=port) == []


def test_zero_windows(cluster, flows):
    """A receiver that does not read: as many segments without a window as a rule counts."""
    port, client, web = new_port(), cluster.client, cluster.web
    rule = f"tcp sport {port} tcp window 0 tcp flags & (syn|rst) == 0 counter"
    with (
        nft(web.where, "inet", "output", rule),
        flows() as live,
        connected(client, web, port) as (sender, accepted),
    ):
        sender.settimeout(0)
        until(lambda: full(sender) and counted(web.where, "inet"), "a full window")
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        accepted.close()
        closed = counted(web.where, "inet")
        done = live.stop()
    about = {"netns": web.where.inode, "direction": "egress", "src_port": port}
    assert sum(told(done.records, "tcp.zero_windows", **about)) == closed > 0
    at_client = {"netns": client.where.inode, "src_port": port}
    assert sum(told(done.records, "tcp.zero_windows", **at_client)) == closed


def full(sender):
    """Whether a socket takes no more; sends until then."""
    try:
        return not sender.send(bytes(1 << 16))
    except BlockingIOError:
        return True


VIP, VIP_PORT = "10.96.77.9", 80
MARK, ZONE = 77, 5


@contextmanager
def service(web, port, protocol):
    """A virtual address on the node: DNAT to a pod, masqueraded, marked, in a zone of its own."""
    node, asked = namespaces.node(), ("-p", protocol, "-d", VIP, "--dport", str(VIP_PORT))
    zone = ("-j", "CT", "--zone", str(ZONE))
    answer = ("-p", protocol, "-s", web.ip4, "--sport", str(port))
    target = ("-j", "DNAT", "--to-destination", f"{web.ip4}:{port}")
    masked = ("-p", protocol, "-d", web.ip4, "--dport", str(port), "-j", "MASQUERADE")
    with ExitStack() as rules:
        for rule in (
            ("PREROUTING", "-t", "raw", *asked, *zone),
            ("PREROUTING", "-t", "raw", *answer, *zone),
            ("PREROUTING", "-t", "mangle", *asked, "-j", "CONNMARK", "--set-mark", str(MARK)),
            ("PREROUTING", "-t", "nat", *asked, *target),
            ("POSTROUTING", "-t", "nat", *masked),
        ):
            rules.enter_context(iptables(node, "iptables-nft", *rule))
        yield


def both_sides(client, web, port, source):
    """What every record of one connection through the `service` tells."""
    return {
        "k8s.client.namespace": "shop", "k8s.client.pod.name": "client-0",
        "k8s.backend.namespace": "shop", "k8s.backend.pod.name": "web-0",
        "client.address": client.ip4, "client.port": source,
        "service.address": VIP, "service.port": VIP_PORT,
        "nat.src.address": lambda address: address not in (None, client.ip4, web.ip4),
        "nat.dst.address": web.ip4, "nat.dst.port": port,
        "conntrack.zone": ZONE, "conntrack.mark": MARK,
    }  # fmt: skip


def assert_has(record, wanted):
    """All fields of `wanted`; says which are wrong."""
    wrong = {
        name: record.get(name)
        for name in wanted
        if not runner.matches(record, {name: wanted[name]})
    }
    assert not wrong, f"{wrong} in {record}"


def test_both_sides_of_nat(cluster, flows):
    """A connection to a Service: client, address asked, translated source and backend, 4 times."""
    port, client, web = new_port(), cluster.client, cluster.web
    with (
        service(web, port, "tcp"),
        tcp_listener(web.where, port) as listener,
        flows("--interval", "1m") as live,
    ):
        source = converse(client.where, (VIP, VIP_PORT), listener)
        done = live.stop()
    ours = [r for r in done.records if r.get("client.port") == source]
    assert len(ours) == 4, ours
    assert len({r["flow.id"] for r in ours}) == 1
    for record in ours:
        assert_has(record, both_sides(client, web, port, source))
        assert record["conntrack.state"] == "established"
        assert record["conntrack.tcp.state"] in {"CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "FIN_WAIT"}
    sides = {(r["k8s.pod.name"], r["direction"]): r["conntrack.direction"] for r in ours}
    assert sides == {
        ("client-0", "egress"): "original",
        ("web-0", "ingress"): "original",
        ("web-0", "egress"): "reply",
        ("client-0", "ingress"): "reply",
    }
    by_side = {(r["k8s.pod.name"], r["direction"]): r for r in ours}
    assert by_side["client-0", "egress"]["packets"] == by_side["web-0", "ingress"]["packets"]


@pytest.mark.parametrize("selected", ["", "web-0"])
def test_both_directions_in_one_record(cluster, flows, selected):
    """301 datagrams to a Service, 77 answered: told once, at the client's end if that counts."""
    port, client, web = new_port(), cluster.client, cluster.web
    options = ("--bidirectional", *(("--pod", selected) if selected else ()))
    with (
        service(web, port, "udp"),
        udp_listener(web.where, port) as server,
        client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        flows(*options) as live,
    ):
        sender.bind((client.ip4, new_port()))
        for number in range(301):
            sender.sendto(b"question", (VIP, VIP_PORT))
            _, asker = server.recvfrom(100)
            if number < 77:
                server.sendto(b"answer", asker)
                assert sender.recvfrom(100) == (b"answer", (VIP, VIP_PORT))
        source = sender.getsockname()[1]
        done = live.stop()
    ends = {"dst.port": port} if selected else {"src.port": source, "dst.port": VIP_PORT}
    at_end = {"verdict": "forwarded", "transport": "udp"}
    found = [r for r in done.records if runner.matches(r, {**at_end, **ends})]
    sums = {
        name: sum(r[name] for r in found)
        for name in ("packets", "bytes", "flow.reverse.packets", "flow.reverse.bytes")
    }
    assert list(sums.values()) == [301, 301 * 36, 77, 77 * 34]
    where, direction = (web, "ingress") if selected else (client, "egress")
    for record in found:
        assert (record["netns"], record["direction"]) == (where.where.inode, direction)
        assert ("flow.both_here" in record) == (not selected)
    tracked = [r for r in found if "conntrack.zone" in r]
    for record in tracked:
        assert_has(record, both_sides(client, web, port, source))
    assert sum(r["packets"] + r["flow.reverse.packets"] for r in tracked) >= 377
    ours = {port, source, *(r["nat.src.port"] for r in tracked)}
    told = [r for r in done.records if ours & {r.get("src.port"), r.get("dst.port")}]
    assert told == found, "no end tells it again"


def test_datagrams_that_nobody_answers(cluster, flows):
    """The sender's record knows the backend too, though its packets had not been there yet."""
    port, client, web = new_port(), cluster.client, cluster.web
    with (
        service(web, port, "udp"),
        udp_listener(web.where, port),
        flows("--interval", "1m") as live,
    ):
        source = send_udp(client.where, (VIP, VIP_PORT), 7)
        done = live.stop()
    ours = [r for r in done.records if r.get("client.port") == source]
    assert {(r["k8s.pod.name"], r["direction"]) for r in ours} == {
        ("client-0", "egress"),
        ("web-0", "ingress"),
    }
    for record in ours:
        assert_has(record, both_sides(client, web, port, source))
        assert (record["packets"], record["conntrack.state"]) == (7, "new")


def test_every_record_of_a_long_connection(cluster, flows):
    """Its entry is told once an interval, wherever in that the next one begins."""
    port, client, web = new_port(), cluster.client, cluster.web
    with service(web, port, "udp"), udp_listener(web.where, port), flows() as live:
        with client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((VIP, VIP_PORT))
            source = sender.getsockname()[1]
            for _ in range(1501):
                sender.send(b"x")
                time.sleep(0.001)
        done = live.stop()
    at_end = {"verdict": "forwarded", "netns": client.where.inode, "src.port": source}
    ours = [r for r in done.records if runner.matches(r, at_end)]
    assert sum(r["packets"] for r in ours) == 1501
    assert len(ours) > 3
    for record in ours:
        assert_has(record, both_sides(client, web, port, source))


def test_what_dies_has_the_number_of_its_flow(cluster, flows):
    """On the node before it came to a pod, amid a connection, and in the pod: one number each."""
    port, closed, client, web = new_port(), new_port(), cluster.client, cluster.web
    died = {"verdict": "dropped"}
    with (
        service(web, port, "udp"),
        udp_listener(web.where, port) as server,
        client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        flows("--interval", "10m") as live,
    ):
        sender.bind((client.ip4, new_port()))
        source = sender.getsockname()[1]
        for _ in range(5):
            sender.sendto(b"question", (VIP, VIP_PORT))
            server.recv(100)
        with nft(namespaces.node(), "ip", "forward", f"ip daddr {web.ip4} udp dport {port} drop"):
            sender.sendto(b"question", (VIP, VIP_PORT))
            never = send_udp(client.where, (VIP, VIP_PORT), 3)
        refused = send_udp(client.where, (web.ip4, closed), 7)
        done = live.stop()
    for wanted, ends, packets in (
        ({"client.port": source}, both_sides(client, web, port, source), 1),
        ({"client.port": never}, {"client.address": client.ip4, "nat.dst.address": web.ip4}, 3),
        ({"src.port": refused, "dst.port": closed, "transport": "udp"}, {}, 7),
    ):
        ours = [r for r in done.records if runner.matches(r, wanted)]
        dead = [r for r in ours if runner.matches(r, died)]
        assert sum(r["packets"] for r in dead) == packets, ours
        assert len(ours) > len(dead)
        assert len({r.get("flow.id") for r in ours}) == 1, ours
        for record in ours:
            assert record["conntrack.state"] == "new"
        for record in dead:
            assert_has(record, {**ends, "conntrack.direction": "original"})


@pytest.mark.parametrize(("senders", "options"), [(1, ()), (3, ("--aggregate", "dst.port"))])
def test_time_across_the_node(cluster, flows, senders, options):
    """Some of 21 datagrams are timed: count, sum, maximum and histogram agree, in a sum too."""
    port, client, web = new_port(), cluster.client, cluster.web
    with (
        udp_listener(web.where, port),
        flows("--interval", "1m", *options) as live,
        ExitStack() as stack,
    ):
        sockets = [
            stack.enter_context(client.where.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(senders)
        ]
        for number in range(21):
            sockets[number % senders].sendto(b"x", (web.ip4, port))
            time.sleep(0.02)
        done = live.stop()
    about = {"dst.port": port, "direction": "ingress", "verdict": "forwarded"}
    (timed,) = (r for r in done.records if runner.matches(r, about))
    assert timed["packets"] == 21
    assert 0 < timed["transit.count"] <= 21
    buckets = [map(int, one.split(":")) for one in timed["transit.histogram"].split(",")]
    buckets = dict(map(tuple, buckets))
    assert sum(buckets.values()) == timed["transit.count"]
    assert max(buckets) <= timed["transit.max_ns"] < 2 * max(buckets)
    assert timed["transit.max_ns"] <= timed["transit.sum_ns"] < 10**9 * 21
    least = sum(bucket * count for bucket, count in buckets.items())
    assert least <= timed["transit.sum_ns"] < 2 * least
    assert told(done.records, "transit.count", direction="egress") == []
