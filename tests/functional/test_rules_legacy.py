"""iptables-legacy, where the kernel has it: kube-proxy, Docker and network plugins, all inferred.

The packets, rules and words are those of the tests of iptables-nft. xtables tells nobody what it
did: it is read, whatever was asked for.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import test_rules_docker as docker
import test_rules_hops as hops
import test_rules_plugins as plugins
import test_rules_services as services
from lab import kube_node as kube
from lab import runner
from lab.expect import place, say
from lab.shell import until
from lab.traffic import new_port
from lab.wired import wired

FAMILIES = pytest.mark.parametrize("version", [4, 6])
INFERRED = {
    "netfilter.rule_source": "inferred",
    "netfilter.backend": "iptables-legacy",
    "netfilter.handle": None,
}
NETS = (
    "10.244.0.0/24", "198.51.100.0/24", "fd00:10:244::/64",
    "172.17.0.0/16", "172.18.0.0/16", "10.248.0.0/24", "fd00:172::/31", "fd00:10:248::/64",
    "10.249.0.0/16", "fd00:10:249::/48",
)  # fmt: skip
CHOSEN = f"(udp or tcp[13] == 2) and ({' or '.join(f'net {one}' for one in NETS)})"
"""Of the nodes and their pods: datagrams, and first segments of IPv4."""


@pytest.fixture(scope="module")
def kube_proxy(kube_node):
    with kube.rules(kube_node.node, "iptables", "legacy"):
        yield kube_node


@pytest.fixture(scope="module")
def docker_node(_alone):
    with wired("dkl", docker.WIRES) as made, docker.rules(made.node, "legacy"):
        yield made


@pytest.fixture(scope="module")
def plugin_node(_alone):
    with wired("plugl", plugins.WIRES) as made:
        made.node.run("ipset", "create", "ANTREA-POD-IP", "hash:net")
        made.node.run("ipset", "add", "ANTREA-POD-IP", "10.249.3.0/24")
        yield made


@pytest.fixture(scope="module", autouse=True)
def _made(kube_proxy, docker_node, plugin_node):
    """All is there before anybody looks at it."""


@pytest.fixture(scope="module")
def drops(_made, cri_env):
    with runner.running("drops", CHOSEN, "-o", "json", "--rules=read", env=cri_env) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def trace(_made, cri_env):
    with runner.whole("trace", CHOSEN, "--rules=read", "-o", "json", env=cri_env) as live:
        yield live


@pytest.mark.parametrize("name", services.BOTH)
def test_refused_by_kube_proxy(kube_proxy, drops, name):
    case = services.CASES[name]
    record = services.died(kube_proxy, drops, case)
    say([record], services.told("iptables", case) | INFERRED | place(kube_proxy.node), case.words)


def inferred(rules):
    assert rules
    assert all(runner.matches(rule, INFERRED) for rule in rules), rules


@pytest.mark.parametrize("name", hops.CASES)
def test_passed_by_kube_proxy(kube_proxy, trace, name):
    case = hops.CASES[name]
    for hook, rules in hops.hooks(kube_proxy, trace, "iptables", case).items():
        assert {rule["netfilter.path"][0] for rule in rules} == {hook}, rules
        inferred(rules)


@FAMILIES
def test_docker_keeps_its_bridges_apart(docker_node, drops, version):
    own = {"inferred": drops}
    told = INFERRED | {"netfilter.object.owner": "docker"}
    docker.refused(docker_node, own, version, docker.ISOLATED, new_port(), **told)
    told = INFERRED | {"netfilter.policy": "drop"}
    docker.refused(docker_node, own, version, docker.CLOSED, new_port(), **told)


@FAMILIES
def test_docker_publishes_a_port_and_masquerades(docker_node, trace, version):
    inferred([docker.published(docker_node, trace, version)])
    inferred([docker.masqueraded(docker_node, trace, version)])


IPTABLES = [name for name, case in plugins.CASES.items() if case.rules.startswith("*")]


@pytest.mark.parametrize("name", IPTABLES)
def test_a_plugin_masquerades(plugin_node, trace, name):
    """Of the rules of a moment ago nothing is told, but soon of those that are there."""
    case, found = plugins.CASES[name], []

    def is_told():
        with suppress(AssertionError):
            found[:] = plugins.taken(plugin_node, trace, case)
        return found

    with plugins.loaded(plugin_node.node, case.rules, case.version, "legacy"):
        until(is_told, "the new rules are named")
    inferred(found)
    for told, rule in zip(case.told, found, strict=True):
        assert rule.get("netfilter.sets", []) == list(told.sets)
