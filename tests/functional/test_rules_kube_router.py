"""Packets that kube-router's NetworkPolicies refuse and let through name policy and pod.

Its nftables rules are those of a real node; its iptables rules and ipsets (k3s) are made from
their documented format, for iptables-nft and iptables-legacy (lab/kube_router.py).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from lab import kube_router as kr
from lab import runner
from lab.expect import NETFILTER, place, say, tcp
from lab.traffic import open_tcp, tcp_listener
from lab.wired import wired

FAMILIES = pytest.mark.parametrize("version", [4, 6])
TRACED, INFERRED = "traced", "inferred"
FILTER = "net 10.244.0.0/24 or net fd00:10:244::/64"


class Case(NamedTuple):
    """A connection that a policy refuses."""

    sender: str
    to: str
    port: int
    policy: str
    of: str
    """Which way, and the pod whose policy it is."""
    verb: str = "it does not allow"


CASES = {
    "ingress": Case("client", "web", 81, "shop/web-allow-client", "ingress of pod {web}"),
    "egress, default deny": Case("client2", "single", 80, "ops/default-deny",
                                 "egress of pod {client2}"),
    "ingress, default deny": Case("client", "client2", 80, "ops/default-deny",
                                  "ingress of pod {client2}"),
    "ingress, not among the sources": Case(
        "client2", "web", kr.WEB_PORT, "shop/web-allow-client", "ingress of pod {web}",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def node(_alone):
    with wired("kr", kr.WIRES) as made:
        yield made


@pytest.fixture(scope="module")
def legacy_node(_alone):
    """Of its own: xtables' tables stay in a namespace, and where they are nothing is traced."""
    with wired("krl", kr.WIRES) as made:
        yield made


@pytest.fixture(scope="module")
def drops(node, legacy_node):  # noqa: ARG001 - all is there before they look
    """The same packets, traced and inferred."""
    with (
        runner.running("drops", FILTER, "-o", "json", "--rules") as tracing,
        runner.running("drops", FILTER, "-o", "json", "--rules=read") as reading,
    ):
        yield {TRACED: tracing, INFERRED: reading}
        for live in (tracing, reading):
            done = live.stop()
            assert "Traceback" not in done.err
            assert done.code == 0, done.err


def refused(node, live, form, version, case, source):
    """Look for the one SYN of a case that died; it was sent already."""
    sender, there = node.hosts[case.sender], node.hosts[case.to]
    about = tcp(sender.ip(version), there.ip(version), case.port) | NETFILTER
    family, table = kr.tables(version, form)
    namespace, name = case.policy.split("/")
    whose = case.of.format(**kr.KEYS)
    pod = next(key for key in kr.KEYS if kr.KEYS[key] == whose.rsplit(" ", 1)[1])
    firewall = kr.FIREWALLS[pod]
    wanted = {
        "netfilter.rule_source": source,
        "netfilter.family": family,
        "netfilter.hook": "FORWARD",
        "netfilter.table": table,
        "netfilter.chain": firewall,
        "netfilter.rule": lambda text: "reject" in str(text).lower() and "comment" in str(text),
        "netfilter.verdict": "reject",
        "netfilter.path": lambda path: path[-2:] == ["KUBE-ROUTER-FORWARD", firewall],
        "netfilter.object.owner": "kube-router",
        "netfilter.object.kind": "NetworkPolicy",
        "netfilter.object.does": "default deny",
        "policy.namespace": namespace,
        "policy.name": name,
    }
    words = [f"Rejected by NetworkPolicy {case.policy} (kube-router), {whose}: {case.verb}"]
    sets = kr.sources(version, form, case.port) if case.to == "web" else []
    missing = [
        f"{sender.ip(version)} is not in set {name} (sources of NetworkPolicy {case.policy})"
        for name in sets
    ]
    wanted["netfilter.misses"] = missing or None
    words += missing
    say(live.expect(1, about), wanted | place(node.node), *words)


@FAMILIES
@pytest.mark.parametrize("form", ["nftables", "iptables-nft"])
def test_refused_by_a_policy(node, drops, form, version):
    watches = {source: runner.watch(live) for source, live in drops.items()}
    with kr.rules(node.node, form):
        for case in CASES.values():
            sender, there = node.hosts[case.sender], node.hosts[case.to]
            assert open_tcp(sender.where, (there.ip(version), case.port)) is not None
        for source, watch in watches.items():
            for case in CASES.values():
                refused(node, watch, form, version, case, source)


@FAMILIES
def test_refused_by_a_policy_in_iptables_legacy(legacy_node, drops, version):
    """Its rules are read, whatever was asked for."""
    watch = runner.watch(drops[INFERRED])
    with kr.rules(legacy_node.node, "iptables-legacy"):
        for case in CASES.values():
            sender, there = legacy_node.hosts[case.sender], legacy_node.hosts[case.to]
            assert open_tcp(sender.where, (there.ip(version), case.port)) is not None
        for case in CASES.values():
            refused(legacy_node, watch, "iptables-legacy", version, case, INFERRED)


@pytest.fixture(scope="module")
def trace(node):  # noqa: ARG001 - all is there before it looks
    with runner.running("trace", f"tcp dst port {kr.WEB_PORT}", "--rules", "-o", "json") as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err


@FAMILIES
@pytest.mark.parametrize("form", ["nftables", "iptables-nft"])
def test_let_through_by_a_policy(node, trace, form, version):
    """`trace --rules` names the rule of the policy that marked the SYN, and what then took it."""
    client, web = node.hosts["client"], node.hosts["web"]
    with (
        kr.rules(node.node, form),
        tcp_listener(web.where, kr.WEB_PORT, 2 if version == 4 else 10),
    ):
        watch = runner.watch(trace)
        assert open_tcp(client.where, (web.ip(version), kr.WEB_PORT)) is None
        syn = {"type": "packet", "tcp.flags": "SYN", "dst.address": web.ip(version)}
        (record,) = watch.expect(1, syn, timeout_s=15)
    family, table = kr.tables(version, form)
    (hop,) = [hop for hop in record["hops"] if hop["hook"] == f"nf {family} FORWARD"]
    rules = [rule for rule in hop["rules"] if rule["netfilter.table"] == table]
    marks = [rule for rule in rules if rule["netfilter.chain"].startswith("KUBE-NWPLCY-")
             and "mark" in rule.get("netfilter.changes", ()) and "policy.name" in rule]  # fmt: skip
    assert marks, rules
    for rule in marks:
        who, whom = rule["netfilter.sets"]
        assert who.startswith(f"{client.ip(version)} in ")
        assert whom.startswith(f"{web.ip(version)} in ")
        assert (rule["policy.namespace"], rule["policy.name"]) == ("shop", "web-allow-client")
        assert rule["netfilter.object.does"] == "allowed"
        assert kr.FIREWALLS["web"] in rule["netfilter.path"]
        sentence = "NetworkPolicy shop/web-allow-client (kube-router) allows it."
        assert rule["netfilter.object.sentence"] == sentence
    (end,) = [rule for rule in rules if rule["netfilter.verdict"] == "accept"]
    assert end["netfilter.object.owner"] == "kube-router"
    assert "the policies of its pods allow it" in end["netfilter.object.sentence"]
