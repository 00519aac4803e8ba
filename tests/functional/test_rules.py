"""Drops name their rule: hook, table, chain, text and handle, traced and inferred."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest
from lab import runner, topology
from lab.expect import NETFILTER, place, say, tcp, udp
from lab.rules import iptables, nft
from lab.traffic import new_port, open_tcp, send_udp

COUNT = 5
MODES = ("trace", "read")
SOURCES = {"trace": "traced", "read": "inferred"}
FAMILIES = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def named(mode, routed):  # noqa: ARG001 - all is there before it looks
    with runner.running("drops", "-o", "json", f"--rules={mode}") as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.code == 0, done.err


@pytest.fixture
def watch(named):
    return runner.watch(named)


@pytest.fixture
def source(mode):
    return {"netfilter.rule_source": SOURCES[mode]}


class Way(NamedTuple):
    """Which namespace drops, and the datagrams that meet each hook of it."""

    where: object
    sender: object
    to: str


def way(routed, hook, version):
    left, right, router = routed.left, routed.right, routed.router
    gateway = {4: "10.246.1.1", 6: "fd00:10:246:1::1"}[version]
    return {
        "prerouting": Way(router, left.where, right.ip(version)),
        "forward": Way(router, left.where, right.ip(version)),
        "postrouting": Way(router, left.where, right.ip(version)),
        "input": Way(router, left.where, gateway),
        "output": Way(router, router, right.ip(version)),
        "pod output": Way(left.where, left.where, right.ip(version)),
        "pod input": Way(right.where, left.where, right.ip(version)),
    }[hook]


def rule(table, chain, text, **others):
    wanted = {"netfilter.table": table, "netfilter.chain": chain, "netfilter.rule": text}
    return wanted | {f"netfilter.{name}": value for name, value in others.items()}


def about(path, port, transport=udp):
    return {**transport("", path.to, port), "src.address": bool, "network.type": bool}


def has_handle(record):
    return record["netfilter.handle"] > 0


@FAMILIES
@pytest.mark.parametrize(
    "hook",
    ["prerouting", "forward", "postrouting", "input", "output", "pod output", "pod input"],
)
def test_nft_rule_in_every_hook(routed, watch, source, hook, version):
    port, path = new_port(), way(routed, hook, version)
    with nft(path.where, "inet", hook.split()[-1], f"udp dport {port} drop"):
        send_udp(path.sender, (path.to, port), COUNT)
        found = watch.expect(COUNT, about(path, port))
    wanted = rule("tracer-tests", "c", f"udp dport {port} drop", verdict="drop", path=["c"])
    wanted |= {"netfilter.hook": hook.split()[-1].upper(), "netfilter.backend": "nft"}
    say(found, NETFILTER | place(path.where) | wanted | source, "chain c", "inet tracer-tests")
    assert all(map(has_handle, found))


@contextmanager
def user_chain(where, tool, port, target, chain="TRACER-A"):
    """FORWARD → TRACER-A → TRACER-B, where the rule is."""
    inner = "TRACER-B"
    with ExitStack() as undo:
        for name in (chain, inner):
            where.run(tool, "-w", "-N", name)
            undo.callback(where.run, tool, "-w", "-X", name)
        undo.enter_context(
            iptables(where, tool, inner, "-p", "udp", "--dport", str(port), "-j", target)
        )
        undo.enter_context(iptables(where, tool, chain, "-j", inner))
        undo.enter_context(iptables(where, tool, "FORWARD", "-p", "udp", "-j", chain))
        yield


@FAMILIES
@pytest.mark.parametrize("target", ["DROP", "REJECT"])
def test_iptables_nft_rule_reached_by_jumps(routed, watch, source, version, target):
    port, path = new_port(), way(routed, "forward", version)
    tool, family = {4: ("iptables-nft", "ip"), 6: ("ip6tables-nft", "ip6")}[version]
    with user_chain(path.where, tool, port, target):
        send_udp(path.sender, (path.to, port), COUNT)
        found = watch.expect(COUNT, about(path, port))
    wanted = rule(
        "filter",
        "TRACER-B",
        lambda text: text.startswith(f"-A TRACER-B -p udp -m udp --dport {port} -j {target}"),
        family=family,
        backend="iptables-nft",
        verdict=target.lower(),
        path=["FORWARD", "TRACER-A", "TRACER-B"],
    )
    did = {"DROP": "dropped", "REJECT": "rejected"}[target]
    say(found, NETFILTER | place(path.where) | wanted | source, did, "chain TRACER-B", "forward →")
    assert all(map(has_handle, found))


@pytest.mark.parametrize(("tool", "version"), [("iptables-legacy", 4), ("ip6tables-legacy", 6)])
def test_iptables_legacy_rules_are_read(named, version, tool):
    """Its TRACE target would need a rule among others' rules: it is never traced."""
    with topology.routed("-legacy") as own:
        port, path = new_port(), way(own, "forward", version)
        watch = runner.watch(named)
        with user_chain(path.where, tool, port, "DROP"):
            send_udp(path.sender, (path.to, port), COUNT)
            found = watch.expect(COUNT, about(path, port))
    text = f"-A TRACER-B -p udp -m udp --dport {port} -j DROP"
    wanted = rule("filter", "TRACER-B", text, path=["FORWARD", "TRACER-A", "TRACER-B"])
    wanted |= {"netfilter.backend": "iptables-legacy", "netfilter.rule_source": "inferred"}
    say(found, NETFILTER | wanted, "inferred")


