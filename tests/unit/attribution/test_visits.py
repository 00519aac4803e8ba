"""Visits that wait for their drops: found by headers, in order, each once."""

import struct

from tracer.analysis.headers import header_key, packet_key
from tracer.attribution import visits
from tracer.attribution.visits import Lethal
from tracer.netfilter.nft_trace import Visit

UDP = struct.pack("!HHHH", 4000, 53, 12, 0)


def ipv4(ident=7, ttl=64, fragment=0):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, ident, fragment, ttl, 17, 0)
    return head + bytes([10, 0, 0, 1, 10, 0, 0, 2])


def ipv6(following=17):
    return struct.pack("!IHBB", 6 << 28, 8, following, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"


def visit(network=None, family="inet", verdict="drop", table="t"):
    return Visit(family, table, "c", network or ipv4(), UDP, verdict=verdict)


def test_the_key_holds_what_no_hop_changes():
    assert packet_key(ipv4(ttl=63) + UDP) == header_key(ipv4(), UDP)
    assert packet_key(ipv4(ident=8) + UDP) != header_key(ipv4(), UDP)
    assert packet_key(ipv6() + UDP) == header_key(ipv6(), UDP)
    assert packet_key(ipv4() + UDP) != packet_key(ipv4() + UDP[::-1])


def test_a_later_fragment_and_an_extension_header_hide_ports():
    assert header_key(ipv4(fragment=3), UDP) == header_key(ipv4(fragment=3), b"other")
    assert header_key(ipv6(44), UDP) == header_key(ipv6(44), b"other")
    assert header_key(ipv4(fragment=0x4000), UDP) != header_key(ipv4(fragment=0x4000), b"otherone")


def test_what_is_not_ip_has_no_key():
    assert packet_key(b"") == packet_key(b"\x45short") == header_key(b"\0" * 40, UDP) == b""


def test_each_is_taken_once_in_order():
    lethal, key = Lethal(), packet_key(ipv4() + UDP)
    first, second = visit(table="one"), visit(table="two")
    for one in (first, second):
        lethal.add(1, one)
    assert lethal.take(1, key, "nf_tables", ("inet",)) is first
    assert lethal.take(1, key, "nf_tables", ("inet",)) is second
    assert lethal.take(1, key, "nf_tables", ("inet",)) is None


def test_another_place_family_or_fate_is_not_its():
    lethal, key = Lethal(), packet_key(ipv4() + UDP)
    lethal.add(1, visit())
    lethal.add(1, visit(verdict="accept"))
    assert lethal.take(2, key, "nf_tables", ("inet",)) is None
    assert lethal.take(1, key, "nf_tables", ("ip",)) is None
    assert lethal.take(1, key, "nf_queue", ("inet",)) is None
    assert lethal.take(1, b"", "nf_tables", ("inet",)) is None
    assert lethal.take(1, key, "nf_tables", ("ip", "inet")) is not None


def test_a_queue_may_drop_later():
    lethal, key = Lethal(), packet_key(ipv4() + UDP)
    lethal.add(1, visit(verdict="queue"))
    assert lethal.take(1, key, "nf_queue", ("inet",)).verdict == "queue"


def test_visits_nobody_asks_for_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(visits, "KEPT", 3)
    lethal = Lethal()
    for ident in range(5):
        lethal.add(1, visit(ipv4(ident)))
    found = [lethal.take(1, packet_key(ipv4(n) + UDP), "nf_tables", ("inet",)) for n in range(5)]
    assert [one is not None for one in found] == [False, False, True, True, True]
