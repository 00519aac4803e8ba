"""The kernel takes what we make of a filter: it passes the verifier and decides as libpcap does.

Needs root, bcc and libpcap; no network and no packets: the program runs on our own
bytes through BPF_PROG_TEST_RUN.
"""

import ctypes
import os
import random
import sys
from pathlib import Path

import pytest

from tracer.kernel import headers, pcap

bcc = pytest.importorskip("bcc", reason="python3-bpfcc (bcc) is not installed")

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "kernel"))
from test_cbpf import EXPRESSIONS, PACKET_BYTES, random_packet, referee  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF needs root")

BPF_PROG_TEST_RUN_BYTES = 64  # any packet: the program does not look at it
HEAD = """
struct sample { u32 caplen; u32 wirelen; u8 packet[PACKET_BYTES]; };
BPF_ARRAY(samples, struct sample, 1);
"""
ENTRY = """
%(function)s
int filter_%(at)d(struct __sk_buff *ctx)
{
	u32 zero = 0;
	struct sample *sample = samples.lookup(&zero);

	if (!sample || sample->caplen > PACKET_BYTES)
		return 7;
	return match_%(at)d(sample->packet, sample->caplen, sample->wirelen);
}
"""


class TestRun(ctypes.Structure):
    """struct bpf_test_run_opts."""

    __test__ = False
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def run(fd):
    """The program's return value."""
    options = TestRun(sz=ctypes.sizeof(TestRun), repeat=1)
    options.data_in = bytes(BPF_PROG_TEST_RUN_BYTES)
    options.data_size_in = BPF_PROG_TEST_RUN_BYTES
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    if libbpf.bpf_prog_test_run_opts(fd, ctypes.byref(options)) != 0:
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
    return options.retval


def test_the_verifier_accepts_and_the_kernel_decides_as_libpcap_does(monkeypatch):
    for name, value in headers.ensure().environment.items():
        monkeypatch.setenv(name, value)
    # One large filter too: the verifier's effort grows with the jumps.
    large = " or ".join(f"(host 10.1.{n}.1 and tcp port {1000 + n})" for n in range(60))
    expressions = [*EXPRESSIONS, large]
    functions = [
        pcap.match_function(text).replace("pcap_match", f"match_{at}")
        for at, text in enumerate(expressions)
    ]
    text = f"#define PACKET_BYTES {PACKET_BYTES}\n" + HEAD
    text += "".join(ENTRY % {"function": code, "at": at} for at, code in enumerate(functions))
    bpf = bcc.BPF(text=text.encode(), cflags=["-Wno-tautological-constant-out-of-range-compare"])
    fds = [
        bpf.load_func(f"filter_{at}".encode(), bcc.BPF.SOCKET_FILTER).fd
        for at in range(len(expressions))
    ]
    rng = random.Random(3)  # noqa: S311 - repeatable, not secret
    samples, matches = bpf[b"samples"], 0
    for _ in range(100):
        packet, more = random_packet(rng), rng.choice([0, 1400])
        sample = samples.Leaf(len(packet), len(packet) + more)
        sample.packet[:] = packet.ljust(PACKET_BYTES, b"\xee")
        samples[0] = sample
        for at, expression in enumerate(expressions):
            with pcap.compiled(expression) as program:
                expected = referee(program, packet, len(packet) + more)
            assert run(fds[at]) == expected, (expression, packet.hex())
            matches += expected
    assert matches > 100
