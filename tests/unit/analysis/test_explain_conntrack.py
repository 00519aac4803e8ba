"""Drops that conntrack causes, told from those of rules in the same hooks."""

from __future__ import annotations

import pytest

from tracer.analysis.explain import explain, wanted_evidence
from tracer.analysis.rules_conntrack import COUNT, MAX, why_invalid

DROP = {
    "drop.reason": "NETFILTER_DROP",
    "drop.location": "nf_hook_slow+0xb1",
    "netfilter.mechanism": "hook",
    "netfilter.family": "ip",
    "netfilter.hook": "PREROUTING",
    "transport": "udp",
}
NEW = {"netfilter.hook": "POSTROUTING", "conntrack.state": "new", "conntrack.status": []}


@pytest.mark.parametrize(
    ("evidence", "is_full"),
    [
        ({COUNT: "262144", MAX: "262144"}, True),
        ({COUNT: "250000", MAX: "262144"}, True),
        ({COUNT: "12", MAX: "262144"}, False),
        ({COUNT: "12"}, False),
        ({}, False),
    ],
)
def test_a_full_table_needs_a_proof(evidence, is_full):
    assert set(wanted_evidence(DROP)) == {COUNT, MAX}
    sentence = explain(DROP, evidence).sentence
    assert ("is full" in sentence) == is_full
    assert ("hook function" in sentence) == (not is_full)


def test_a_rule_that_is_known_did_it():
    full = {COUNT: "10", MAX: "10"}
    assert "is full" not in explain({**DROP, "netfilter.verdict": "drop"}, full).sentence
    assert "is full" not in explain({**DROP, "conntrack.state": "new"}, full).sentence
    assert "is full" not in explain({**DROP, "netfilter.hook": "FORWARD"}, full).sentence


def test_an_entry_that_could_not_be_made():
    assert "insert failed" in explain(DROP | NEW, {}).sentence
    confirmed = DROP | NEW | {"conntrack.status": ["confirmed"]}
    assert "insert failed" not in explain(confirmed, {}).sentence


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"transport": "icmp"}, "answers"),
        ({"transport": "tcp", "tcp.flags": "RST,ACK"}, "resets"),
        ({"transport": "tcp", "tcp.flags": "SYN,ACK"}, "has not seen the SYN"),
        ({"transport": "tcp", "tcp.flags": "ACK"}, "outside of its window"),
    ],
)
def test_why_a_packet_is_invalid(record, wanted):
    assert wanted in why_invalid(record)
