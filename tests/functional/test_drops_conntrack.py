"""Packets that conntrack itself drops, or calls invalid: `tracer drops` says that and why."""

from __future__ import annotations

import socket

import pytest
from lab import invalid, wire
from lab.expect import NETFILTER, at, place, say, tcp, udp
from lab.queue import queue
from lab.rules import iptables, nft
from lab.tracking import node_sysctls, send_flows, tracking
from lab.traffic import new_port, udp_listener

pytestmark = pytest.mark.usefixtures("cluster")
"""First of all: it sweeps away the namespaces of a former run, `routed` among them."""

COUNT = 7
ENTRIES = 5


@pytest.fixture
def router(drops, routed):  # noqa: ARG001 - `drops` knows the namespaces of `routed`
    with tracking(routed.router):
        yield routed.router


def hook(name):
    return {"netfilter.hook": name, "netfilter.mechanism": "hook", "netfilter.family": "ip"}


def test_table_full(routed, router, watch):
    """Five entries fill the table; seven more packets find no room."""
    port, left, right = new_port(), routed.left, routed.right
    with udp_listener(right.where, port), node_sysctls(max=ENTRIES):
        send_flows(left.where, (right.ip4, port), ENTRIES + COUNT)
        found = watch.expect(COUNT, udp(left.ip4, right.ip4, port))
    wanted = NETFILTER | at("nf_hook_slow") | hook("PREROUTING") | place(router)
    say(found, wanted, "conntrack table", "is full", "tracer conntrack --top")
    assert all(f"nf_conntrack_max is {ENTRIES}" in record["explanation"] for record in found)


def test_insert_failed(routed, router, watch):
    """Two SYNs wait in a queue, each with an entry of its own: the second cannot be entered."""
    port, left, right = new_port(), routed.left, routed.right
    rule = ("FORWARD", "-p", "tcp", "--dport", str(port), "-j", "NFQUEUE", "--queue-num", "78")
    syn = wire.tcp(left.ip4, right.ip4, (port, port), flags=wire.SYN)
    with (
        iptables(router, "iptables-legacy", *rule),
        queue(router, 78) as held,
        nft(right.where, "inet", "prerouting", f"tcp dport {port} drop"),
    ):
        wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_TCP, syn), 2)
        held.hold(2)
        held.release()
        about = tcp(left.ip4, right.ip4, port) | place(router)
        found = watch.expect(1, about)
    say(found, NETFILTER | hook("POSTROUTING"), "insert failed", "insert_failed")
    assert found[0]["conntrack.state"] == "new"


@pytest.mark.parametrize(
    ("provoke", "why"),
    [
        (invalid.no_entry, "no connection that it resets"),
        (invalid.no_request, "has not seen the syn"),
        (invalid.out_of_window, "outside of its window"),
        (invalid.no_syn, "without a syn"),
        (invalid.bad_flags, "flags contradict"),
        (invalid.bad_checksum, "checksum is wrong"),
        (invalid.bad_tcp_checksum, "checksum is wrong"),
    ],
)
def test_invalid(routed, router, watch, provoke, why):
    """The kernel does not say why: it is inferred from packet and settings, and told as such."""
    port, left, right = new_port(), routed.left, routed.right
    rule = f"th dport {port} ct state invalid drop"
    with nft(router, "ip", "forward", rule, priority=1), provoke(routed, port) as transport:
        about = {"udp": udp, "tcp": tcp}[transport](left.ip4, right.ip4, port)
        found = watch.expect(COUNT, about | place(router))
    say(found, NETFILTER | place(router), "ct state invalid", "perhaps", why)


def test_a_rule_is_not_taken_for_conntrack(routed, router, watch):
    """iptables-legacy drops in the same hook and in the same way, but the table is not full."""
    port, left, right = new_port(), routed.left, routed.right
    rule = ("PREROUTING", "-t", "raw", "-p", "udp", "--dport", str(port), "-j", "DROP")
    with iptables(router, "iptables-legacy", *rule):
        send_flows(left.where, (right.ip4, port), COUNT)
        found = watch.expect(COUNT, udp(left.ip4, right.ip4, port))
    say(found, NETFILTER | hook("PREROUTING") | place(router))
    assert not any("is full" in record["explanation"] for record in found)
