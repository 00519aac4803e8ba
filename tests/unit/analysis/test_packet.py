"""Packets are built byte by byte here, as the RFCs draw them."""

import struct
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.analysis.packet import describe, endpoint, parse, tcp_flags

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD


def ipv4(protocol, payload, fragment=0, options=b"", src="10.1.0.2", dst="10.96.0.10"):
    size = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH", 0x40 + size // 4, 0, size + len(payload), 7, fragment, 64, protocol, 0
    )
    return head + ip_address(src).packed + ip_address(dst).packed + options + payload


def ipv6(following, payload, src="fd00::2", dst="fd00::10"):
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 63)
    return head + ip_address(src).packed + ip_address(dst).packed + payload


def tcp(flags, sport=4000, dport=80):
    return struct.pack("!HHIIHHHH", sport, dport, 1000, 2000, 5 << 12 | flags, 100, 0, 0)


UDP = struct.pack("!HHHH", 5353, 53, 8, 0)


def test_tcp_over_ipv4_gives_every_field():
    assert parse(IPV4, ipv4(6, tcp(0x12), fragment=0x4000)) == {
        "network.type": "ipv4",
        "transport": "tcp",
        "src.address": "10.1.0.2",
        "dst.address": "10.96.0.10",
        "ip.ttl": 64,
        "ip.id": 7,
        "ip.length": 40,
        "ip.df": True,
        "src.port": 4000,
        "dst.port": 80,
        "tcp.seq": 1000,
        "tcp.ack": 2000,
        "tcp.flags": "SYN,ACK",
        "packet": "10.1.0.2:4000 → 10.96.0.10:80 TCP SYN,ACK",
    }


def test_text_of_a_tcp_packet():
    assert describe(parse(IPV4, ipv4(6, tcp(2)))) == "10.1.0.2:4000 → 10.96.0.10:80 TCP SYN"
    assert describe(parse(IPV6, ipv6(6, tcp(2)))) == "[fd00::2]:4000 → [fd00::10]:80 TCP SYN"


def test_ipv4_options_are_skipped():
    assert parse(IPV4, ipv4(17, UDP, options=bytes(12)))["dst.port"] == 53


def test_first_fragment_has_ports_and_later_ones_none():
    first = parse(IPV4, ipv4(17, UDP, fragment=0x2000))
    assert (first["dst.port"], first["ip.fragment.offset"], first["ip.fragment.more"]) == (
        53,
        0,
        True,
    )
    later = parse(IPV4, ipv4(17, UDP, fragment=185))
    assert "dst.port" not in later
    assert (later["ip.fragment.offset"], later["ip.fragment.more"]) == (1480, False)
    assert describe(later) == "10.1.0.2 → 10.96.0.10 UDP fragment at byte 1480"


def test_ipv6_extension_headers_are_walked():
    hop_by_hop = bytes([60, 0, *bytes(6)])
    destination = bytes([51, 1, *bytes(14)])
    authentication = bytes([44, 4, *bytes(22)])
    fragment = struct.pack("!BBHI", 17, 0, 1, 0xABCD)
    record = parse(IPV6, ipv6(0, hop_by_hop + destination + authentication + fragment + UDP))
    assert (record["transport"], record["dst.port"]) == ("udp", 53)
    assert (record["ip.id"], record["ip.fragment.offset"], record["ip.fragment.more"]) == (
        0xABCD,
        0,
        True,
    )


def test_later_ipv6_fragment_keeps_its_protocol_but_has_no_ports():
    record = parse(IPV6, ipv6(44, struct.pack("!BBHI", 17, 0, 1448, 1) + UDP))
    assert (record["transport"], record["ip.fragment.offset"]) == ("udp", 1448)
    assert "src.port" not in record


