"""Packets that Calico's policies refuse and let through name policy and pod; its sets are real.

The rules of its iptables mode and of its nftables mode are made from Calico's documented formats
(lab/calico.py), not recorded. The pods are
real ones of the tests' containerd by name alone: namespaces stand in their place, behind devices
that bear the names that Calico computes of theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from lab import calico, runner
from lab.expect import NETFILTER, place, say, tcp
from lab.traffic import open_tcp, tcp_listener
from lab.wired import wired

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FILTER = "tcp and (net 10.247.0.0/16 or net fd00:10:247::/48)"
SYN = f"tcp dst port {calico.WEB_PORT}"
"""So simple that nothing else is traced."""
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


@pytest.fixture(scope="module")
def nft_node(keys):
    with wired("caln", calico.wires(keys)) as made:
        client = made.hosts["client"]
        with calico.nft_rules(made.node, keys, {4: client.ip4, 6: client.ip6}):
            yield made


def loaded(made, tool, keys):
    client = made.hosts["client"]
    return calico.rules(made.node, tool, keys, {4: client.ip4, 6: client.ip6})


@pytest.fixture(scope="module")
def drops(node, legacy_node, nft_node, cri_env):  # noqa: ARG001 - the rules are there before they look
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


class Form(NamedTuple):
    """Where the rules of one mode of Calico stand."""

    backend: str
    table: str = "filter"
    prefix: str = ""
    """Of its chains."""


XT, LEGACY = Form("iptables-nft"), Form("iptables-legacy")
NFT = Form("nft", "calico", "filter-")


def send(made, version, case):
    """Connect, and be refused."""
    sender, to, port, *_ = case
    there = made.hosts[to].ip(version)
    assert open_tcp(made.hosts[sender].where, (there, port)) is not None


def refused(made, keys, watch, version, case, told, missing=""):
    """Look for the one SYN that died; `told`: source, form; `missing`: what a set lacks."""
    sender, to, port, whose, way = case
    source, form = told
    about = tcp(made.hosts[sender].ip(version), made.hosts[to].ip(version), port) | NETFILTER
    policy, dispatch = calico.POLICIES[whose], {"ingress": "to", "egress": "from"}[way]
    chain = f"{form.prefix}cali-{'tw' if way == 'ingress' else 'fw'}-{calico.device(keys[whose])}"
    wanted = {
        "netfilter.rule_source": source,
        "netfilter.family": {4: "ip", 6: "ip6"}[version],
        "netfilter.backend": form.backend,
        "netfilter.hook": "FORWARD",
        "netfilter.table": form.table,
        "netfilter.chain": chain,
        "netfilter.rule": lambda text: "Drop if no policies passed packet" in str(text),
        "netfilter.verdict": "drop",
        "netfilter.path": [
            *(f"{form.prefix}{name}" for name in ("FORWARD", "cali-FORWARD")),
            f"{form.prefix}cali-{dispatch}-wl-dispatch",
            chain,
        ],
        "netfilter.object.owner": "calico",
        "netfilter.object.kind": "NetworkPolicy",
        "policy.namespace": policy.split("/")[0],
        "policy.name": policy.split("/")[1],
        "netfilter.misses": [missing] if missing else None,
    }
    words = f"Dropped by NetworkPolicy {policy} (Calico), {way} of pod {keys[whose]}:"
    say(watch.expect(1, about), wanted | place(made.node), words, missing)


@FAMILIES
def test_refused_by_a_policy(node, keys, drops, version):
    watches = {source: runner.watch(live) for source, live in drops.items()}
    for case in CASES.values():
        send(node, version, case)
    for source, watch in watches.items():
        for case in CASES.values():
            refused(node, keys, watch, version, case, (source, XT))


@FAMILIES
def test_refused_by_a_policy_in_iptables_legacy(legacy_node, keys, drops, version):
    """Its rules are read, whatever was asked for."""
    watch = runner.watch(drops["inferred"])
    for case in CASES.values():
        send(legacy_node, version, case)
    for case in CASES.values():
        refused(legacy_node, keys, watch, version, case, ("inferred", LEGACY))


@FAMILIES
def test_refused_by_a_policy_in_nftables_mode(nft_node, keys, drops, version):
    watches = {source: runner.watch(live) for source, live in drops.items()}
    for case in CASES.values():
        send(nft_node, version, case)
    for source, watch in watches.items():
        for case in CASES.values():
            refused(nft_node, keys, watch, version, case, (source, NFT))


def lacking(client, name):
    return f"{client} is not in set {name} (sources of NetworkPolicy {calico.POLICIES['web']})"


@FAMILIES
def test_who_is_not_in_the_set_of_a_policy_in_nftables_mode(nft_node, keys, drops, version):
    case, client = ("client", "web", calico.WEB_PORT, "web", "ingress"), nft_node.hosts["client"]
    watches = {source: runner.watch(live) for source, live in drops.items()}
    missing = lacking(client.ip(version), calico.nft_set(version))
    with calico.left_out_of_nft(nft_node.node, version, client.ip(version)):
        send(nft_node, version, case)
        for source, watch in watches.items():
            refused(nft_node, keys, watch, version, case, (source, NFT), missing)


@FAMILIES
def test_an_ipset_is_read_again_when_it_changes(node, keys, drops, version):
    """A set changes, and no rule with it: the drop that shows it has it read again, and waits."""
    case = ("client", "web", calico.WEB_PORT, "web", "ingress")
    send(node, version, ("client", "web", 81))  # what was read by now has the client in its set
    client = node.hosts["client"].ip(version)
    missing = lacking(client, calico.ipset(version))
    watch = runner.watch(drops["inferred"])
    with calico.left_out(node.node, version, client):
        send(node, version, case)
        refused(node, keys, watch, version, case, ("inferred", XT), missing)


@pytest.fixture(scope="module")
def trace(node, nft_node, cri_env):  # noqa: ARG001 - the rules are there before it looks
    with runner.running("trace", SYN, "--rules", "-o", "json", env=cri_env) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err


@FAMILIES
@pytest.mark.parametrize("form", [XT, NFT], ids=["iptables-nft", "nftables"])
def test_let_through_by_a_policy(node, nft_node, trace, version, form):
    """`trace --rules` names the policy whose rule marked the SYN, by its set."""
    made, named = (nft_node, calico.nft_set) if form == NFT else (node, calico.ipset)
    client, web = made.hosts["client"], made.hosts["web"]
    with tcp_listener(web.where, calico.WEB_PORT, 2 if version == 4 else 10):
        watch = runner.watch(trace)
        assert open_tcp(client.where, (web.ip(version), calico.WEB_PORT)) is None
        syn = {"type": "packet", "tcp.flags": "SYN", "dst.address": web.ip(version)}
        (record,) = watch.expect(1, syn, timeout_s=15)
    (hop,) = [hop for hop in record["hops"] if hop["hook"].endswith(" FORWARD")]
    chain = form.prefix + calico.policy_chain("web", "i")
    marks = [one for one in hop["rules"] if one["netfilter.chain"] == chain]
    (mark,) = [one for one in marks if "mark" in one.get("netfilter.changes", ())]
    assert named(version) in mark["netfilter.rule"]
    assert mark["netfilter.sets"] == [f"{client.ip(version)} in {named(version)}"]
    assert (mark["policy.namespace"], mark["policy.name"]) == ("shop", "web-allow")
    told = "NetworkPolicy shop/web-allow (Calico), ingress: allowed by one of its rules."
    assert mark["netfilter.object.sentence"] == told
    ends = [one for one in hop["rules"] if one["netfilter.verdict"] == "accept"]
    (end,) = [one for one in ends if "Policy explicitly accepted" in one["netfilter.rule"]]
    assert (
        end["netfilter.object.sentence"] == "Accepted by Calico: Policy explicitly accepted packet."
    )
