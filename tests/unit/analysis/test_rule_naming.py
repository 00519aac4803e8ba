"""Traces and readings as the fields of a record."""

import numpy as np
import pytest

from tracer.analysis.objects import RuleObject
from tracer.analysis.rule_fields import INFERRED, TRACED, object_fields, rule_fields
from tracer.analysis.rule_infer import lethal_verdicts
from tracer.analysis.rule_packet import packet_at
from tracer.analysis.rule_trace import knows, rejects, traced_end
from tracer.analysis.ruleset.model import Body, Conntrack, Host, Packet, Rule
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.layout import layout
from tracer.model import Device, Node
from tracer.sinks.text import rule_line

SAVE = """*filter
:FORWARD DROP [0:0]
:A - [0:0]
-A FORWARD -p udp -j A
-A A -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable
-A A -p udp -m udp --dport 54 -j DROP
-A FORWARD -p tcp -j ACCEPT
COMMIT
"""
PLACE = ("ip", "filter", "FORWARD")
DROPPED = {"netfilter.hook": "FORWARD", "netfilter.family": "ip"}


@pytest.fixture(scope="module")
def ruleset():
    return Reader().read(Texts(iptables_legacy=SAVE))


def packet(port, protocol=17):
    ends = {"saddr": "10.0.0.1", "daddr": "10.0.0.2", "sport": 4000, "dport": port}
    return Packet("ip", **ends, protocol=protocol, iif="a", oif="b", ct=Conntrack("invalid"))


@pytest.mark.parametrize(
    ("port", "verdict", "text", "path"),
    [
        (53, "reject", "--dport 53 -j REJECT", ["FORWARD", "A"]),
        (54, "drop", "--dport 54 -j DROP", ["FORWARD", "A"]),
        (55, "drop", None, ["FORWARD"]),
    ],
)
def test_what_the_rules_say(ruleset, port, verdict, text, path):
    record = {**DROPPED, "netfilter.mechanism": "hook"}
    (found,) = lethal_verdicts(ruleset, record, packet(port), Host(frozenset()))
    fields = rule_fields(found.ends[-1], INFERRED)
    assert fields["netfilter.verdict"] == verdict
    assert fields["netfilter.path"] == path
    assert fields["netfilter.backend"] == "iptables-legacy"
    assert fields["netfilter.rule_source"] == "inferred"
    if text:
        assert text in fields["netfilter.rule"]
        assert "netfilter.policy" not in fields
    else:
        assert fields["netfilter.policy"] == "drop"
        assert "netfilter.rule" not in fields


def test_what_the_rules_let_pass_has_no_culprit(ruleset):
    record = {**DROPPED, "netfilter.mechanism": "hook"}
    assert lethal_verdicts(ruleset, record, packet(53, 6), Host(frozenset())) == ()


def test_nf_tables_did_not_drop_by_a_legacy_rule(ruleset):
    record = {**DROPPED, "netfilter.mechanism": "nf_tables"}
    assert lethal_verdicts(ruleset, record, packet(54), Host(frozenset())) == ()


def test_without_a_hook_nothing_is_said(ruleset):
    record = {"netfilter.mechanism": "hook"}
    assert lethal_verdicts(ruleset, record, packet(54), Host(frozenset())) == ()


def test_a_traced_rule_that_is_gone_keeps_its_place(ruleset):
    steps = [("FORWARD", 4, "jump A"), ("A", 9, "drop")]
    assert not knows(ruleset, PLACE, steps)
    fields = rule_fields(traced_end(ruleset, PLACE, steps, "drop", by_policy=False), TRACED)
    assert fields["netfilter.chain"] == "A"
    assert fields["netfilter.handle"] == 9
    assert fields["netfilter.path"] == ["FORWARD", "A"]
    assert "netfilter.rule" not in fields


def test_a_traced_policy(ruleset):
    steps = [("FORWARD", 4, "jump A"), ("A", 9, "return")]
    fields = rule_fields(traced_end(ruleset, PLACE, steps, "drop", by_policy=True), TRACED)
    assert fields["netfilter.policy"] == "drop"
    assert fields["netfilter.chain"] == "FORWARD"
    assert fields["netfilter.path"] == ["FORWARD"]


