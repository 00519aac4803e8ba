"""`trace` names the rule that ended a packet, with its way; a large ruleset holds nobody up."""

from __future__ import annotations

import pytest
from lab import runner, topology
from lab.rules import iptables, nft
from lab.traffic import new_port, send_udp

COUNT = 5
SERVICES = 300
"""Each has 20 rules: enough that nft is not asked for them (rule_programs.MANY_RULES)."""


@pytest.mark.parametrize(("mode", "source"), [("trace", "traced"), ("read", "inferred")])
def test_trace_names_the_rule_at_the_end_of_the_way(routed, mode, source):
    port, there = new_port(), routed.right.ip4
    rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "REJECT")
    with (
        iptables(routed.router, "iptables-nft", *rule),
        runner.running("trace", f"udp port {port}", f"--rules={mode}", "-o", "json") as live,
    ):
        watch = runner.watch(live)
        send_udp(routed.left.where, (there, port), COUNT)
        found = watch.expect(COUNT, {"type": "packet", "dst.port": port})
        done = live.stop()
    assert done.code == 0, done.err
    for record in found:
        assert record["verdict"] == "dropped"
        assert record["netfilter.rule_source"] == source
        assert record["netfilter.hook"] == "FORWARD"
        assert record["netfilter.table"] == "filter"
        assert record["netfilter.chain"] == "FORWARD"
        assert f"--dport {port} -j REJECT" in record["netfilter.rule"]
        assert record["netfilter.handle"] > 0
        assert "rejected it" in record["explanation"]
        assert record["hops"][0]["netns.name"] == routed.left.where.name


def large(port):
    """An iptables-save text whose very last rule drops."""
    lines = ["*filter", ":FORWARD ACCEPT [0:0]"]
    lines += [f":SVC-{number} - [0:0]" for number in range(SERVICES)]
    for number in range(SERVICES):
        to = f"-d 10.97.{number >> 8}.{number & 255}/32"
        lines.append(f"-A FORWARD {to} -j SVC-{number}")
        lines += [f"-A SVC-{number} -p udp --dport {1000 + n} -j RETURN" for n in range(20)]
    return "\n".join([*lines, f"-A FORWARD -p udp --dport {port} -j DROP", "COMMIT", ""])


@pytest.mark.parametrize(("mode", "source"), [("trace", "traced"), ("read", "inferred")])
def test_a_large_ruleset(routed, mode, source):
    """Its handles are asked for chain by chain; the drops of other namespaces do not wait."""
    port, other, router = new_port(), new_port(), routed.router
    router.run("iptables-nft-restore", stdin=large(port))
    try:
        with runner.running(
            "drops", f"udp port {port} or {other}", f"--rules={mode}", "-o", "json"
        ) as live:
            watch = runner.watch(live)
            send_udp(routed.left.where, (routed.right.ip4, port), COUNT)
            send_udp(routed.left.where, ("127.0.0.1", other), COUNT)
            found = watch.expect(COUNT, {"dst.port": port}, timeout_s=20)
            watch.expect(COUNT, {"dst.port": other})
            live.stop()
        listed = router.run("nft", "-a", "list", "chain", "ip", "filter", "FORWARD")
    finally:
        router.run("nft", "delete", "table", "ip", "filter")
    handle = int(listed.split(f"dport {port} ")[1].split("# handle ")[1].split()[0])
    for record in found:
        assert record["netfilter.rule"] == f"-A FORWARD -p udp -m udp --dport {port} -j DROP"
        assert record["netfilter.handle"] == handle
        assert record["netfilter.rule_source"] == source


def test_candidates_are_not_stated_as_fact(routed):
    """Which of two rules it was, a limit decides: both are told, none is named."""
    port, router = new_port(), routed.router
    first = f"udp dport {port} limit rate over 1/hour burst 3 packets drop; udp dport {port} drop"
    with (
        nft(router, "inet", "forward", first),
        runner.running("drops", f"udp port {port}", "-o", "json") as live,
    ):
        watch = runner.watch(live)
        send_udp(routed.left.where, (routed.right.ip4, port), COUNT)
        found = watch.expect(COUNT, {"dst.port": port})
        live.stop()
    for record in found:
        assert "netfilter.rule" not in record
        assert len(record["netfilter.candidates"]) == 2
        assert record["netfilter.rule_source"] == "inferred"
        assert "One of 2 rules" in record["explanation"]


@pytest.mark.parametrize("mode", ["trace", "read"])
def test_iptables_legacy_rules_at_hops_are_inferred(mode):
    """xtables tells nobody what it did: beside nf_tables' own trace it is worked out."""
    with topology.routed("-legacy") as own:
        port, router = new_port(), own.router
        for family in (2, 10):  # with a logger, xtables would log what is traced: nothing would be
            router.sysctl(f"netfilter/nf_log/{family}", "NONE")
        marks = ("FORWARD", "-t", "mangle", "-p", "udp", "--dport", str(port), "-j", "MARK")
        accepts = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "ACCEPT")
        with (
            iptables(router, "iptables-legacy", *marks, "--set-mark", "7"),
            iptables(router, "iptables-legacy", *accepts),
            nft(router, "inet", "forward", f"udp dport {port} accept", priority=5),
            runner.running("trace", f"udp port {port}", f"--rules={mode}", "-o", "json") as live,
        ):
            send_udp(own.left.where, (own.right.ip4, port), COUNT)
            about = {"type": "packet", "dst.port": port}
            found = runner.watch(live).expect(COUNT, about, timeout_s=15)
            done = live.stop()
    assert "Traceback" not in done.err
    source = {"trace": "traced", "read": "inferred"}[mode]
    for record in found:
        (hop,) = [hop for hop in record["hops"] if hop["hook"] == "nf ip FORWARD"]
        told = [
            (one["netfilter.backend"], one["netfilter.table"], one["netfilter.rule_source"])
            for one in hop["rules"]
            if "netfilter.rule" in one
        ]
        assert told == [
            ("iptables-legacy", "mangle", "inferred"),
            ("iptables-legacy", "filter", "inferred"),
            ("nft", "tracer-tests", source),
        ]
        assert hop["rules"][0]["netfilter.changes"] == ["mark"]
