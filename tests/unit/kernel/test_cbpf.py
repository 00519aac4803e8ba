"""The C that we make of a filter decides as libpcap's own interpreter does, packet by packet."""

import ctypes
import random
import shutil
import struct
import subprocess

import pytest

from tracer.errors import TracerError
from tracer.kernel import pcap
from tracer.kernel.cbpf import (
    ALU,
    ANYWHERE,
    JMP,
    LD,
    LDX,
    MISC,
    RET,
    ST,
    STX,
    Instruction,
    reach,
    reads_below,
    to_c,
)

PACKET_BYTES = 144
WARNINGS = ["-Wall", "-Wno-unused-but-set-variable", "-Wno-type-limits", "-Werror"]
FLAGS = ["-O2", "-shared", "-fPIC", *WARNINGS]
EXPRESSIONS = """\

ip
ip6
arp
tcp
udp
icmp
icmp6
sctp
port 53
portrange 1000-2000
src port 53 or dst port 80
net 10.1.0.0/16
src net 10.1.0.0/24 and not dst host 10.1.0.2
host 10.1.0.2
ip6 host fd00::2
ip6 net fd00::/64
host 10.1.0.2 and (tcp port 80 or udp port 53)
ether host 02:00:00:00:00:01
ether dst ff:ff:ff:ff:ff:ff
ether broadcast
ether multicast
ip multicast
vlan
vlan 5 and udp port 53
greater 100
less 60
len > 70 and len <= 90
len * 2 - 7 > 120
tcp[13] & 2 != 0
tcp[tcpflags] & (tcp-syn|tcp-fin) != 0
tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420
(tcp[tcp[12] >> 2] & 3) ^ 3 = 0
ip[8] < 5
ip[2:2] % 7 = 5
ip[2:2] / ip[8] > 10
udp[4:2] % udp[6:2] < 9000
ip[4:2] << ip[8] > 1000
((ip[4:2] | 1) * 3 - 2) & 0xf = 1
ip[6:2] & 0x1fff != 0
icmp[icmptype] = icmp-unreach
icmp6 and ip6[40] = 135
ip proto 132 or ip6 proto 132
ip[120:2] > 0 or ip[140:4] = 0
host 10.1.0.1 or host 10.1.0.2 or host 10.1.0.3 or port 80 or port 443 or arp or vlan 3
""".splitlines()

HARNESS = """\
#include <stdint.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define PACKET_BYTES %d
%s
typedef int (*filter)(const u8 *, u32, u32);
%s
static const filter filters[] = {%s};
int run(int which, const u8 *pkt, u32 caplen, u32 wirelen)
{
	return filters[which](pkt, caplen, wirelen);
}
"""


def build(tmp_path, functions):
    """Compile the C functions into a library; `.run(which, packet, caplen, wirelen)`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang)")
    entries = "\n".join(
        f"static int f{at}(const u8 *p, u32 c, u32 w) {{ return match_{at}(p, c, w); }}"
        for at in range(len(functions))
    )
    names = ", ".join(f"f{at}" for at in range(len(functions)))
    source = tmp_path / "filters.c"
    source.write_text(HARNESS % (PACKET_BYTES, "\n".join(functions), entries, names))
    subprocess.run(
        [compiler, *FLAGS, "-o", tmp_path / "filters.so", source],
        check=True,
    )
    return ctypes.CDLL(tmp_path / "filters.so")


def libpcap():
    try:
        return pcap.libpcap()
    except TracerError as error:
        pytest.skip(error.message)


def referee(program, packet, wirelen):
    """What libpcap's interpreter says."""
    libpcap()
    return pcap.matches(program, packet, wirelen)


