"""`trace`: which packets are chosen, how they are shown, and what is left afterwards."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import contextmanager

import pytest
from lab import captures, rules, runner, ways
from lab.leftovers import netfilter_links
from lab.namespaces import node
from lab.shell import run, until
from lab.traffic import new_port, send_numbered, tcp_listener, udp_listener

from tracer.sinks.rotation import backups

COUNT = 7
COLUMNS = 120
SO_RCVBUFFORCE = 33


@pytest.fixture(scope="module", autouse=True)
def _made(cluster, routed):
    """The cluster first: it sweeps away what a killed run left, and `routed` looks the same."""


@contextmanager
def tracing(cri_env, *arguments):
    """`tracer trace`, run to its end by Ctrl-C; must end well."""
    with runner.running("trace", *arguments, env=cri_env) as live:
        yield live
        done = live.stop()
        assert done.code == 0, done.err
        assert "Traceback" not in done.err


def packets(live):
    """The packet records of a run that has ended."""
    return [record for record in live.records() if record["type"] == "packet"]


def deliver(routed, port, count):
    """`count` numbered datagrams from left to right, received."""
    with udp_listener(routed.right.where, port) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        send_numbered(routed.left.where, (routed.right.ip4, port), count)
        for _ in range(count):
            listener.recv(100)


def transfer(routed, port):
    """One short TCP connection from left to right."""
    with tcp_listener(routed.right.where, port) as listener:
        client = routed.left.where.socket(socket.AF_INET, socket.SOCK_STREAM)
        with client:
            client.connect((routed.right.ip4, port))
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"x")
                accepted.recv(1)


def full_way():
    """Every datagram's way from left to right."""
    through = ways.forwarded("trt-router", ("to-left", "to-right"))
    return ways.sent("trt-left") + through + ways.received("trt-right")


def test_filter(routed, cri_env):
    wanted, other = new_port(), new_port()
    with tracing(cri_env, f"udp port {wanted}", "-o", "json") as live:
        deliver(routed, other, COUNT)
        deliver(routed, wanted, COUNT)
    assert [record["dst.port"] for record in packets(live)] == [wanted] * COUNT


def test_tcp_flags(routed, cri_env):
    port = new_port()
    with tracing(cri_env, f"tcp port {port}", "--tcp-flags", "SYN", "-o", "json") as live:
        transfer(routed, port)
    assert [record["tcp.flags"] for record in packets(live)] == ["SYN", "SYN,ACK"]


def test_sample_is_the_same_at_every_hop(routed, cri_env):
    """A packet is followed from its first hop to its last, or not at all."""
    port, count = new_port(), 1001
    with tracing(cri_env, f"udp port {port}", "--sample", "1/10", "-o", "json") as live:
        deliver(routed, port, count)
    found = packets(live)
    assert count / 20 < len(found) < count / 5
    for record in found:
        ways.check(record, full_way(), "delivered")


def test_count_ends_the_run(routed, cri_env):
    port = new_port()
    with runner.running(
        "trace", f"udp port {port}", "--count", "3", "-o", "json", env=cri_env
    ) as live:
        deliver(routed, port, COUNT)
        done = live.ended()
    assert done.code == 0, done.err
    assert len(packets(live)) == 3
    assert done.records[-1]["shown"] == 3


def test_slow(routed, cri_env):
    """A queue that lets each packet wait makes slow ones; others are not shown.

    The machine may stop for a while at any hop: each record has to keep the promise, and the queue
    has to be where nearly all of the time went. A kernel that does not run the programs of
    tracepoints in every interrupt leaves out hops behind the queue: then the packet says so.
    """
    slow, fast = new_port(), new_port()
    arguments = (f"udp port {slow} or udp port {fast}", "--slow", "200ms", "-o", "json")
    with tracing(cri_env, *arguments) as live:
        deliver(routed, fast, COUNT)
        routed.router.ip("link set to-right txqueuelen 1000")
        try:
            limit = "rate 100kbit burst 1540 latency 5s"
            routed.router.run(
                "tc", "qdisc", "add", "dev", "to-right", "root", "tbf", *limit.split()
            )
            deliver(routed, slow, 101)
        finally:
            routed.router.run("tc", "qdisc", "del", "dev", "to-right", "root", check=False)
    found = packets(live)
    waited_ns = sum(queued_ns(record) for record in found)
    assert 3 < len([record for record in found if record["dst.port"] == slow]) < 101
    assert live.records()[-1]["packets"] == COUNT + 101
    for record in found:
        assert record["duration_ns"] > 200_000_000
    whole = [record for record in found if "incomplete" not in record]
    for record in whole:
        assert [hop for hop in ways.told(record) if "qdisc" not in hop] == full_way(), record
    assert len(whole) > 0.9 * len(found)
    assert waited_ns > 0.8 * sum(record["duration_ns"] for record in found)


