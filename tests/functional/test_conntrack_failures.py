"""What conntrack fails at, provoked for real; and what `tracer conntrack` itself may lose."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import invalid, namespaces, wire
from lab.causes import icmp_checksum
from lab.queue import queue
from lab.rules import iptables, nft
from lab.shell import until
from lab.tracking import failures, following, node_sysctls, send_flows, tracking
from lab.traffic import new_port, udp_listener

pytestmark = pytest.mark.usefixtures("cluster")
"""First of all: it sweeps away the namespaces of a former run, `routed` among them."""

COUNT = 7
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "conntrack.py"


@pytest.fixture
def router(routed):
    """The router, which tracks IPv4; without entries."""
    with tracking(routed.router):
        yield routed.router


def count_of(records, event):
    return sum(r.get("event") == event and r["transport"] == "udp" for r in records)


def test_table_full(routed, router):
    """Each packet makes an entry, or finds no room and is counted."""
    port, sent = new_port(), 41
    with udp_listener(routed.right.where, port), following(router) as live:
        with node_sysctls(max=10):
            send_flows(routed.left.where, (routed.right.ip4, port), sent)
        done = live.stop()
    told = failures(done.records)
    assert count_of(done.records, "new") + told["table-full"] == sent
    assert told["table-full"] >= COUNT
    (full,) = [r for r in done.records if r.get("failure") == "table-full"]
    assert full["netns"] == router.inode
    assert full["conntrack.entries"] >= 10
    assert done.code == 0


def test_early_drop(routed, router):
    """A full table with a small hash: who is not assured makes room, and that is told of each."""
    port, sent = new_port(), 301
    with udp_listener(routed.right.where, port), following(router) as live:
        with node_sysctls(buckets=512, max=20):
            send_flows(routed.left.where, (routed.right.ip4, port), sent)
        done = live.stop()
    told = failures(done.records)
    ended = [r for r in done.records if r.get("event") == "destroy"]
    assert {(r["conntrack.destroy.reason"], r["inferred"]) for r in ended} == {("early-drop", True)}
    assert told["early-drop"] == len(ended) > 0
    assert count_of(done.records, "new") + told.get("table-full", 0) == sent


def test_chain_too_long(routed, router):
    """With the smallest hash there is: an entry for which a slot is too full is not made.

    Thousands of events still wait when tracer is stopped: each is told.
    """
    port, sent, left = new_port(), 12_001, routed.left.where
    with (
        nft(routed.right.where, "inet", "prerouting", f"udp sport {port} drop"),
        following(router) as live,
    ):
        with (
            node_sysctls(buckets=512, max=1 << 18),
            left.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            sender.bind(("", port))
            for number in range(sent):
                sender.sendto(b"x", (routed.right.ip4, 1024 + number))
                if not number % 200:
                    time.sleep(0.001)  # where the kernel's own thread receives them, it may
        done = live.stop()
    told = failures(done.records)
    assert told.keys() == {"chain-too-long"}, told
    assert count_of(done.records, "new") + told["chain-too-long"] == sent
    texts = [r["explanation"] for r in done.records if r["type"] == "failure"]
    assert all("share one slot of the hash" in text for text in texts)
    assert done.code == 0


CAUSES = (
    invalid.no_entry,
    invalid.no_request,
    invalid.out_of_window,
    invalid.no_syn,
    invalid.bad_flags,
    invalid.bad_checksum,
    invalid.bad_tcp_checksum,
)


@pytest.mark.parametrize("provoke", CAUSES)
def test_invalid(routed, router, provoke):
    with following(router) as live, provoke(routed, new_port()):
        done = live.stop()
    assert failures(done.records) == {"invalid": COUNT}


def test_broken_icmp(routed, router):
    """Conntrack looks into ICMP first: what is broken there is counted as an error."""
    with following(router) as live:
        icmp_checksum(routed, ExitStack())
        done = live.stop()
    assert failures(done.records) == {"error": 3}


def test_two_first_packets_of_one_udp_flow(routed, router):
    """Both wait in a queue, before either has made its entry: the second clashes, none is lost."""
    port, left, right = new_port(), routed.left, routed.right
    rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "NFQUEUE", "--queue-num", "77")
    with (
        iptables(router, "iptables-legacy", *rule),
        udp_listener(right.where, port) as listener,
        queue(router, 77) as held,
        following(router) as live,
    ):
        with left.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(2):
                sender.sendto(b"x", (right.ip4, port))
            held.hold(2)
            held.release()
            for _ in range(2):
                listener.recv(10)
        done = live.stop()
    assert failures(done.records) == {"clash-resolved": 1}
    assert count_of(done.records, "new") == 1


def test_two_first_packets_of_one_tcp_connection(routed, router):
    """TCP lets no clash pass: the second SYN is dropped where its entry was to be made."""
    port, left, right = new_port(), routed.left, routed.right
    rule = ("FORWARD", "-p", "tcp", "--dport", str(port), "-j", "NFQUEUE", "--queue-num", "77")
    syn = wire.tcp(left.ip4, right.ip4, (port, port), flags=wire.SYN)
    with (
        iptables(router, "iptables-legacy", *rule),
        # A reset would end the first entry before the second is made.
        nft(right.where, "inet", "prerouting", f"tcp dport {port} drop"),
        queue(router, 77) as held,
        following(router) as live,
    ):
        wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_TCP, syn), 2)
        held.hold(2)
        held.release()
        until(lambda: failures(live.records()), "the failure is told")
        done = live.stop()
    assert failures(done.records) == {"insert-failed": 1}


def test_overrun_is_counted_and_made_up_for(routed, router):
    """While tracer stands still its small buffer overflows: afterwards all entries are known."""
    port, sent = new_port(), 1001
    with (
        udp_listener(routed.right.where, port),
        following(router, "--buffer", "4096") as live,
    ):
        live.process.send_signal(signal.SIGSTOP)
        send_flows(routed.left.where, (routed.right.ip4, port), sent)
        live.process.send_signal(signal.SIGCONT)
        until(lambda: any(r["type"] == "resync" for r in live.records()), "the table is read again")
        alive = [r for r in live.records() if r["type"] == "resync"][-1]
        live.process.send_signal(signal.SIGSTOP)
        router.run("conntrack", "-F")
        live.process.send_signal(signal.SIGCONT)
        until(lambda: len([r for r in live.records() if r["type"] == "resync"]) > 1, "again")
        done = live.stop()
    assert done.code == 1
    end = done.records[-1]
    told = {event: count_of(done.records, event) for event in ("new", "found", "destroy")}
    assert alive["entries"] == sent
    assert told["new"] + told["found"] == sent
    assert told["found"] == end["lost"]["births"]
    assert told["destroy"] + end["lost"]["deaths"] == sent
    # A lost message was a birth or a death: these flows have no other events.
    assert end["lost"]["births"] + end["lost"]["deaths"] == end["lost"]["conntrack events"]
    shown = [r for r in done.records if r["type"] == "lost"]
    assert sum(r["count"] for r in shown) == end["lost"]["conntrack events"]
    flows = {r["src.port"] for r in done.records if r.get("event") in ("new", "found")}
    assert len(flows) == sent
    assert end["alive"] == 0


def test_every_birth_and_death_of_short_connections():
    """The benchmark's own check, for five seconds: told once, or counted as lost."""
    argv = [sys.executable, str(BENCHMARK), "5", "1000"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("provoke", "meaning"),
    [
        (invalid.no_entry, "belongs to no connection"),
        (invalid.no_request, "belongs to no connection"),
        (invalid.out_of_window, "beyond the window"),
        (invalid.bad_flags, "flags contradict"),
        (invalid.bad_checksum, "checksum"),
        (invalid.bad_tcp_checksum, "checksum"),
    ],
)
def test_why_packets_are_invalid_where_the_kernel_is_told_to_say_it(
    routed, router, provoke, meaning
):
    """With nf_conntrack_log_invalid its own words are shown; tracer never sets it."""
    node, port = namespaces.node(), new_port()
    before = node.sysctl("netfilter/nf_log_all_netns", 1)
    router.sysctl("netfilter/nf_conntrack_log_invalid", 255)
    try:
        with following(router, "port", str(port)) as live:
            for each in (port + 1, port):  # the first is not chosen
                with provoke(routed, each):
                    pass
            told = lambda: [r for r in live.records() if r["type"] == "invalid"]  # noqa: E731
            until(lambda: len(told()) >= COUNT, "the kernel's log")
            done = live.stop()
    finally:
        router.sysctl("netfilter/nf_conntrack_log_invalid", 0)
        node.sysctl("netfilter/nf_log_all_netns", before)
    found = [record for record in done.records if record["type"] == "invalid"]
    assert len(found) == COUNT
    for record in found:
        assert record["src.address"] == routed.left.ip4
        assert record["dst.port"] == port
        assert record["why"]
        assert meaning in record["explanation"], record
    assert router.sysctl("netfilter/nf_conntrack_log_invalid") == "0"