def random_packet(rng):
    """A packet with an Ethernet header that the expressions above have a chance to match."""
    macs = [bytes.fromhex("020000000001"), b"\xff" * 6, bytes.fromhex("01005e000001")]
    v4 = [bytes([10, 1, rng.choice([0, 0, 5]), rng.randrange(1, 5)]) for _ in range(2)]
    v4[1] = rng.choice([v4[1], v4[1], bytes([224, 0, 0, 1])])
    v6 = [bytes.fromhex("fd00") + bytes(13) + bytes([rng.randrange(1, 5)]) for _ in range(2)]
    protocol = rng.choice([1, 6, 6, 17, 17, 58, 132, 99])
    ports = struct.pack("!HH", *(rng.choice([53, 80, 443, 1500]) for _ in range(2)))
    l4 = ports + rng.choice([rng.randbytes(100), struct.pack("!HH", 8, 0) + rng.randbytes(90)])
    if protocol in (1, 58):
        l4 = bytes([rng.choice([3, 8, 135])]) + l4[1:]
    if protocol == 6:
        l4 = l4[:12] + bytes([rng.choice([0x50, 0x80, 0xF0])]) + rng.randbytes(1) + l4[14:]
        l4 = rng.choice([l4, l4[:20] + b"GET " + l4[24:]])
    ttl, options = rng.choice([0, 1, 4, 64]), rng.choice([0, 0, 4])
    fragment = rng.choice([0, 0, 0x4000, 0x2001])
    ip = [0x45 + options // 4, 0, len(l4) + 20, rng.randrange(1 << 16), fragment, ttl, protocol, 0]
    bodies = {
        0x0800: struct.pack("!BBHHHBBH", *ip) + b"".join(v4) + bytes(options) + l4,
        0x86DD: struct.pack("!IHBB", 6 << 28, len(l4), protocol, ttl) + b"".join(v6) + l4,
        0x0806: struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + macs[0] + v4[0] + bytes(6) + v4[1],
        rng.randrange(1 << 16): rng.randbytes(60),
    }
    kind, l3 = rng.choice(list(bodies.items()))
    vlan = struct.pack("!HH", 0x8100, rng.choice([3, 5, 9])) if rng.random() < 0.2 else b""
    frame = rng.choice(macs) + rng.choice(macs) + vlan + struct.pack("!H", kind) + l3
    return frame[: rng.choice([PACKET_BYTES, PACKET_BYTES, rng.randrange(PACKET_BYTES + 1)])]


def test_every_expression_decides_as_libpcap_does(tmp_path):
    libpcap()
    functions = [
        to_c(pcap.instructions(text)).replace("pcap_match", f"match_{at}")
        for at, text in enumerate(EXPRESSIONS)
    ]
    lib, rng = build(tmp_path, functions), random.Random(1)  # noqa: S311 - repeatable, not secret
    packets = [(random_packet(rng), rng.choice([0, 0, 1400])) for _ in range(1500)]
    for at, text in enumerate(EXPRESSIONS):
        seen = set()
        with pcap.compiled(text) as program:
            for packet, more in packets:
                wirelen = len(packet) + more
                expected = referee(program, packet, wirelen)
                buffer = packet.ljust(PACKET_BYTES, b"\xee")
                assert lib.run(at, buffer, len(packet), wirelen) == expected, (text, packet.hex())
                seen.add(expected)
        # A test of an expression that never or always matches would show little.
        assert len(seen) == 2 or not text, text


OFFSETS = [0, 1, 12, 13, 14, 20, 38, 100, 138, 139, 140, 141, 142, 200, 1 << 31, 0xFFFFEFFF]
VALUES = [*OFFSETS, 2, 3, 7, 31, 32, 33, 0xFF, 0xFFFF, 0x0800, 0xFFFFFFFF]
JUMPS, ARITHMETIC = range(0x10, 0x50, 0x10), range(0x00, 0xB0, 0x10)
CELLS, SHIFTS = range(16), range(32)


def random_instruction(rng, room):
    """Any opcode the interpreter takes, with operands that touch its limits."""
    one = rng.choice
    by_x = one([0, 8])
    choices = [
        (LD | one([0x20, 0x40]) | one([0, 8, 16]), one(OFFSETS)),
        (LD | one([0x00, 0x80]), one(VALUES)),
        (LDX | one([0x00, 0x80]), one(VALUES)),
        (LDX | 0xB0, one(OFFSETS)),
        (one([LD, LDX]) | 0x60, one(CELLS)),
        (one([ST, STX]), one(CELLS)),
        (ALU | one([0x00, 0x10, 0x20, 0x40, 0x50, 0xA0]) | by_x, one(VALUES)),
        (ALU | one([0x30, 0x90]) | by_x, one(VALUES[1:])),
        (ALU | one([0x60, 0x70]) | by_x, one(SHIFTS)),
        (ALU | 0x80, 0),
        (MISC | one([0x00, 0x80]), 0),
        (JMP, rng.randrange(room)),
        *[(JMP | one(JUMPS) | by_x, one(VALUES))] * 3,
    ]
    code, k = one([*choices, (RET, one(VALUES))] if rng.random() < 0.1 else choices)
    return Instruction(code, rng.randrange(room), rng.randrange(room), k)


def random_program(rng):
    # libpcap's interpreter does not clear the memory cells: store to each of them first.
    start = [Instruction(ST, 0, 0, cell) for cell in CELLS]
    length = rng.randrange(4, 24)
    body = [random_instruction(rng, length - at) for at in range(length)]
    return [*start, *body, Instruction(RET | 16, 0, 0, 0)]


def test_every_opcode_decides_as_libpcap_does(tmp_path):
    libpcap()
    rng = random.Random(2)  # noqa: S311 - repeatable, not secret
    programs = [random_program(rng) for _ in range(300)]
    functions = [to_c(program, f"match_{at}") for at, program in enumerate(programs)]
    lib, seen = build(tmp_path, functions), set()
    for at, program in enumerate(programs):
        rows = (pcap._Insn * len(program))(*program)
        native = pcap.Program(len(program), rows)
        for _ in range(20):
            packet = random_packet(rng)
            buffer = packet.ljust(PACKET_BYTES, b"\xee")
            expected = referee(native, packet, 1500)
            assert lib.run(at, buffer, len(packet), 1500) == expected, (program, packet.hex())
            seen.add(expected)
    assert seen == {True, False}


def test_zero_divisor_and_wide_shift_follow_the_interpreter():
    zero = [Instruction(ALU | 0x30, 0, 0, 0), Instruction(RET, 0, 0, 1)]
    assert "\treturn 0;" in to_c(zero)
    wide = [Instruction(ALU | 0x60, 0, 0, 40), Instruction(RET, 0, 0, 1)]
    assert "a = 0;" in to_c(wide)


@pytest.mark.parametrize(
    ("expression", "end", "mac"),
    [
        ("", 0, False),
        ("arp", 0, False),
        ("ip host 10.1.2.3", 20, False),
        ("udp port 53", 44, False),
        ("udp port 53 and ip", 24, False),
        ("tcp[13] & 2 != 0 and ip", 34, False),
        ("ip6 host fd00::1", 40, False),
        ("ip[ip[0]] = 7", ANYWHERE, False),
        ("ether host 02:00:00:00:00:01", 0, True),
    ],
)
def test_how_far_it_looks(expression, end, mac):
    libpcap()
    program = pcap.instructions(expression)
    assert (reach(program, 14, 20), reads_below(program, 12)) == (end, mac)


def test_protochain_needs_a_loop_and_says_so():
    libpcap()
    with pytest.raises(TracerError, match="protochain 6': it needs a loop"):
        pcap.match_function("ip protochain 6")


def test_what_is_not_in_the_packet_is_refused():
    libpcap()
    with pytest.raises(TracerError, match="inbound': it asks for what is not in the packet"):
        pcap.match_function("inbound")


def test_unknown_opcode_is_refused():
    with pytest.raises(ValueError, match="0xf4 is not classic BPF"):
        to_c([Instruction(0xF4, 0, 0, 0)])


def test_syntax_error_names_the_filter():
    libpcap()
    with pytest.raises(TracerError, match=r"filter 'tcp prot 80': .*syntax error") as caught:
        pcap.match_function("tcp prot 80")
    assert caught.value.hint


def test_missing_library_names_the_package(monkeypatch):
    monkeypatch.setattr(pcap, "_SONAMES", ("libpcap.so.none",))
    pcap.libpcap.cache_clear()
    with pytest.raises(TracerError, match="not installed") as caught:
        pcap.match_function("tcp")
    assert "libpcap0.8" in caught.value.hint
    pcap.libpcap.cache_clear()


@pytest.mark.parametrize(
    ("expression", "is_accepted"),
    [("", True), ("udp port 7", True), ("host 10.0.0.1", True), ("arp", False)],
)
def test_whether_it_accepts_any(expression, is_accepted):
    assert pcap.accepts_any(expression, "ip or ip6") == is_accepted
