"""`tracer drops --rules`: the rule behind a drop, traced by this kernel or read and inferred."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager

import pytest
from lab import runner
from lab.expect import say, udp
from lab.rules import iptables, nft
from lab.traffic import new_port, send_udp
from ways import WAIT_S

COUNT = 5
NAMED_S = 120
SOURCES = {"trace": "traced", "read": "inferred"}


@pytest.fixture(scope="module", params=SOURCES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def named(mode, routed):  # noqa: ARG001 - all is there before it looks
    with runner.running("drops", "-o", "json", f"--rules={mode}") as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.code == 0, done.err
    assert done.records[-1]["lost"] == {}


@pytest.fixture
def watch(named, mode, record_property):
    record_property("way", mode)
    return runner.watch(named)


@pytest.fixture
def source(named, mode, release):
    """How the rules that this kernel can trace become known; what it cannot is said."""
    owned_tables = release >= (5, 12)
    said = "are read, not traced" in named.err
    assert said == (mode == "trace" and not owned_tables), named.err
    return SOURCES[mode if owned_tables else "read"]


def dropped(routed, watch, port):
    """The records of COUNT datagrams from left to right, sent again until their rule is read.

    A ruleset that takes long to read, as here with any, is not read again with every change.
    """
    end = time.monotonic() + NAMED_S
    while True:
        watch.since = len(watch.live.lines)
        send_udp(routed.left.where, (routed.right.ip4, port), COUNT)
        found = watch.expect(COUNT, udp(routed.left.ip4, routed.right.ip4, port), WAIT_S)
        if all("netfilter.rule" in record for record in found) or time.monotonic() > end:
            return found


def test_nft_rule(routed, watch, source):
    port = new_port()
    with nft(routed.router, "inet", "forward", f"udp dport {port} drop"):
        found = dropped(routed, watch, port)
    wanted = {
        "netfilter.hook": "FORWARD",
        "netfilter.backend": "nft",
        "netfilter.table": "tracer-tests",
        "netfilter.chain": "c",
        "netfilter.rule": f"udp dport {port} drop",
        "netfilter.handle": bool,
        "netfilter.rule_source": source,
    }
    say(found, wanted, "chain c", "inet tracer-tests")


@contextmanager
def jump(where, tool, port):
    """FORWARD → TRACER-A, where the rule is."""
    with ExitStack() as undo:
        where.run(tool, "-w", "-N", "TRACER-A")
        undo.callback(where.run, tool, "-w", "-X", "TRACER-A")
        rule = ("TRACER-A", "-p", "udp", "--dport", str(port), "-j", "DROP")
        undo.enter_context(iptables(where, tool, *rule))
        undo.enter_context(iptables(where, tool, "FORWARD", "-p", "udp", "-j", "TRACER-A"))
        yield


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_iptables_rule_reached_by_a_jump(routed, watch, source, tool):
    port = new_port()
    with jump(routed.router, tool, port):
        found = dropped(routed, watch, port)
    wanted = {
        "netfilter.hook": "FORWARD",
        "netfilter.backend": tool,
        "netfilter.table": "filter",
        "netfilter.chain": "TRACER-A",
        "netfilter.rule": f"-A TRACER-A -p udp -m udp --dport {port} -j DROP",
        "netfilter.path": ["FORWARD", "TRACER-A"],
        # Its TRACE target would need a rule among others' rules: legacy is never traced.
        "netfilter.rule_source": "inferred" if tool == "iptables-legacy" else source,
    }
    say(found, wanted, "chain TRACER-A")