def queued_ns(record):
    """How long a packet waited in the queue of the router's `to-right`, until its driver had it.

    Of packets that leave the queue together only the first tells so.
    """
    hooks = ("qdisc_dequeue", "net_dev_start_xmit")
    left = [hop for hop in record["hops"] if hop["interface.name"] == "to-right"]
    return sum(hop["delta_ns"] for hop in left if hop["hook"] in hooks)


def test_dropped_keeps_only_the_dead(cluster, cri_env):
    """...with the way they came."""
    client, dead, alive = cluster.client, new_port(), new_port()
    with tracing(
        cri_env, f"udp port {dead} or udp port {alive}", "--dropped", "-o", "json"
    ) as live:
        with rules.nft(node(), "ip", "forward", f"udp dport {dead} drop"):
            send_numbered(client.where, (cluster.outside_ip4, dead), COUNT)
        with udp_listener(cluster.web.where, alive):
            send_numbered(client.where, (cluster.web.ip4, alive), COUNT)
    found = packets(live)
    assert len(found) == COUNT
    for record in found:
        assert (record["dst.port"], record["verdict"]) == (dead, "dropped")
        assert ways.told(record)[:4] == ways.sent("client-0")
        assert record["hops"][-1]["hook"] == "kfree_skb"


def test_first(routed, cri_env):
    ports = [new_port() for _ in range(3)]
    flows = " or ".join(f"udp port {port}" for port in ports)
    with tracing(cri_env, flows, "--first", "3", "-o", "json") as live:
        for port in ports:
            deliver(routed, port, COUNT)
    assert [record["dst.port"] for record in packets(live)] == [p for p in ports for _ in range(3)]


