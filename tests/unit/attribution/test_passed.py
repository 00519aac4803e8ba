"""The trace's visits of packets that passed: each goes to its own hop, or to none."""

import struct

import pytest
from hop_rows import recording

from tracer.analysis.headers import header_key
from tracer.analysis.paths import Assembler, path_records
from tracer.analysis.rule_fields import TRACED, rule_fields
from tracer.analysis.rule_hops import HookHop, changes_by, decisions, hook_hops, packet_of
from tracer.analysis.ruleset.model import Body, End, Passed, Rule
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.attribution import visits
from tracer.attribution.visits import Passing
from tracer.netfilter.nft_trace import Visit

UDP = struct.pack("!HHHH", 4000, 53, 12, 0)


def ipv4(ident=7, last=2):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, ident, 0, 64, 17, 0)
    return head + bytes([10, 0, 0, 1, 10, 0, 0, last])


BEFORE, AFTER = header_key(ipv4(), UDP), header_key(ipv4(last=9), UDP)
HOOKS = {"nat-pre": "prerouting", "raw-pre": "prerouting", "late-pre": "prerouting"}


def visit(chain="nat-pre", network=None, family="ip", verdict="accept"):
    return Visit(family, "t", chain, network or ipv4(), UDP, verdict=verdict)


def hop(*keys, family="ip", hook="prerouting", netns=1, begin=100, end=200):
    return HookHop(0, netns, family, hook, keys or (BEFORE, AFTER), begin, end)


def hook_of(one):
    return HOOKS.get(one.chain, "")


def passing(*given, since=90, until=210):
    made = Passing()
    for one in given:
        made.add(1, one, since, until)
    return made


def test_before_and_after_nat_in_the_order_of_the_trace():
    raw, nat, late = visit("raw-pre"), visit(), visit("late-pre", ipv4(last=9))
    made = passing(raw, nat, late)
    assert made.take(hop(), hook_of) == [raw, nat, late]
    assert len(made) == 0
    assert made.take(hop(), hook_of) == []


@pytest.mark.parametrize(
    "other",
    [
        hop(netns=2),
        hop(family="ip6"),
        hop(family="bridge"),
        hop(hook="forward"),
        hop(AFTER),
        hop(begin=211, end=300),
        hop(begin=10, end=89),
    ],
)
def test_another_place_packet_or_time_is_not_its(other):
    made = passing(visit())
    assert made.take(other, hook_of) == []
    assert len(made.take(hop(), hook_of)) == 1


def test_a_table_of_both_families():
    made = passing(visit(family="inet"))
    assert len(made.take(hop(family="ip6"), hook_of)) == 1


def test_packets_alike_are_told_apart_by_their_order():
    first, second = visit(verdict="drop"), visit()
    made = passing(first, second)
    assert made.take(hop(), hook_of) == [first]
    assert made.take(hop(), hook_of) == [second]


def test_a_chain_that_nobody_knows_is_left_out():
    assert passing(visit("gone")).take(hop(), hook_of) == []


def test_what_nobody_asks_for_does_not_pile_up(monkeypatch):
    monkeypatch.setattr(visits, "KEPT_PASSED", 3)
    made = passing(*(visit(network=ipv4(ident)) for ident in range(5)))
    known = [made.knows(1, (header_key(ipv4(n), UDP),)) for n in range(5)]
    assert known == [False, False, True, True, True]
    assert len(made) == 3
    for _ in range(9):  # all of one packet, as of one that runs in a circle
        made.add(1, visit(), 0, 1)
    assert len(made) <= 3


