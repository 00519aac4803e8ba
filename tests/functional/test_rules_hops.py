"""`trace` names the rules that let a packet pass and changed it, at each netfilter hop.

With --rules the kernel tells them, with --rules=read they are inferred: the same rules.

The rules are those of a real node (tests/data/kube-proxy), iptables and nftables mode.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from lab import kube_node as kube
from lab import runner
from lab.traffic import open_tcp, send_udp

COUNT = 3
SOURCES = {"traced": "--rules", "inferred": "--rules=read"}
STICKY = ("10.96.10.6", 80)
"""TCP Service with ClientIP affinity."""
TABLE = {"iptables": "nat", "nftables": "kube-proxy"}
WAY = {
    "iptables": ("PREROUTING", "KUBE-SERVICES", ("KUBE-SEP-",)),
    "nftables": ("nat-prerouting", "services", ("service-", "endpoint-")),
}
"""Base chain, the chain that it jumps to, and the beginning of the one that chooses."""
MASQUERADE = {"iptables": "KUBE-POSTROUTING", "nftables": "masquerading"}
_PLAIN = {hook: {hook} for hook in ("PREROUTING", "FORWARD", "POSTROUTING")}
BASES = {
    "iptables": _PLAIN,
    "nftables": {
        "PREROUTING": {"PREROUTING", "filter-prerouting-pre-dnat", "nat-prerouting"},
        "FORWARD": {"FORWARD", "filter-forward"},
        "POSTROUTING": {"POSTROUTING", "nat-postrouting"},
    },
}
"""The base chains of each hook."""


class Case(NamedTuple):
    """One packet to a Service, which pod or host sends it, and what the rules do to it."""

    sender: str
    """A pod; empty: the host outside."""
    to: tuple[str, int]
    protocol: str
    service: str
    masqueraded: bool = False


CASES = {
    "UDP DNS port of a ClusterIP": Case("client", kube.WEB[4], "udp", "shop/web"),
    "the same by IPv6": Case("client", kube.WEB[6], "udp", "shop/web"),
    "ClusterIP": Case("client", kube.SINGLE, "tcp", "shop/single"),
    "NodePort": Case("", (kube.NODE[4], kube.NODE_PORT), "udp", "shop/web-np", masqueraded=True),
    "externalIP": Case("", kube.EXTERNAL, "tcp", "shop/extip", masqueraded=True),
    "session affinity": Case("client", STICKY, "tcp", "shop/sticky"),
    "hairpin": Case("single", kube.SINGLE, "tcp", "shop/single", masqueraded=True),
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.param


@pytest.fixture(scope="module")
def trace(proxy, source, cri_env):  # noqa: ARG001 - the rules are there before it looks
    nets = "net 10.244.0.0/24 or net 198.51.100.0/24 or net fd00:10:244::/64"
    wanted = f"(tcp[13] == 2 or udp) and ({nets})"
    with runner.running("trace", wanted, SOURCES[source], "-o", "json", env=cri_env) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


@pytest.mark.parametrize("name", CASES)
def test_the_rules_of_each_hop(kube_node, trace, proxy, source, name):
    case = CASES[name]
    for hook, rules in hooks(kube_node, trace, proxy, case).items():
        assert {rule["netfilter.path"][0] for rule in rules} <= BASES[proxy][hook], rules
        assert {rule["netfilter.rule_source"] for rule in rules} == {source}
        assert all(rule["netfilter.handle"] > 0 for rule in rules if "netfilter.rule" in rule)


def hooks(node, trace, proxy, case):
    """Send the packet of a case; the rules of each hook on the node, NAT's checked."""
    host, watch = node.pods[case.sender] if case.sender else node.outside, runner.watch(trace)
    if case.protocol == "udp":
        send_udp(host.where, case.to, 1)
    else:
        open_tcp(host.where, case.to)
    about = {"type": "packet", "dst.address": case.to[0], "dst.port": case.to[1]}
    (record,) = watch.expect(1, about, timeout_s=15)
    found = {hop["hook"]: hop for hop in record["hops"] if hop["netns"] == node.node.inode}
    family = "ip6" if ":" in case.to[0] else "ip"
    check_dnat(found[f"nf {family} PREROUTING"], proxy, family, case)
    check_masquerade(found[f"nf {family} POSTROUTING"], proxy, case)
    return {
        hook: found[f"nf {family} {hook}"]["rules"]
        for hook in ("PREROUTING", "FORWARD", "POSTROUTING")
    }


