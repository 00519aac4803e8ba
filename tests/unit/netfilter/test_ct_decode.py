"""ctnetlink messages, as a 6.18 kernel sent them, and their records."""

from __future__ import annotations

import socket
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.analysis.addresses import address_bytes
from tracer.ct_layout import ENTRY, TUPLE, Event, Has
from tracer.netfilter import ctnetlink
from tracer.netfilter.ct_decode import MAX_TEMPLATES, Decoder, message_starts

CT_NEW, CT_DELETE, EXP_NEW = 0x100, 0x102, 0x200
CREATE, MULTI = 0x600, 0x2


def attribute(kind, *parts):
    """One attribute, of bytes or of nested attributes."""
    value = b"".join(parts)
    nested = 0x8000 if kind & 0x10000 else 0
    head = struct.pack("=HH", 4 + len(value), (kind & 0xFFFF) | nested)
    return head + value + bytes(-len(value) % 4)


def nested(kind, *parts):
    return attribute(kind | 0x10000, *parts)


def addresses(src, dst):
    if ":" in src:
        pack, first = (lambda text: socket.inet_pton(socket.AF_INET6, text)), 3
    else:
        pack, first = socket.inet_aton, 1
    return nested(1, attribute(first, pack(src)), attribute(first + 1, pack(dst)))


def flow(kind, src, dst, protocol, sport, dport):
    ports = attribute(2, struct.pack("!H", sport)) + attribute(3, struct.pack("!H", dport))
    proto = nested(2, attribute(1, bytes([protocol])), ports)
    return nested(kind, addresses(src, dst), proto)


def u32(kind, value):
    return attribute(kind, struct.pack("!I", value))


def message(kind, flags, *attributes, family=2, portid=0):
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, portid) + body


def udp_event(number, kind=CT_NEW, flags=CREATE, **more):
    src, dst = f"10.0.{number >> 8 & 255}.{number & 255}", "10.1.0.1"
    return message(
        kind,
        flags,
        flow(1, src, dst, 17, 1000 + number, 53),
        flow(2, dst, src, 17, 53, 1000 + number),
        u32(12, 7_000_000 + number),
        u32(3, 8),
        u32(7, 30),
        **more,
    )


def decode(*messages, decoder=None):
    data = b"".join(messages)
    starts = list(message_starts(memoryview(data), 0, len(data)))
    buffer = np.frombuffer(data, np.uint8)
    return (decoder or Decoder()).decode(buffer, np.array(starts, np.intp))


def test_every_field_of_a_tcp_entry():
    counters = attribute(1, struct.pack("!Q", 3)) + attribute(2, struct.pack("!Q", 180))
    times = attribute(1, struct.pack("!Q", 1 << 60)) + attribute(2, struct.pack("!Q", 1 << 61))
    (row,) = decode(
        message(
            CT_DELETE,
            0,
            flow(1, "10.0.0.1", "10.96.0.1", 6, 4000, 80),
            flow(2, "10.0.0.9", "10.0.0.1", 6, 8080, 4000),
            u32(12, 99),
            u32(3, 0x20E),
            u32(7, 117),
            nested(4, nested(1, attribute(1, b"\x07"), attribute(2, b"\x0a"))),
            nested(9, counters),
            nested(20, times),
            u32(8, 0x4000),
            attribute(18, struct.pack("!H", 7)),
            attribute(22, struct.pack("=QQ", 1 << 5, 1)),
            nested(5, attribute(1, b"ftp\0")),
            attribute(27, struct.pack("!Q", 5)),
            portid=4242,
        )
    )
    assert row["event"] == Event.DESTROY
    assert row["portid"] == 4242
    assert row["family"] == 2
    assert row["orig"]["daddr"].tobytes() == address_bytes("10.96.0.1")
    assert (row["orig"]["sport"], row["orig"]["dport"], row["orig"]["protocol"]) == (4000, 80, 6)
    assert row["reply"]["saddr"].tobytes() == address_bytes("10.0.0.9")
    assert (row["id"], row["status"], row["timeout_s"]) == (99, 0x20E, 117)
    assert (row["proto_state"], row["mark"], row["zone"]) == (7, 0x4000, 7)
    assert (row["orig_packets"], row["orig_bytes"]) == (3, 180)
    assert (row["start_ns"], row["stop_ns"], row["event_ns"]) == (1 << 60, 1 << 61, 5)
    assert row["labels"].tolist() == [1 << 5, 1]
    assert row["helper"] == b"ftp"
    assert row["present"] == Has.TIMEOUT | Has.PROTO_STATE | Has.COUNTERS | Has.TIMES


