"""What tracing rules leaves alone: the rules of others, the fate of packets, the node after it."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager

import pytest
from lab import namespaces, runner
from lab.rules import iptables
from lab.shell import until
from lab.traffic import new_port, open_tcp, send_udp, tcp_listener, udp_listener

COUNT = 7
OURS = re.compile(r"^table (inet|bridge|netdev) tracer-\d+ \{.*?^\}\n", re.MULTILINE | re.DOTALL)
RULES = """
table inet others {{
 set blocked {{ type ipv4_addr; flags interval; elements = {{ 10.246.2.64/26 }}; }}
 chain helper {{ udp dport {rejected} counter reject; }}
 chain forward {{
  type filter hook forward priority filter; policy accept;
  ip daddr @blocked counter drop
  udp dport {dropped} counter drop
  counter jump helper
  udp dport {accepted} counter accept
 }}
 chain nat {{
  type nat hook prerouting priority dstnat;
  udp dport {translated} counter redirect to :{local}
 }}
}}
table netdev others {{
 chain ingress {{
  type filter hook ingress device "to-left" priority filter; policy accept;
  udp dport {early} counter drop
 }}
}}
"""
NAMES = ("accepted", "dropped", "early", "rejected", "translated")
"""Ports by what becomes of their datagrams."""


@pytest.fixture
def ports():
    return {name: new_port() for name in (*NAMES, "local")}


@pytest.fixture
def rules(routed, ports):
    """Rules of somebody else, with counters, in the router; nft's and iptables-nft's."""
    router = routed.router
    router.run("nft", "-f", "-", stdin=RULES.format(**ports))
    try:
        with iptables(
            router,
            "iptables-nft",
            "FORWARD",
            "-p",
            "tcp",
            "--dport",
            str(ports["local"]),
            "-j",
            "DROP",
        ):
            yield router
    finally:
        remove(router)


def remove(where):
    for family in ("inet", "netdev"):
        where.run("nft", "delete", "table", family, "others")


def listed(where):
    """All rules of a namespace, as three programs print them."""
    programs = (
        ["nft", "-a", "list", "ruleset"],
        ["iptables-nft-save", "-c"],
        ["iptables-legacy-save"],
    )
    return [
        "\n".join(line for line in where.run(*program).splitlines() if line[:1] != "#")
        for program in programs
    ]


def has_table(where):
    return bool(OURS.search(where.run("nft", "list", "ruleset")))


def ended_by_itself(live, left, port):
    """--count 1: the one datagram finds no socket, in a namespace without rules."""
    send_udp(left, ("127.0.0.1", port), 1)
    live.ended()


def interrupted(live, *_):
    assert live.stop().code in (0, 1)


def killed(live, *_):
    live.stop(signal.SIGKILL)


@pytest.mark.parametrize("command", ["drops", "trace"])
@pytest.mark.parametrize("end", [ended_by_itself, interrupted, killed])
def test_the_rules_are_as_before_when_it_ends(routed, rules, command, end):
    places = [namespaces.node(), rules, routed.left.where, routed.right.where]
    before = [listed(place) for place in places]
    port = new_port()
    only = [f"udp port {port}", "--count", "1"]
    with runner.running(command, *only, "-o", "json", "--rules") as live:
        assert has_table(rules)
        assert (
            OURS.sub("", rules.run("nft", "-a", "list", "ruleset")) == "".join(before[1][:1]) + "\n"
        )
        end(live, routed.left.where, port)
    # A killed process gives its sockets back a moment after it is gone.
    until(lambda: not any(map(has_table, places)), "tracer's tables have gone", 5)
    assert [listed(place) for place in places] == before


def test_reading_makes_no_table(rules):
    before = listed(rules)
    with runner.running("drops", "-o", "json") as live:
        assert listed(rules) == before
        live.stop()
    assert listed(rules) == before


def fates(routed, ports):
    """What becomes of each packet: who receives it, what the sender hears, what rules count."""
    left, right, router = routed.left.where, routed.right, routed.router
    with (
        udp_listener(right.where, ports["accepted"]) as there,
        udp_listener(router, ports["local"]) as local,
        tcp_listener(right.where, ports["accepted"]),
    ):
        for name in NAMES:
            send_udp(left, (right.ip4, ports[name]), COUNT)
        errors = [repr(open_tcp(left, (right.ip4, ports[name]))) for name in ("accepted", "local")]
        received = [len([one.recv(100) for _ in range(COUNT)]) for one in (there, local)]
        for one in (there, local):
            one.settimeout(0.05)
            with pytest.raises(TimeoutError):
                one.recv(100)
    counters = re.findall(r"counter packets \d+ bytes \d+", router.run("nft", "list", "ruleset"))
    return received, errors, counters


def test_the_fate_of_packets_is_the_same(routed, rules, ports):
    """Each is received, refused and counted as without tracer; reset counters between."""
    reset(rules, ports)
    without = fates(routed, ports)
    for mode in ("trace", "read"):
        reset(rules, ports)
        with runner.running("drops", "-o", "json", f"--rules={mode}") as live:
            assert has_table(rules) == (mode == "trace")
            assert fates(routed, ports) == without
            live.stop()


def reset(where, ports):
    """Counters at zero: the same rules, made anew."""
    remove(where)
    where.run("nft", "-f", "-", stdin=RULES.format(**ports))
    where.run("iptables-nft", "-Z", "FORWARD")


def test_a_simple_filter_narrows_what_is_traced(routed):
    with runner.running("drops", "udp port 53 and host 10.246.1.2", "--rules") as live:
        table = routed.router.run("nft", "list", "ruleset")
        assert "ip saddr 10.246.1.2 udp dport 53 limit" in table
        assert " limit rate" in table
        assert not re.search(r"^\s*limit", table, re.MULTILINE), "everything is traced"
        live.stop()


def test_iptables_legacy_is_not_made_to_log(routed):
    """A marked packet would be logged by every legacy rule it passes: then rules are read."""
    left = routed.left.where
    with (
        namespace_with_legacy("logs") as where,
        runner.running("drops", "-o", "json", "--rules") as live,
    ):
        assert not has_table(where)
        assert has_table(left)
        live.wait_for_line(lambda line: "trt-logs are read, not traced" in line)
        live.stop()


@contextmanager
def namespace_with_legacy(name):
    try:
        where = namespaces.create(name)
        where.run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
        yield where
    finally:
        namespaces.delete(name)


def test_iptables_legacy_that_comes_later_is_heeded():
    """The first drop there shows it: from then on that namespace is read."""
    port = new_port()
    try:
        where = namespaces.create("later")
        with runner.running("drops", f"udp port {port}", "-o", "json", "--rules") as live:
            assert has_table(where)
            rule = ["INPUT", "-p", "udp", "--dport", str(port), "-j", "DROP"]
            where.run("iptables-legacy", "-A", *rule)
            send_udp(where, ("127.0.0.1", port), 1)
            live.wait_for_line(lambda line: "trt-later are read, no longer traced" in line)
            assert not has_table(where)
            live.stop()
    finally:
        namespaces.delete("later")
