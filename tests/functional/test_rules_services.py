"""Packets that kube-proxy's rules refuse: each names its rule and its Service, both ways.

The rules are those of a real node (tests/data/kube-proxy), iptables and nftables mode.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from lab import kube_node as kube
from lab import runner
from lab.expect import NETFILTER, place, say, tcp
from lab.traffic import open_tcp

SOURCES = {"trace": "traced", "read": "inferred"}


class Case(NamedTuple):
    """A connection that is refused, and what is to be said of it, by kube-proxy's mode."""

    to: tuple[str, int]
    verdict: str
    hook: dict[str, str]
    chain: dict[str, str]
    rule: dict[str, str]
    service: str
    words: str
    sets: str = ""
    """What a map of nftables mode answered."""


LB, UNUSED, REMOTE = ("203.0.113.100", 80), ("10.96.33.44", 80), ("10.96.10.10", 80)
CASES = {
    "no endpoints": Case(
        kube.NO_ENDPOINTS,
        "reject",
        {"iptables": "FORWARD", "nftables": "FORWARD"},
        {"iptables": "KUBE-SERVICES", "nftables": "reject-chain"},
        {"iptables": "shop/no-endpoints has no endpoints", "nftables": "reject"},
        "shop/no-endpoints",
        "has no endpoints",
        "10.96.10.5 . tcp . 80 in no-endpoint-services",
    ),
    "no local endpoints": Case(
        REMOTE,
        "drop",
        {"iptables": "FORWARD", "nftables": "FORWARD"},
        {"iptables": "KUBE-SERVICES", "nftables": "service-endpoints-check"},
        {"iptables": "has no local endpoints", "nftables": "@no-endpoint-services"},
        "shop/remote-only",
        "endpoints",
    ),
    "source range": Case(
        LB,
        "drop",
        {"iptables": "FORWARD", "nftables": "PREROUTING"},
        {"iptables": "KUBE-PROXY-FIREWALL", "nftables": "firewall-TIJT7IDK-shop/lb/tcp/"},
        {"iptables": "not accepted by KUBE-FW-EQPZH4W7LN3ZNZNG", "nftables": "ip saddr != "},
        "shop/lb",
        "loadBalancerSourceRanges",
    ),
    "unallocated ClusterIP": Case(
        UNUSED,
        "drop",
        {"nftables": "FORWARD"},
        {"nftables": "cluster-ips-check"},
        {"nftables": "ip daddr 10.96.0.0/16 drop"},
        "",
        "no service has it",
    ),
}
BOTH = [name for name, case in CASES.items() if len(case.hook) == len(kube.MODES)]


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.param


@pytest.fixture(scope="module")
def named(proxy, source, cri_env):  # noqa: ARG001 - the rules are there before it looks
    with runner.running("drops", "-o", "json", f"--rules={source}", env=cri_env) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", BOTH)
def test_refused_by_kube_proxy(kube_node, named, proxy, source, name):
    refused(kube_node, named, proxy, source, CASES[name])


@pytest.mark.parametrize("proxy", ["nftables"], indirect=True)
def test_refused_by_nftables_mode_alone(kube_node, named, proxy, source):
    refused(kube_node, named, proxy, source, CASES["unallocated ClusterIP"])


def refused(node, named, proxy, source, case):
    """Connect, and look at the one SYN that died."""
    wanted = told(proxy, case) | {
        "netfilter.rule_source": SOURCES[source],
        "netfilter.handle": lambda handle: handle > 0,
    }
    say([died(node, named, case)], wanted | place(node.node), case.words)


def died(node, named, case):
    """The drop of a connection that is refused."""
    client, watch = node.pods["client"], runner.watch(named)
    assert open_tcp(client.where, case.to) is not None
    (record,) = watch.expect(1, {**tcp(client.ip4, *case.to), **NETFILTER})
    return record


def told(proxy, case):
    """What is said of it, whichever tool has loaded the rules of this mode."""
    wanted = {
        "netfilter.family": "ip",
        "netfilter.table": {"iptables": "filter", "nftables": "kube-proxy"}[proxy],
        "netfilter.hook": case.hook[proxy],
        "netfilter.chain": case.chain[proxy],
        "netfilter.rule": lambda text: case.rule[proxy] in text,
        "netfilter.verdict": case.verdict,
        "netfilter.path": lambda path: len(path) > 1,
        "netfilter.object.owner": "kube-proxy",
    }
    if case.sets and proxy == "nftables":
        wanted["netfilter.sets"] = [case.sets]
    if case.service:
        namespace, service = case.service.split("/")
        wanted |= {"service.namespace": namespace, "service.name": service}
    return wanted


def test_only_the_chosen_places_are_traced(cluster, cri_env):
    web, client = cluster.web, cluster.client
    chosen = f"{web.namespace}/{web.name}"
    with runner.running("drops", "--pod", chosen, "-o", "json", "--rules", env=cri_env) as live:
        assert is_traced(web.where, live)
        assert not is_traced(client.where, live)
        table = web.where.run("nft", "list", "table", "inet", f"tracer-{live.process.pid}")
        assert web.ip4 in table
        assert web.ip6 in table
        assert client.ip4 not in table
        live.stop()
    assert not is_traced(web.where, live)


def is_traced(where, live):
    """Whether the table of this very tracer is there: another may look at everything."""
    return f"table inet tracer-{live.process.pid}\n" in where.run("nft", "list", "tables")