def test_icmp_error_quotes_the_packet_it_is_about():
    inner = ipv4(17, UDP, src="10.1.0.9", dst="10.1.0.2")
    record = parse(IPV4, ipv4(1, struct.pack("!BBHI", 3, 3, 0, 0) + inner))
    assert (record["icmp.type"], record["icmp.code"]) == (3, 3)
    assert record["icmp.description"] == "port unreachable"
    assert record["icmp.inner"] == "10.1.0.9:5353 → 10.1.0.2:53 UDP"
    assert describe(record) == (
        "10.1.0.2 → 10.96.0.10 ICMP port unreachable (about 10.1.0.9:5353 → 10.1.0.2:53 UDP)"
    )


def test_icmp_words():
    def said(family, kind, code, rest=b"\0\0\0\0"):
        body = struct.pack("!BBH", kind, code, 0) + rest
        packet = (IPV4, ipv4(1, body)) if family == 4 else (IPV6, ipv6(58, body))
        return parse(*packet)["icmp.description"]

    assert said(4, 8, 0, struct.pack("!HH", 5, 9)) == "echo request id 5 seq 9"
    assert said(4, 3, 4, struct.pack("!HH", 0, 1400)) == "fragmentation needed, mtu 1400"
    assert said(4, 11, 0) == "TTL exceeded in transit"
    assert said(4, 3, 99) == "destination unreachable code 99"
    assert said(4, 200, 1) == "type 200 code 1"
    assert said(6, 2, 0, struct.pack("!I", 1280)) == "packet too big, mtu 1280"
    target = ip_address("fd00::7").packed
    assert said(6, 135, 0, bytes(4) + target) == "neighbour solicitation for fd00::7"
    assert said(6, 1, 4) == "port unreachable"


def test_sctp_chunk():
    record = parse(IPV4, ipv4(132, struct.pack("!HHII", 1, 2, 0, 0) + b"\x01"))
    assert describe(record) == "10.1.0.2:1 → 10.96.0.10:2 SCTP INIT"


def test_arp_request():
    sender = bytes.fromhex("020000000001") + ip_address("10.1.0.2").packed
    data = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + sender + bytes(6) + bytes([10, 1, 0, 3])
    assert parse(ARP, data) == {
        "network.type": "arp",
        "arp.operation": "request",
        "src.address": "10.1.0.2",
        "dst.address": "10.1.0.3",
        "arp.sender.mac": "02:00:00:00:00:01",
        "arp.target.mac": "00:00:00:00:00:00",
        "packet": "10.1.0.2 → 10.1.0.3 ARP request",
    }


def test_vlan_tags_are_unwrapped():
    record = parse(0x8100, struct.pack("!HH", 0x2005, IPV4) + ipv4(17, UDP))
    assert (record["vlan.id"], record["dst.port"]) == (5, 53)


def test_unknown_protocols_keep_their_number():
    assert parse(0x88B5, b"") == {"network.type": "0x88b5", "packet": "0x88b5"}
    assert parse(0x88CC, b"")["network.type"] == "lldp"
    assert parse(38, b"")["network.type"] == "llc"
    assert parse(0, b"")["network.type"] == "unknown"
    assert parse(IPV4, ipv4(200, b""))["transport"] == "200"
    assert describe({}) == "UNKNOWN PACKET"


def test_flag_names_and_endpoints():
    assert tcp_flags(0x1FF) == "FIN,SYN,RST,PSH,ACK,URG,ECE,CWR,NS"
    assert tcp_flags(0) == ""
    assert endpoint("fd00::1", 80) == "[fd00::1]:80"
    assert endpoint("fd00::1", None) == "fd00::1"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, IPV4, ARP, IPV6, 0x8100, 0x9999]), st.binary(max_size=128))
def test_no_bytes_raise(ethertype, data):
    describe(parse(ethertype, data))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([1, 6, 17, 58, 132, 0, 44, 51]),
    st.binary(max_size=90),
    st.integers(0, 128),
    st.sampled_from([ipv4, ipv6]),
)
def test_no_cut_raises(protocol, payload, keep, build):
    ethertype = IPV4 if build is ipv4 else IPV6
    describe(parse(ethertype, build(protocol, payload)[:keep]))