def test_icmp_ipv6_and_expectations():
    proto = nested(2, attribute(1, b"\x3a"), attribute(7, b"\0\x4d"), attribute(8, b"\x80"))
    ping = message(CT_NEW, CREATE, nested(1, addresses("fd00::1", "fd00::2"), proto), family=10)
    expect = message(
        EXP_NEW,
        CREATE,
        flow(1, "10.0.0.1", "10.0.0.2", 6, 4000, 21),
        flow(2, "10.0.0.1", "10.0.0.2", 6, 0, 40001),
        flow(3, "255.255.255.255", "255.255.255.255", 6, 0, 0xFFFF),
    )
    six, four = decode(ping, expect)
    assert six["orig"]["saddr"].tobytes() == address_bytes("fd00::1")
    assert (six["orig"]["sport"], six["orig"]["icmp_id"]) == (128, 77)
    assert four["event"] == Event.EXPECT_NEW
    assert four["orig"]["dport"] == 40001
    assert four["master"]["dport"] == 21
    assert four["present"] == Has.MASTER


def test_new_update_destroy_and_listed():
    rows = decode(
        udp_event(1),
        udp_event(1, flags=0),
        udp_event(1, CT_DELETE, 0),
        udp_event(1, flags=MULTI),
    )
    assert rows["event"].tolist() == [Event.NEW, Event.UPDATE, Event.DESTROY, Event.LISTED]


def test_many_of_several_shapes_keep_their_order():
    decoder = Decoder()
    wanted = []
    messages = []
    for number in range(500):
        kind = (CT_NEW, CT_DELETE)[number % 3 == 0]
        extra = (u32(8, number),) if number % 2 else ()
        raw = udp_event(number, kind, 0)
        if extra:
            raw = struct.pack("=I", len(raw) + 8) + raw[4:] + extra[0]
        messages.append(raw)
        wanted.append((1000 + number, number if number % 2 else 0))
    for _ in range(2):
        rows = decode(*messages, decoder=decoder)
        got = list(zip(rows["orig"]["sport"].tolist(), rows["mark"].tolist(), strict=True))
        assert got == wanted


def test_one_length_but_other_attributes():
    """The same length does not mean the same shape: mark here, zone and padding there."""
    mark, use = u32(8, 5), u32(11, 6)
    one, other = (udp_event(1) + extra for extra in (mark, use))
    sized = [struct.pack("=I", len(raw)) + raw[4:] for raw in (one, other, one)]
    assert decode(*sized)["mark"].tolist() == [5, 0, 5]


def test_templates_do_not_grow_for_ever():
    decoder = Decoder()
    for number in range(MAX_TEMPLATES + 10):
        raw = udp_event(1) + attribute(5, bytes(number + 1))
        rows = decode(struct.pack("=I", len(raw)) + raw[4:], decoder=decoder)
        assert rows["orig"]["dport"].tolist() == [53]
    assert sum(len(known) for known in decoder._templates.values()) <= MAX_TEMPLATES


@settings(max_examples=200)
@given(st.binary(max_size=300), st.sampled_from([CT_NEW, CT_DELETE, EXP_NEW, 2]))
def test_no_bytes_break_it(body, kind):
    raw = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    rows = decode(raw + bytes(-len(raw) % 4), udp_event(3))
    assert rows["orig"]["sport"][-1] == 1003


@given(st.binary(max_size=200))
def test_any_datagram_is_split_within_itself(data):
    for start in message_starts(memoryview(data), 0, len(data)):
        assert start + 16 <= len(data)


def test_layout_has_no_hidden_padding():
    assert TUPLE.itemsize == sum(TUPLE.fields[name][0].itemsize for name in TUPLE.names)
    assert ENTRY.itemsize == sum(ENTRY.fields[name][0].itemsize for name in ENTRY.names)


class FakeSocket:
    """Answers a request with given datagrams."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def send(self, _request):
        return 0

    def recv(self, _size):
        return self.answers.pop(0)


def test_counters_of_each_cpu():
    def cpu(number, **counters):
        names = {name: ctnetlink.COUNTERS.index(name) for name in counters}
        body = struct.pack("!BBH", 0, 0, number)
        body += b"".join(u32(names[name], value) for name, value in counters.items())
        return struct.pack("=IHHII", 16 + len(body), 0x104, MULTI, 1, 0) + body

    done = struct.pack("=IHHIIi", 20, 3, MULTI, 1, 0, 0)
    sock = FakeSocket(cpu(0, found=5, invalid=2) + cpu(1, drop=1), done)
    found = ctnetlink.stats_cpu(sock)
    assert found == [{"cpu": 0, "found": 5, "invalid": 2}, {"cpu": 1, "drop": 1}]


def test_a_refusal_is_an_oserror():
    refused = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -1) + bytes(16)
    with pytest.raises(PermissionError):
        ctnetlink.count(FakeSocket(refused))
