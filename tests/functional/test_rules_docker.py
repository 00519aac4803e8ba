"""Docker's rules on a node without Kubernetes: what they drop, translate and masquerade is named.

The rules are those that Docker 20.10 made for real (tests/data/docker): its default bridge with a
container that publishes tcp 8080 → 80 and udp 5353 → 53, and a second bridge; IPv4 and IPv6.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from lab import runner
from lab.expect import NETFILTER, place, say, udp
from lab.rules import iptables
from lab.traffic import new_port, send_udp
from lab.wired import Wire, wired

RULES = Path(__file__).parents[1] / "data" / "docker"
COUNT = 3
FAMILIES = pytest.mark.parametrize("version", [4, 6])
BACK = "br-1f23ce3685d1"
WIRES = {
    "web": Wire("docker0", "172.17.0.2/16", "fd00:172:17::242:ac11:2/64", bridge=True),
    "db": Wire(BACK, "172.18.0.2/16", "fd00:172:18::2/64", bridge=True),
    "out": Wire("eth0", "10.248.0.2/24", "fd00:10:248::2/64"),
}
NODE = {4: "10.248.0.1", 6: "fd00:10:248::1"}
PUBLISHED, INNER = 5353, 53
SOURCES = {"traced": "--rules", "inferred": "--rules=read"}


@contextmanager
def rules(node, backend="nft"):
    for tool in ("iptables", "ip6tables"):
        node.run(f"{tool}-{backend}-restore", stdin=(RULES / f"{tool}-save.txt").read_text())
    try:
        yield
    finally:
        node.run("nft", "flush", "ruleset")


@pytest.fixture(scope="module")
def node(_alone):
    with wired("dk", WIRES) as made, rules(made.node):
        yield made


@pytest.fixture(scope="module")
def drops(node):  # noqa: ARG001 - the rules are there before they look
    with (
        runner.running("drops", "udp", "-o", "json", SOURCES["traced"]) as tracing,
        runner.running("drops", "udp", "-o", "json", SOURCES["inferred"]) as reading,
    ):
        yield {"traced": tracing, "inferred": reading}
        for live in (tracing, reading):
            done = live.stop()
            assert "Traceback" not in done.err
            assert done.code == 0, done.err


@pytest.fixture(scope="module")
def trace(node):  # noqa: ARG001 - the same
    with runner.running("trace", "udp", "--rules", "-o", "json") as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


class Refused(NamedTuple):
    """Datagrams that Docker refuses, and what is to be said of them."""

    sender: str
    to: str
    chain: str
    rule: str | None
    words: tuple[str, ...]


ISOLATED = Refused("db", "web", "DOCKER-ISOLATION-STAGE-2",
                   "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
                   ("Dropped by Docker", "keeps its bridge networks apart"))  # fmt: skip
CLOSED = Refused("out", "web", "FORWARD", None, ("policy is drop", "Docker sets it so"))


def refused(node, drops, version, case, port, **others):
    """Send, and look at the drops of both tracers."""
    sender, there = node.hosts[case.sender], node.hosts[case.to]
    watches = {source: runner.watch(live) for source, live in drops.items()}
    send_udp(sender.where, (there.ip(version), port), COUNT)
    about = udp(sender.ip(version), there.ip(version), port) | NETFILTER
    for source, watch in watches.items():
        wanted = {
            "netfilter.rule_source": source,
            "netfilter.family": {4: "ip", 6: "ip6"}[version],
            "netfilter.backend": "iptables-nft",
            "netfilter.hook": "FORWARD",
            "netfilter.table": "filter",
            "netfilter.chain": case.chain,
            "netfilter.verdict": "drop",
        }
        wanted |= {"netfilter.rule": case.rule, **others}
        say(watch.expect(COUNT, about), wanted | place(node.node), *case.words)


@FAMILIES
def test_one_bridge_to_another(node, drops, version):
    path = ["FORWARD", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2"]
    told = {"netfilter.path": path, "netfilter.object.owner": "docker"}
    refused(node, drops, version, ISOLATED, new_port(), **told)


@FAMILIES
def test_a_port_that_is_not_published(node, drops, version):
    """No rule accepts it: the policy that Docker gave to FORWARD drops."""
    told = {"netfilter.policy": "drop", "netfilter.object.does": "policy drop"}
    refused(node, drops, version, CLOSED, new_port(), **told)


def test_a_rule_of_the_administrators_own(node, drops):
    """DOCKER-USER is Docker's chain, what stands in it the administrator's."""
    port = new_port()
    rule = ("DOCKER-USER", "-p", "udp", "--dport", str(port), "-j", "DROP")
    text = f"-A DOCKER-USER -p udp -m udp --dport {port} -j DROP"
    case = Refused("web", "out", "DOCKER-USER", text, ("Dropped by Docker", "administrator"))
    told = {"netfilter.path": ["FORWARD", "DOCKER-USER"], "netfilter.object.owner": "docker"}
    with iptables(node.node, "iptables-nft", *rule):
        refused(node, drops, 4, case, port, **told)


def changed(record, node, hook, word):
    """The one rule of a hop on the node that did `word`: Docker's."""
    hops = {hop["hook"]: hop for hop in record["hops"] if hop["netns"] == node.node.inode}
    rules = hops[hook]["rules"]
    (rule,) = [rule for rule in rules if word in rule.get("netfilter.changes", ())]
    assert rule["netfilter.table"] == "nat"
    assert rule["netfilter.object.owner"] == "docker"
    return rule


def is_traced(rule):
    return rule["netfilter.rule_source"] == "traced" and rule["netfilter.handle"] > 0


@FAMILIES
def test_a_published_port(node, trace, version):
    assert is_traced(published(node, trace, version))


def published(node, trace, version):
    """A datagram from outside to the published port; the rule that sends it to the container."""
    watch, out = runner.watch(trace), node.hosts["out"]
    send_udp(out.where, (NODE[version], PUBLISHED), 1)
    about = {"type": "packet", "dst.address": NODE[version], "dst.port": PUBLISHED}
    (record,) = watch.expect(1, about, timeout_s=15)
    family, web = {4: "ip", 6: "ip6"}[version], node.hosts["web"].ip(version)
    assert (record["nat.dst.address"], record["nat.dst.port"]) == (web, INNER)
    rule = changed(record, node, f"nf {family} PREROUTING", "dnat")
    assert rule["netfilter.chain"] == "DOCKER"
    assert rule["netfilter.path"] == ["PREROUTING", "DOCKER"]
    goal = f"{web}:{INNER}" if version == 4 else f"[{web}]:{INNER}"
    told = f"Sent to another destination by Docker: {goal} publishes the port."
    assert rule["netfilter.object.sentence"] == told
    return rule


@FAMILIES
def test_a_container_to_the_outside(node, trace, version):
    assert is_traced(masqueraded(node, trace, version))


def masqueraded(node, trace, version):
    """A datagram of a container to the outside; the rule that gives it the node's address."""
    watch, web, out, port = runner.watch(trace), node.hosts["web"], node.hosts["out"], new_port()
    send_udp(web.where, (out.ip(version), port), 1)
    about = {"type": "packet", "dst.address": out.ip(version), "dst.port": port}
    (record,) = watch.expect(1, about, timeout_s=15)
    assert record["nat.src.address"] == NODE[version]
    family = {4: "ip", 6: "ip6"}[version]
    rule = changed(record, node, f"nf {family} POSTROUTING", "masquerade")
    assert rule["netfilter.path"] == ["POSTROUTING"]
    sentence = rule["netfilter.object.sentence"]
    assert sentence.startswith("Masqueraded by Docker: it leaves with the node's address")
    return rule