def test_selected_pod_and_what_answers_it(cluster, cri_env):
    """`--pod` follows answers too, from where the other pod sends them to the pod's socket."""
    client, web, port = cluster.client, cluster.web, new_port()
    with (
        tracing(cri_env, f"udp port {port}", "--pod", "shop/client-0", "-o", "json") as live,
        udp_listener(web.where, port) as listener,
        client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(COUNT):
            sender.sendto(b"ask", (web.ip4, port))
            _, came_from = listener.recvfrom(100)
            listener.sendto(b"answer", came_from)
            sender.recv(100)
        send_numbered(cluster.agent.where, (web.ip4, port), COUNT)
    found = packets(live)
    there = [record for record in found if record["dst.port"] == port]
    back = [record for record in found if record["src.port"] == port]
    assert (len(there), len(back), len(found)) == (COUNT, COUNT, 2 * COUNT)
    for record in back:
        assert ways.told(record)[-4:] == ways.received("client-0")
        assert "web-0 eth0 net_dev_queue" in ways.told(record)
        assert record["verdict"] == "delivered"
    for record in there:
        assert ways.told(record)[:4] == ways.sent("client-0")
        assert "web-0 eth0 netif_receive_skb" in ways.told(record)
        assert record["verdict"] == "delivered"


@pytest.mark.parametrize("form", ["tree"])
def test_text_fits_a_terminal(cluster, cri_env, form):
    port, closed = new_port(), new_port()
    with (
        tracing(cri_env, f"udp port {port} or udp port {closed}", "-o", form) as live,
        udp_listener(cluster.web.where, port),
    ):
        for each in (port, closed):
            send_numbered(cluster.client.where, (cluster.web.ip4, each), COUNT)
    text = "".join(live.lines)
    assert "\x1b" not in text
    assert all(len(line.rstrip("\n")) <= COLUMNS for line in live.lines), text
    for each in (port, closed):
        assert text.count(f":{each} UDP") >= COUNT, text
    assert text.count("NO_SOCKET") >= COUNT
    if form == "tree":
        assert text.count(" pod shop/web-0\n") >= 2 * COUNT, text
        assert all(hook in text for hook in ("PREROUTING", "FORWARD", "INPUT"))


def test_hubble(cluster, cri_env):
    port = new_port()
    with tracing(cri_env, f"udp port {port}", "-o", "hubble") as live:
        send_numbered(cluster.client.where, (cluster.web.ip4, port), COUNT)
    flows = [json.loads(line)["flow"] for line in live.lines]
    assert len(flows) == COUNT
    for flow in flows:
        assert flow["verdict"] == "DROPPED"
        assert flow["l4"]["UDP"]["destination_port"] == port
        assert flow["source"]["pod_name"] == "client-0"
        assert flow["destination"]["pod_name"] == "web-0"


@pytest.mark.parametrize("asked", [(), ("--file-max-size", "4k", "--file-compress", "gzip")])
def test_capture_is_read_by_tshark(routed, cri_env, tmp_path, asked):
    """Every hop of every packet is in the file or files, and nothing is strange to Wireshark."""
    port, path = new_port(), tmp_path / "way.pcapng"
    with tracing(cri_env, f"udp port {port}", "-o", "json", "--write", str(path), *asked) as live:
        deliver(routed, port, COUNT)
    fields = ("frame.packet_id", "frame.interface_name", "frame.comment", "udp.dstport")
    files = [*backups(path), path]
    found = [row for file in files for row in captures.rows(file, *fields)]
    assert {row[3] for row in found} == {str(port)}
    assert {row[1] for row in found} == {"eth0", "to-left", "to-right"}
    assert len({row[0] for row in found}) == COUNT
    assert len(found) >= sum(len(ways.told(record)) for record in packets(live))
    assert any("nf ip FORWARD" in row[2] for row in found)
    assert (len(files) > 3) == bool(asked)
    assert {file.suffix for file in files} == ({".pcapng", ".gz"} if asked else {".pcapng"})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("udp and and",), "udp and and"),
        (("--pod", "shop/nobody"), "shop/nobody"),
        (("--tcp-flags", "SYN,WHAT"), "WHAT"),
        (("--sample", "2/3"), "2/3"),
        (("--sample", "1/0"), "1/0"),
        (("--first", "0"), "0"),
        (("--slow", "soon"), "soon"),
        (("--count", "0"), "0"),
        (("--snaplen", "9000"), "9000"),
        (("-o", "xml"), "xml"),
        (("--write", "/no/such/directory/x.pcapng"), "/no/such/directory"),
        (("--file-max-size", "1M"), "--file-"),
        (("--write", "x.pcapng", "--file-max-backups", "3"), "--file-max-backups"),
        (("--record", "/no/such/directory/x"), "/no/such/directory"),
    ],
)
@pytest.mark.usefixtures("nothing_left")
def test_wrong_use(cluster, cri_env, arguments, word):  # noqa: ARG001 - pods are looked up
    done = runner.finish("trace", *arguments, env=cri_env)
    assert done.code == 2, done.err
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], done.err
    assert word in lines[0]
    assert done.out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left(routed, cri_env, number):
    """No program, map or link, and so no netfilter hook in any namespace."""
    with runner.running("trace", "-o", "json", f"udp port {new_port()}", env=cri_env) as live:
        assert netfilter_links()
        deliver(routed, new_port(), COUNT)
        done = live.stop(number)
    assert done.code == (-number if number == signal.SIGKILL else 0), done.err
    assert "Traceback" not in done.err


def test_a_deleted_pod_really_goes(cluster, cri_env):
    """Links would keep a namespace alive; its device on the node goes only with it."""
    pod = cluster.run_pod("shop/short-0", app="short")
    device, port, other = pod.node_device, new_port(), new_port()
    here = f"udp port {port} or udp port {other}"
    with tracing(cri_env, here, "-o", "json") as live, udp_listener(cluster.web.where, port):
        send_numbered(pod.where, (cluster.web.ip4, port), COUNT)
        cluster.remove_pod(pod.key)
        until(lambda: device not in run("ip", "-o", "link"), f"{device} goes", 8)
        with udp_listener(cluster.web.where, other):
            send_numbered(cluster.client.where, (cluster.web.ip4, other), COUNT)
    found = packets(live)
    assert [record["dst.port"] for record in found] == [port] * COUNT + [other] * COUNT
    assert {record["k8s.src.pod.name"] for record in found} == {"short-0", "client-0"}