def test_what_is_not_ip_is_not_kept():
    made = Passing()
    made.add(1, visit(network=b"\0" * 40), 0, 1)
    assert len(made) == 0


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("-A S -p udp -m comment --comment a:dnat -j DNAT --to-destination 10.0.0.9:53", ["dnat"]),
        ("-A P -j MASQUERADE --random-fully", ["masquerade"]),
        ("-A P -j SNAT --to-source 10.0.0.1", ["snat"]),
        ("-A P -p tcp -j REDIRECT --to-ports 1", ["redirect"]),
        ("-A M -j MARK --or-mark 0x4000", ["mark"]),
        ("-A M -m mark --mark 0x4000/0x4000 -j ACCEPT", []),
        ('-A M -m comment --comment "-j DNAT" -j ACCEPT', []),
        ("-A M -j CONNMARK --save-mark", ["conntrack mark"]),
        ("-A M -j CONNMARK --restore-mark", ["mark"]),
        ("ct status dnat ip saddr 10.0.0.1 accept", []),
        ("tcp dport 1 dnat to 10.0.0.9:8080", ["dnat"]),
        ("snat ip6 to fd00::1", ["snat"]),
        ("ct status dnat ip saddr 10.0.0.1 masquerade fully-random", ["masquerade"]),
        ("meta mark set meta mark ^ 0x4000 masquerade fully-random", ["masquerade", "mark"]),
        ("meta l4proto tcp dnat ip to 10.0.0.9:8080", ["dnat"]),
        ('accept comment "never masquerade"', []),
    ],
)
def test_what_a_rule_changes(text, changes):
    assert changes_by(Rule("ip", "nat", "c", 0, 1, Body(text))) == changes


SAVE = """*nat
:PREROUTING ACCEPT [0:0]
:S - [0:0]
:M - [0:0]
-A PREROUTING -j S
-A S -j M
-A S -p udp -j DNAT --to-destination 10.0.0.9:53
-A M -j MARK --or-mark 0x4000
COMMIT
"""


def test_the_rules_that_changed_it_come_before_the_end():
    table = Reader().read(Texts(iptables_legacy=SAVE)).tables["ip", "nat", True]
    (pre,), (to_m, dnat), (mark,) = (table.chains[name].rules for name in ("PREROUTING", "S", "M"))
    taken = [(pre, "jump S"), (to_m, "jump M"), (mark, "continue"), (dnat, "accept")]
    walk = tuple(Passed(rule, verdict) for rule, verdict in taken)
    told = [
        rule_fields(one, TRACED)
        for one in decisions(End(table.chains["PREROUTING"], "accept", dnat, walk))
    ]
    assert [one["netfilter.chain"] for one in told] == ["M", "S"]
    assert [one["netfilter.verdict"] for one in told] == ["continue", "accept"]
    assert [one["netfilter.path"] for one in told] == [
        ["PREROUTING", "S", "M"],
        ["PREROUTING", "S"],
    ]


def test_a_policy_stands_alone():
    table = Reader().read(Texts(iptables_legacy=SAVE)).tables["ip", "nat", True]
    (only,) = decisions(End(table.chains["PREROUTING"], "accept", None))
    assert rule_fields(only, TRACED)["netfilter.policy"] == "accept"


def test_the_hops_of_a_way():
    """Of both its records one hop, which `at` finds in the record."""
    hops, drops, context = recording("service")
    assembler = Assembler()
    assembler.add(hops, drops)
    paths = assembler.take(0, everything=True)
    translated = 0
    for path, record in zip(paths, path_records(paths, context), strict=True):
        found = hook_hops(path)
        wanted = [at for at, hop in enumerate(record["hops"]) if hop["hook"].startswith("nf ")]
        assert [one.at for one in found] == wanted
        for one in found:
            told = record["hops"][one.at]
            assert told["hook"] == f"nf {one.family} {one.hook.upper()}"
            assert told["netns"] == one.netns
            assert one.end_ns - one.begin_ns == told["duration_ns"]
            has_nat = any("NAT " in text for text in told.get("changes", ()))
            assert len(one.keys) == 1 + has_nat
            translated += has_nat
    assert translated


def test_the_packet_that_rules_are_looked_up_with():
    packet = packet_of(ipv4(), UDP)
    ends = packet.family, packet.saddr, packet.sport, packet.daddr, packet.dport, packet.protocol
    assert ends == ("ip", "10.0.0.1", 4000, "10.0.0.2", 53, 17)
