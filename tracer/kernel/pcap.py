"""tcpdump's filter language → C text for our BPF programs; libpcap does the parsing.

The packet a filter sees begins with an Ethernet header, which the BPF side makes up
where the packet has none, so that one program serves every hook.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from tracer.kernel.cbpf import Instruction, reach, reads_below, to_c

if TYPE_CHECKING:
    from collections.abc import Iterator

_SONAMES = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, everyone else's
_DLT_EN10MB = 1
_ETHERNET_BYTES, _ETHERTYPE_AT, _IPV4_BYTES = 14, 12, 20
_SNAPLEN = 262_144
_NETMASK_UNKNOWN = 0xFFFFFFFF


class _Insn(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    """libpcap's `struct bpf_program`."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Insn)))


def match_function(expression: str) -> str:
    """C text of `pcap_match` (see `cbpf.to_c`) for a tcpdump filter expression.

    Before it stand PCAP_REACH, how many bytes behind the link header it reads of a packet without
    IPv4 options, and PCAP_READS_MAC if it reads addresses of the link header.
    An empty expression matches every packet. Names of hosts and services are resolved
    now, by libpcap. Raises TracerError for bad syntax and where libpcap is missing.
    """
    try:
        program = instructions(expression)
        text = to_c(program)
    except ValueError as error:
        raise TracerError(f"filter '{expression}': {error}", "leave that part out") from error
    lines = [f"#define PCAP_REACH {reach(program, _ETHERNET_BYTES, _IPV4_BYTES)}"]
    if reads_below(program, _ETHERTYPE_AT):
        lines.append("#define PCAP_READS_MAC")
    return "\n".join([*lines, text])


def instructions(expression: str) -> list[Instruction]:
    """Return the optimised classic BPF program of a tcpdump filter expression; errors as above."""
    with compiled(expression) as program:
        code = program.instructions[: program.length]
        return [Instruction(one.code, one.jt, one.jf, one.k) for one in code]


def accepts_any(expression: str, of: str) -> bool:
    """Whether a filter accepts any of the packets that another accepts, as libpcap sees through it.

    An empty `expression` accepts everything.
    """
    try:
        with compiled(f"({expression}) and ({of})" if expression else of):
            return True
    except TracerError:  # libpcap's word for a filter that rejects everything
        return False


class _PacketHeader(ctypes.Structure):
    """libpcap's `struct pcap_pkthdr`."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured_bytes", ctypes.c_uint32),
        ("wire_bytes", ctypes.c_uint32),
    )


@contextmanager
def compiled(expression: str) -> Iterator[Program]:
    """Yield libpcap's own form of the filter, valid inside the block; errors as above."""
    lib, program = libpcap(), Program()
    handle = lib.pcap_open_dead(_DLT_EN10MB, _SNAPLEN)
    try:
        text = expression.encode()
        if lib.pcap_compile(handle, ctypes.byref(program), text, 1, _NETMASK_UNKNOWN) != 0:
            complaint = lib.pcap_geterr(handle).decode(errors="replace")
            raise TracerError(f"filter '{expression}': {complaint}", "man 7 pcap-filter")
        yield program
    finally:
        lib.pcap_freecode(ctypes.byref(program))
        lib.pcap_close(handle)


def matches(program: Program, packet: bytes, wire_bytes: int) -> bool:
    """Whether a compiled filter accepts a packet, Ethernet header first, without any kernel.

    `packet` may be cut short; `wire_bytes` is the length it had.
    """
    header = _PacketHeader(0, 0, len(packet), wire_bytes)
    return bool(libpcap().pcap_offline_filter(program, header, packet))


@cache
def libpcap() -> ctypes.CDLL:
    """Load the shared library and declare its prototypes; TracerError where it is missing."""
    for soname in _SONAMES:
        try:
            lib = ctypes.CDLL(soname)
        except OSError:
            continue
        lib.pcap_open_dead.restype = ctypes.c_void_p
        lib.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
        lib.pcap_compile.argtypes = [
            ctypes.c_void_p,
            ctypes.POINTER(Program),
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        ]
        lib.pcap_geterr.restype = ctypes.c_char_p
        lib.pcap_geterr.argtypes = [ctypes.c_void_p]
        lib.pcap_freecode.argtypes = [ctypes.POINTER(Program)]
        lib.pcap_freecode.restype = None
        lib.pcap_offline_filter.argtypes = [
            ctypes.POINTER(Program),
            ctypes.POINTER(_PacketHeader),
            ctypes.c_char_p,
        ]
        lib.pcap_close.argtypes = [ctypes.c_void_p]
        lib.pcap_close.restype = None
        return lib
    raise TracerError(
        f"filter: {_SONAMES[0]} is not installed",
        "install libpcap0.8 (Debian, Ubuntu) or libpcap (Fedora, RHEL)",
    )
