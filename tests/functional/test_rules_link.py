"""Drops in chains of the families bridge and arp, and at a device, name their rule."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from lab import runner, wire
from lab.expect import NETFILTER, place, say, udp
from lab.rules import nft
from lab.traffic import new_port, send_udp
from lab.wired import Wire, wired

COUNT = 7
WAIT_S = 15
BRIDGE = "br0"
WIRES = {
    "one": Wire(BRIDGE, "10.251.0.2/24", "fd00:10:251::2/64", bridge=True),
    "two": Wire(BRIDGE, "10.251.0.3/24", "fd00:10:251::3/64", bridge=True),
}
GATEWAY = {4: "10.251.0.1", 6: "fd00:10:251::1"}
SOURCES = {"traced": "--rules", "inferred": "--rules=read"}
OWN = "net 10.251.0.0/24 or net fd00:10:251::/64 or arp"
VERSIONS = pytest.mark.parametrize("version", [4, 6])
PORT = "to-one"
SOMEBODYS = f"""table bridge somebodys {{
  chain prerouting {{ type filter hook prerouting priority 10; policy accept; }}
}}
table netdev somebodys {{
  chain ingress {{ type filter hook ingress devices = {{ {PORT}, gone0 }} priority 10; }}
}}
"""
"""Where nobody has such rules when it looks, tracer traces neither bridges nor devices."""


@pytest.fixture(scope="module")
def node(_alone):
    with wired("link", WIRES) as made:
        for key in ("iptables", "ip6tables", "arptables"):
            made.node.sysctl(f"bridge/bridge-nf-call-{key}", 0)
        acquaint(made)
        made.node.ip("link add gone0 type bridge")
        made.node.run("nft", "-f", "-", stdin=SOMEBODYS)
        yield made


def acquaint(made):
    """The hosts know each other's link address: nothing but the test's own frames is sent."""
    one, two = made.hosts["one"], made.hosts["two"]
    for host, other in ((one, two), (two, one)):
        address = wire.mac_of(other.where, "eth0").hex(":")
        for version in (4, 6):
            peer = other.ip(version)
            host.where.ip(f"neigh replace {peer} lladdr {address} dev eth0 nud permanent")


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.param


@pytest.fixture(scope="module")
def drops(node, source):  # noqa: ARG001 - the rules are there before it looks
    with runner.running("drops", OWN, "-o", "json", SOURCES[source]) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.code == 0, done.err


@pytest.fixture
def watch(drops):
    return runner.watch(drops)


@contextmanager
def jumping(where, family, hook, rule):
    """A base chain whose second rule jumps to where `rule` is, after one that never matches."""
    base = f"type filter hook {hook} priority 20; policy accept"
    text = (
        f"table {family} tracer-tests {{\n chain inner {{ {rule}; }}\n"
        f' chain c {{ {base}; iifname "nobody" drop; jump inner; }}\n}}\n'
    )
    where.run("nft", "-f", "-", stdin=text)
    try:
        yield
    finally:
        where.run("nft", "delete", "table", family, "tracer-tests")


def told(family, hook, text, source):
    return NETFILTER | {
        "netfilter.rule_source": source,
        "netfilter.family": family,
        "netfilter.backend": "nft",
        "netfilter.hook": hook.upper(),
        "netfilter.table": "tracer-tests",
        "netfilter.chain": "inner",
        "netfilter.path": ["c", "inner"],
        "netfilter.rule": text,
        "netfilter.handle": lambda handle: handle > 0,
        "netfilter.verdict": "drop",
    }


@VERSIONS
@pytest.mark.parametrize("hook", ["prerouting", "forward", "postrouting", "input", "output"])
def test_a_rule_of_the_bridge(node, watch, source, hook, version):
    port, one = new_port(), node.hosts["one"]
    sender = node.node if hook == "output" else one.where
    to = GATEWAY[version] if hook == "input" else node.hosts["two"].ip(version)
    came = GATEWAY[version] if hook == "output" else one.ip(version)
    with jumping(node.node, "bridge", hook, f"udp dport {port} drop"):
        send_udp(sender, (to, port), COUNT)
        found = watch.expect(COUNT, udp(came, to, port), WAIT_S)
    wanted = told("bridge", hook, f"udp dport {port} drop", source)
    say(found, wanted | place(node.node), "chain inner", "bridge tracer-tests")


@VERSIONS
@pytest.mark.parametrize("family", ["netdev", "inet"])
def test_a_rule_of_a_device(node, watch, source, family, version):
    """Before all other hooks: it is traced where a chain was there when tracer looked."""
    port, one, to = new_port(), node.hosts["one"], node.hosts["two"].ip(version)
    with jumping(node.node, family, f"ingress device {PORT}", f"udp dport {port} drop"):
        send_udp(one.where, (to, port), COUNT)
        found = watch.expect(COUNT, udp(one.ip(version), to, port), WAIT_S)
    wanted = told(family, "ingress", f"udp dport {port} drop", source)
    say(found, wanted | place(node.node, PORT), "chain inner", f"{family} tracer-tests")


def test_a_rule_for_arp(node, watch):
    """Nothing of ARP is traced by its headers: it is inferred, whatever was asked for."""
    one = node.hosts["one"]
    request = wire.arp_request(wire.mac_of(one.where, "eth0"), one.ip4, GATEWAY[4])
    rule = f"arp operation request arp saddr ip {one.ip4} drop"
    with jumping(node.node, "arp", "input", rule):
        wire.send_frames(one.where, "eth0", request, COUNT)
        about = {"type": "drop", "network.type": "arp", "src.address": one.ip4}
        found = watch.expect(COUNT, about, WAIT_S)
    say(found, told("arp", "input", rule, "inferred") | place(node.node), "arp tracer-tests")


def test_a_policy_for_arp(node, watch):
    """Who asks for the node's address and finds no rule that lets the question pass."""
    two = node.hosts["two"]
    request = wire.arp_request(wire.mac_of(two.where, "eth0"), two.ip4, GATEWAY[4])
    with nft(node.node, "arp", "input", f"arp saddr ip != {two.ip4} accept; policy drop"):
        wire.send_frames(two.where, "eth0", request, COUNT)
        about = {"type": "drop", "network.type": "arp", "src.address": two.ip4}
        found = watch.expect(COUNT, about, WAIT_S)
    wanted = NETFILTER | {"netfilter.policy": "drop", "netfilter.chain": "c"}
    say(found, wanted | {"netfilter.rule_source": "inferred"}, "policy")


def test_a_device_that_goes_takes_no_trace_with_it(node):
    """Our chain stands at two devices, and is in the way of neither's end."""
    port, one, to = new_port(), node.hosts["one"], node.hosts["two"].ip4
    with (
        jumping(node.node, "netdev", f"ingress device {PORT}", f"udp dport {port} drop"),
        runner.running("drops", "-o", "json", f"udp port {port}", "--rules") as live,
    ):
        table = ("nft", "list", "table", "netdev", f"tracer-{live.process.pid}")
        assert "gone0" in node.node.run(*table)
        node.node.ip("link delete gone0")
        watch = runner.watch(live)
        send_udp(one.where, (to, port), COUNT)
        found = watch.expect(COUNT, udp(one.ip4, to, port), WAIT_S)
        done = live.stop()
    assert done.code == 0, done.err
    say(found, told("netdev", "ingress", f"udp dport {port} drop", "traced"))
    assert "tracer-" not in node.node.run("nft", "list", "tables").replace("tracer-tests", "")