def test_session_affinity(kube_node, trace, proxy):
    """The second connection goes where the first went, by a rule that names the same endpoint."""
    chosen = []
    for _ in range(2):
        hops = hooks(kube_node, trace, proxy, CASES["session affinity"])
        dnat = [one for one in hops["PREROUTING"] if "dnat" in one.get("netfilter.changes", ())]
        chosen += [(rule["netfilter.chain"], rule["netfilter.handle"]) for rule in dnat]
    first, second = chosen
    assert first == second


def test_packets_alike_each_have_their_own(kube_node, trace):
    """Only the first of a connection meets nat chains; to others alike no rule is given twice."""
    watch = runner.watch(trace)
    send_udp(kube_node.pods["client"].where, kube.WEB[4], COUNT)
    records = watch.expect(COUNT, {"type": "packet", "dst.port": kube.WEB[4][1]}, 15)
    for number, record in enumerate(records):
        hops = {hop["hook"]: hop for hop in record["hops"] if hop["netns"] == kube_node.node.inode}
        rules = {name: hop["rules"] for name, hop in hops.items() if "rules" in hop}
        assert {f"nf ip {hook}" for hook in ("FORWARD", "PREROUTING")} <= rules.keys()
        for some in rules.values():
            bases = [(rule["netfilter.table"], rule["netfilter.path"][0]) for rule in some
                     if rule["netfilter.verdict"] != "continue"]  # fmt: skip
            assert len(bases) == len(set(bases)), some
        dnat = [rule for rule in rules["nf ip PREROUTING"] if "netfilter.changes" in rule]
        assert len(dnat) == (number == 0), (number, dnat)


def check_dnat(hop, mode, family, case):
    """The hop where DNAT happens names its rule, the way there, and the Service."""
    assert any(text.startswith("DNAT ") for text in hop["changes"]), hop
    (rule,) = [one for one in hop["rules"] if "dnat" in one.get("netfilter.changes", ())]
    namespace, service = case.service.split("/")
    base, services, endpoint = WAY[mode]
    assert rule["netfilter.family"] == family
    assert rule["netfilter.table"] == TABLE[mode]
    assert rule["netfilter.chain"].startswith(endpoint)
    assert "dnat" in rule["netfilter.rule"].lower()
    assert rule["netfilter.verdict"] == "accept"
    assert rule["netfilter.path"][:2] == [base, services], rule
    assert rule["netfilter.path"][-1] == rule["netfilter.chain"]
    assert rule["netfilter.object.kind"] == "Service"
    assert rule["netfilter.object.owner"] == "kube-proxy"
    assert (rule["service.namespace"], rule["service.name"]) == (namespace, service)
    marked = any("mark" in one.get("netfilter.changes", ()) for one in hop["rules"])
    assert marked == (case.masqueraded and not (mode == "nftables" and case.sender)), hop


def check_masquerade(hop, mode, case):
    """The hop where the packet leaves names the rule that gave it the node's address."""
    rules = [one for one in hop["rules"] if "masquerade" in one.get("netfilter.changes", ())]
    assert bool(rules) == case.masqueraded, hop
    for rule in rules:
        assert rule["netfilter.chain"] == MASQUERADE[mode]
        assert rule["netfilter.object.owner"] == "kube-proxy"
        assert rule["netfilter.object.does"] == "masqueraded"
