"""`--rules=read`: counters before and after a drop bear out what was inferred, or refute it."""

from __future__ import annotations

import re
import signal
import time

import pytest
from lab import runner, topology
from lab.expect import NETFILTER, say, udp
from lab.rules import iptables, nft
from lab.traffic import new_port, send_udp

COUNT = 5
APART_S = 0.3
"""Longer than what a reading has to be older than a drop (counters.APART_NS)."""


@pytest.fixture(scope="module")
def named(routed):  # noqa: ARG001 - all is there before it looks
    with runner.whole("drops", "-o", "json") as live:
        yield live


@pytest.fixture
def watch(named):
    return runner.watch(named)


def send(hosts, port, count=COUNT):
    """Datagrams from the left host to the right one, and what their drops are about."""
    send_udp(hosts.left.where, (hosts.right.ip4, port), count)
    return udp(hosts.left.ip4, hosts.right.ip4, port)


def moved(record):
    """By how much the counter moved, as the record says."""
    return int(re.fullmatch(r"counter moved by (\d+)", record["netfilter.evidence"])[1])


def bear_out(watch, hosts, port):
    """The second burst: of the first, the rules may not have been read long enough before."""
    watch.expect(COUNT, send(hosts, port), timeout_s=10)
    time.sleep(APART_S)
    found = watch.expect(2 * COUNT, send(hosts, port), timeout_s=10)
    late = sorted(found, key=lambda record: record["time"])[COUNT:]
    assert all(1 <= moved(record) <= 2 * COUNT for record in late), late
    say(found, NETFILTER | {"netfilter.rule": bool, "netfilter.rule_source": "inferred"})
    say(late, NETFILTER, "its counter moved by")


def test_nft(routed, watch):
    port = new_port()
    with nft(routed.router, "inet", "forward", f"udp dport {port} counter drop"):
        bear_out(watch, routed, port)


def test_iptables_nft(routed, watch):
    port = new_port()
    rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "REJECT")
    with iptables(routed.router, "iptables-nft", *rule):
        bear_out(watch, routed, port)


def test_iptables_legacy():
    """Its rules are read once a second: drops wait for the next time."""
    with topology.routed("-legacy") as own:
        port = new_port()
        rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "DROP")
        with (
            iptables(own.router, "iptables-legacy", *rule),
            runner.whole("drops", "-o", "json", f"udp port {port}") as live,
        ):
            bear_out(runner.watch(live), own, port)


def test_a_rule_without_a_counter_is_inferred_all_the_same(routed, watch):
    port = new_port()
    with nft(routed.router, "inet", "forward", f"udp dport {port} drop"):
        found = watch.expect(COUNT, send(routed, port))
    say(found, NETFILTER | {"netfilter.rule_source": "inferred", "netfilter.evidence": None})
    assert all("netfilter.rule" in record for record in found)


def test_counters_tell_which_of_two_rules_it_was(routed, watch):
    """What a limit decides nobody can repeat; but only the second rule has counted."""
    port = new_port()
    rules = (
        f"udp dport {port} limit rate over 1/hour burst {COUNT} packets counter drop;"
        f" udp dport {port} counter drop"
    )
    with nft(routed.router, "inet", "forward", rules):
        found = watch.expect(COUNT, send(routed, port))
    text = re.compile(rf"udp dport {port} counter (packets \d+ bytes \d+ )?drop")
    for record in found:
        assert text.fullmatch(record["netfilter.rule"]), record
        assert "that of 1 other candidate did not move" in record["netfilter.evidence"]
        assert "netfilter.candidates" not in record


def test_a_rule_that_did_not_count_is_not_named(routed):
    """Another dropped them, and has gone before the rules are read: what is left is innocent."""
    port, router = new_port(), routed.router
    chain = "type filter hook forward priority {}; udp dport {} {} drop;"
    tables = {"culprit": chain.format(1, port, ""), "innocent": chain.format(2, port, "counter")}
    try:
        for name, text in tables.items():
            router.run("nft", "-f", "-", stdin=f"table ip {name} {{ chain c {{ {text} }}; }}")
        with runner.whole("drops", "-o", "json", f"udp port {port}") as live:
            watch = runner.watch(live)
            live.process.send_signal(signal.SIGSTOP)
            about = send(routed, port)
            router.run("nft", "delete", "table", "ip", "culprit")
            live.process.send_signal(signal.SIGCONT)
            found = watch.expect(COUNT, about)
    finally:
        for name in tables:
            router.run("nft", "delete", "table", "ip", name, check=False)
    for record in found:
        assert "netfilter.rule" not in record
        assert record["netfilter.evidence"] == "counter did not move"
        (candidate,) = record["netfilter.candidates"]
        assert candidate["table"] == "innocent"
    say(found, NETFILTER, "chain c in table ip innocent", "counter did not move")


def test_what_the_rate_limit_hides_is_told_by_rule(routed):
    """Of 41 drops 5 a second are shown; the rule's counter tells of all."""
    port, other, sent = new_port(), new_port(), 41
    options = ("--rate-limit", "5", "-o", "json", f"udp port {port} or udp port {other}")
    with runner.running("drops", *options) as live:
        watch = runner.watch(live)
        with nft(routed.router, "inet", "forward", f"udp dport {other} drop"):
            watch.expect(1, send(routed, other, 1), timeout_s=10)  # the rules have been read once
        with nft(routed.router, "inet", "forward", f"udp dport {port} counter drop"):
            about = send(routed, port, sent)
            runner.until(lambda: watch.find(about), "a drop is shown", 10)
            done = live.stop()
    *records, end = done.records
    rules = [record for record in records if record["type"] == "rule"]
    counting = [record for record in rules if f"dport {port}" in record["netfilter.rule"]]
    for record in counting:
        assert record["netns"] == routed.router.inode
        assert record["netfilter.table"] == "tracer-tests"
        assert record["netfilter.handle"] > 0
        assert 0 < record["shown"] < sent
        assert record["counter.packets"] == sent
    assert len(counting) == 1
    assert [record["shown"] for record in rules if record not in counting] == [1]
    assert sum(record["shown"] for record in rules) == end["shown"]
    assert end["packets"] == sent + 1