@FAMILIES
def test_policy_of_a_base_chain(routed, watch, source, version):
    port, path = new_port(), way(routed, "forward", version)
    spec = "type filter hook forward priority 5; policy drop; udp dport != {} accept;"
    path.where.run("nft", "-f", "-", stdin=_table("inet", "policed", spec.format(port)))
    try:
        send_udp(path.sender, (path.to, port), COUNT)
        found = watch.expect(COUNT, about(path, port))
    finally:
        path.where.run("nft", "delete", "table", "inet", "policed")
    wanted = rule("policed", "c", None, policy="drop", verdict="drop", path=["c"], priority=5)
    say(found, NETFILTER | place(path.where) | wanted | source, "policy")


def _table(family, name, chain):
    return f"table {family} {name} {{\n chain c {{ {chain} }};\n}}\n"


@FAMILIES
def test_nft_reject(routed, watch, source, version):
    port, path = new_port(), way(routed, "input", version)
    with nft(path.where, "inet", "input", f"tcp dport {port} reject with tcp reset"):
        assert isinstance(open_tcp(path.sender, (path.to, port)), ConnectionRefusedError)
        found = watch.expect(1, about(path, port, tcp))
    text = f"tcp dport {port} reject with tcp reset"
    wanted = rule("tracer-tests", "c", text, verdict="reject")
    say(found, NETFILTER | place(path.where) | wanted | source, "rejected")


@pytest.mark.parametrize("killer", ["iptables-nft", "inet", "ip"])
def test_three_families_in_one_hook(routed, watch, source, killer):
    """The same match in tables of iptables-nft, inet and ip, by priority: the one that drops."""
    port, path = new_port(), way(routed, "forward", 4)
    chain = "type filter hook forward priority {}; udp dport {} counter {};"
    target = "DROP" if killer == "iptables-nft" else "ACCEPT"
    try:
        for family, priority in (("inet", 3), ("ip", 4)):
            verdict = "drop" if family == killer else "accept"
            text = _table(family, "twofold", chain.format(priority, port, verdict))
            path.where.run("nft", "-f", "-", stdin=text)
        words = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", target)
        with iptables(path.where, "iptables-nft", *words):
            send_udp(path.sender, (path.to, port), COUNT)
            found = watch.expect(COUNT, about(path, port))
    finally:
        for family in ("inet", "ip"):
            path.where.run("nft", "delete", "table", family, "twofold", check=False)
    if killer == "iptables-nft":
        text = f"-A FORWARD -p udp -m udp --dport {port} -j DROP"
        wanted = rule("filter", "FORWARD", text, family="ip", backend="iptables-nft", priority=0)
    else:
        wanted = rule("twofold", "c", lambda text: str(text).endswith("drop"), family=killer)
    say(found, NETFILTER | wanted | source, f"table {wanted['netfilter.family']}")


@pytest.mark.parametrize("family", ["netdev", "inet"])
def test_a_chain_of_a_device(routed, watch, family):
    """Before all hooks where packets are marked for the trace; the other device's is not it."""
    port, path = new_port(), way(routed, "forward", 4)
    other = 'type filter hook ingress device "to-right" priority 0; udp dport != 0 drop;'
    path.where.run("nft", "-f", "-", stdin=_table(family, "other-device", other))
    try:
        with nft(path.where, family, "ingress device to-left", f"udp dport {port} drop"):
            send_udp(path.sender, (path.to, port), COUNT)
            found = watch.expect(COUNT, {**about(path, port), "src.address": routed.left.ip4})
    finally:
        path.where.run("nft", "delete", "table", family, "other-device")
    wanted = rule("tracer-tests", "c", f"udp dport {port} drop", verdict="drop", path=["c"])
    wanted |= {"netfilter.hook": "INGRESS", "netfilter.rule_source": "inferred"}
    say(found, NETFILTER | place(path.where) | wanted, f"table {family} tracer-tests")


def test_a_rule_that_is_gone_when_its_drop_is_looked_at(routed, watch, source):
    """Rules come and go with every packet: none is taken for another."""
    path = way(routed, "forward", 4)
    for _ in range(3):
        port = new_port()
        with nft(path.where, "inet", "forward", f"udp dport {port} drop"):
            send_udp(path.sender, (path.to, port), 1)
            found = watch.expect(1, about(path, port))
        say(found, NETFILTER | rule("tracer-tests", "c", f"udp dport {port} drop") | source)
