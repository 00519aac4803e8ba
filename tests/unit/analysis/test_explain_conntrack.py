"""Drops that conntrack causes, told from those of rules in the same hooks."""

from __future__ import annotations

import pytest

from tracer.analysis.checksum import is_wrong
from tracer.analysis.explain import explain, wanted_evidence
from tracer.analysis.rules_conntrack import COUNT, LOOSE, MAX, why_invalid

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
        ({"transport": "tcp", "tcp.flags": ""}, "contradict"),
        ({"transport": "tcp", "tcp.flags": "FIN,SYN"}, "contradict"),
        ({"transport": "udp", "transport.checksum": "wrong"}, "checksum"),
    ],
)
def test_why_a_packet_is_invalid(record, wanted):
    assert wanted in why_invalid(record, {})
    for loose in ("0", "1"):
        has_syn = "without a SYN" in why_invalid(record, {LOOSE: loose})
        assert has_syn == (loose == "0" and record.get("tcp.flags") == "ACK")


def test_whether_a_syn_is_needed_is_asked_where_it_matters():
    ack = {**DROP, "netfilter.hook": "FORWARD", "transport": "tcp", "tcp.flags": "ACK"}
    assert LOOSE in wanted_evidence(ack)
    assert "without a SYN" in explain(ack, {LOOSE: "0"}).hint
    for other in ({"tcp.flags": "SYN"}, {"tcp.flags": "RST"}, {"conntrack.state": "new"}):
        assert LOOSE not in wanted_evidence(ack | other)


TCP = bytes.fromhex(
    "4500002800000000400626cc0a0000010a0000020fa00fa00000000100000001501020005c900000"
)
"""An IPv4 packet with a TCP header without data."""


@pytest.mark.parametrize(
    ("at", "value", "wrong"),
    [(36, None, False), (36, b"\x12\x34", True), (36, b"\x14\x1d", False), (6, b"\x20\0", False)],
)
def test_a_wrong_checksum_is_seen(at, value, wrong):
    """As it is, spoilt, left to the device (the sum of the pseudo header), and in a fragment."""
    packet = bytearray(TCP)
    if value:
        packet[at : at + 2] = value
    assert is_wrong(bytes(packet)) == wrong


def test_what_has_no_checksum_that_could_be_told():
    udp = bytearray(TCP[:20] + bytes.fromhex("0fa00fa000080000"))
    udp[9] = 17
    assert not is_wrong(bytes(udp)), "UDP may do without"
    assert not is_wrong(b"")
    assert not is_wrong(bytes(64))
    assert not is_wrong(TCP[:24])