@pytest.mark.parametrize(
    ("text", "is_reject"),
    [
        ("-A A -j REJECT --reject-with tcp-reset", True),
        ("tcp dport 1 reject with tcp reset", True),
        ("udp dport 53 reject", True),
        ("-A A -j DROP", False),
        ('udp dport 53 comment "rejected" drop', False),
    ],
)
def test_a_reject_is_told_from_a_drop(text, is_reject):
    assert rejects(Rule("ip", "filter", "A", 0, 1, Body(text))) is is_reject


def test_objects_have_the_columns_of_all_records():
    service = RuleObject("kube-proxy", "Service", "shop", "web", "80", "has no endpoints", "S.")
    fields = object_fields(service)
    assert fields["service.namespace"] == "shop"
    assert fields["service.name"] == "web"
    assert fields["service.port"] == "80"
    assert fields["netfilter.object.sentence"] == "S."
    policy = object_fields(RuleObject("calico", "NetworkPolicy", "data", "deny"))
    assert (policy["policy.namespace"], policy["policy.name"]) == ("data", "deny")


def test_the_rule_in_one_line():
    record = {"netfilter.table": "filter", "netfilter.rule": "-A A -j DROP", "netfilter.handle": 3}
    assert rule_line(record) == "rule: -t filter -A A -j DROP # handle 3"
    inferred = {"netfilter.rule": "tcp dport 1 drop", "netfilter.rule_source": "inferred"}
    assert rule_line(inferred) == "rule: tcp dport 1 drop (inferred)"
    assert rule_line({}) == ""


def dropped(hook, family="ip", **fields):
    """The packet of a drop in namespace 7, by ports of a bridge or devices of their own."""
    devices = [Device(7, 1, "br0", "bridge"), Device(7, 2, "port", "veth", master=1),
               Device(7, 3, "left", "veth"), Device(7, 4, "right", "veth")]  # fmt: skip
    node = Node("node1", 1, devices={one.key: one for one in devices})
    event = np.zeros(1, layout().structs["drop_event"])[0]
    for name, value in {"netns": 7, **fields}.items():
        event[name] = value
    here = node.devices[7, int(event["ifindex"])].name
    record = {"interface.name": here, "netfilter.hook": hook, "netfilter.family": family}
    return packet_at(event, record, node)


@pytest.mark.parametrize(
    ("hook", "fields", "devices"),
    [
        ("FORWARD", {"ifindex": 3, "iif": 3, "out_ifindex": 4}, ("left", "right")),
        ("FORWARD", {"ifindex": 3, "iif": 3}, ("left", None)),
        ("FORWARD", {"ifindex": 2, "iif": 1}, ("br0", "br0")),
        ("POSTROUTING", {"ifindex": 2, "iif": 1}, ("", "br0")),
        ("POSTROUTING", {"ifindex": 4, "iif": 3, "out_ifindex": 4}, ("left", "right")),
        ("INPUT", {"ifindex": 3, "iif": 3, "out_ifindex": 1}, ("left", "")),
    ],
)
def test_devices_as_rules_see_them(hook, fields, devices):
    found = dropped(hook, **fields)
    assert (found.iif, found.oif) == devices


@pytest.mark.parametrize(("info", "state"), [(0, "invalid"), (7, "untracked")])
def test_what_is_not_to_be_tracked_is_not_invalid(info, state):
    entry = np.zeros(1, layout().structs["conntrack"])[0]
    entry["info"] = info
    assert dropped("INPUT", ifindex=3, ct=entry).ct.state == state


def test_a_chain_of_the_family_bridge_sees_ports():
    found = dropped("FORWARD", "bridge", ifindex=2, iif=3)
    assert (found.iif, found.oif) == ("left", "port")
    found = dropped("POSTROUTING", "bridge", ifindex=2, iif=3)
    assert (found.iif, found.oif) == ("", "port")
