"""Packets that Calico's policies refuse and let through name policy and pod; its ipsets are real.

The rules are made from Calico's documented format (lab/calico.py), not recorded. The pods are
real ones of the tests' containerd by name alone: namespaces stand in their place, behind devices
that bear the names that Calico computes of theirs.
"""

from __future__ import annotations

import pytest
from lab import calico, runner
from lab.expect import NETFILTER, place, say, tcp
from lab.shell import until
from lab.traffic import open_tcp, tcp_listener
from lab.wired import wired

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FILTER = "tcp and (net 10.247.0.0/16 or net fd00:10:247::/48)"
SOURCES = {"traced": "--rules", "inferred": "--rules=read"}


@pytest.fixture(scope="module")
def keys(cluster):
    return {name: getattr(cluster, name).key for name in ("client", "web", "agent")}


@pytest.fixture(scope="module")
def node(keys):
    with wired("cal", calico.wires(keys)) as made, loaded(made, "iptables-nft", keys):
        yield made


@pytest.fixture(scope="module")
def legacy_node(keys):
    with wired("call", calico.wires(keys)) as made, loaded(made, "iptables-legacy", keys):
        yield made


def loaded(made, tool, keys):
    client = made.hosts["client"]
    return calico.rules(made.node, tool, keys, {4: client.ip4, 6: client.ip6})


@pytest.fixture(scope="module")
def drops(node, legacy_node, cri_env):  # noqa: ARG001 - the rules are there before they look
    with (
        runner.running("drops", FILTER, "-o", "json", "--rules", env=cri_env) as tracing,
        runner.running("drops", FILTER, "-o", "json", "--rules=read", env=cri_env) as reading,
    ):
        yield {"traced": tracing, "inferred": reading}
        for live in (tracing, reading):
            done = live.stop()
            assert "Traceback" not in done.err
            assert done.code == 0, done.err


CASES = {  # sender, to, port, whose policy, which way
    "ingress, wrong port": ("client", "web", 81, "web", "ingress"),
    "ingress, default deny": ("client", "agent", 80, "agent", "ingress"),
    "egress, default deny": ("agent", "web", calico.WEB_PORT, "agent", "egress"),
}


def send(made, version, case):
    """Connect, and be refused."""
    sender, to, port, *_ = case
    there = made.hosts[to].ip(version)
    assert open_tcp(made.hosts[sender].where, (there, port)) is not None


def refused(made, keys, watch, version, case, source, backend):
    sender, to, port, whose, way = case
    about = tcp(made.hosts[sender].ip(version), made.hosts[to].ip(version), port) | NETFILTER
    policy, dispatch = calico.POLICIES[whose], {"ingress": "to", "egress": "from"}[way]
    chain = f"cali-{'tw' if way == 'ingress' else 'fw'}-{calico.device(keys[whose])}"
    wanted = {
        "netfilter.rule_source": source,
        "netfilter.family": {4: "ip", 6: "ip6"}[version],
        "netfilter.backend": backend,
        "netfilter.hook": "FORWARD",
        "netfilter.table": "filter",
        "netfilter.chain": chain,
        "netfilter.rule": lambda text: "Drop if no policies passed packet" in str(text),
        "netfilter.verdict": "drop",
        "netfilter.path": ["FORWARD", "cali-FORWARD", f"cali-{dispatch}-wl-dispatch", chain],
        "netfilter.object.owner": "calico",
        "netfilter.object.kind": "NetworkPolicy",
        "policy.namespace": policy.split("/")[0],
        "policy.name": policy.split("/")[1],
    }
    words = f"Dropped by NetworkPolicy {policy} (Calico), {way} of pod {keys[whose]}:"
    say(watch.expect(1, about), wanted | place(made.node), words)


@FAMILIES
def test_refused_by_a_policy(node, keys, drops, version):
    watches = {source: runner.watch(live) for source, live in drops.items()}
    for case in CASES.values():
        send(node, version, case)
    for source, watch in watches.items():
        for case in CASES.values():
            refused(node, keys, watch, version, case, source, "iptables-nft")


@FAMILIES
def test_refused_by_a_policy_in_iptables_legacy(legacy_node, keys, drops, version):
    """Its rules are read, whatever was asked for."""
    watch = runner.watch(drops["inferred"])
    for case in CASES.values():
        send(legacy_node, version, case)
    for case in CASES.values():
        refused(legacy_node, keys, watch, version, case, "inferred", "iptables-legacy")


@FAMILIES
def test_an_ipset_is_read_again_when_it_changes(node, keys, drops, version):
    """A set changes, and no rule with it: soon what was let through is refused by name."""
    case = ("client", "web", calico.WEB_PORT, "web", "ingress")
    live = drops["inferred"]
    send(node, version, ("client", "web", 81))  # what was read by now has the client in its set
    client, web = node.hosts["client"].ip(version), node.hosts["web"].ip(version)
    about = tcp(client, web, calico.WEB_PORT) | NETFILTER
    with calico.left_out(node.node, version, client):

        def is_named():
            watch = runner.watch(live)
            send(node, version, case)
            return "netfilter.rule" in watch.expect(1, about)[0]

        until(is_named, "the drop is named by the set as it is now")
        watch = runner.watch(live)
        send(node, version, case)
        refused(node, keys, watch, version, case, "inferred", "iptables-nft")


@pytest.fixture(scope="module")
def trace(node, cri_env):  # noqa: ARG001 - the rules are there before it looks
    with runner.running("trace", FILTER, "--rules", "-o", "json", env=cri_env) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err


@FAMILIES
def test_let_through_by_a_policy(node, trace, version):
    """`trace --rules` names the policy whose rule marked the SYN, by its ipset."""
    client, web = node.hosts["client"], node.hosts["web"]
    with tcp_listener(web.where, calico.WEB_PORT, 2 if version == 4 else 10):
        watch = runner.watch(trace)
        assert open_tcp(client.where, (web.ip(version), calico.WEB_PORT)) is None
        syn = {"type": "packet", "tcp.flags": "SYN", "dst.address": web.ip(version)}
        (record,) = watch.expect(1, syn, timeout_s=15)
    (hop,) = [hop for hop in record["hops"] if hop["hook"].endswith(" FORWARD")]
    marks = [
        one for one in hop["rules"] if one["netfilter.chain"] == calico.policy_chain("web", "i")
    ]
    (mark,) = [one for one in marks if "mark" in one.get("netfilter.changes", ())]
    assert f"--match-set cali{version}0s:" in mark["netfilter.rule"]
    assert mark["netfilter.sets"] == [f"{client.ip(version)} in {calico.ipset(version)}"]
    assert (mark["policy.namespace"], mark["policy.name"]) == ("shop", "web-allow")
    told = "NetworkPolicy shop/web-allow (Calico), ingress: allowed by one of its rules."
    assert mark["netfilter.object.sentence"] == told
    ends = [one for one in hop["rules"] if one["netfilter.verdict"] == "accept"]
    (end,) = [one for one in ends if "Policy explicitly accepted" in one["netfilter.rule"]]
    assert end["netfilter.object.owner"] == "calico", ends
