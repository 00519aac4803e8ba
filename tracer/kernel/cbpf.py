"""Classic BPF, as libpcap compiles it, → the C text of one function for our BPF programs.

Pure: no libpcap, no kernel. The opcodes and their meaning are those of
Linux's Documentation/networking/filter.rst and of libpcap's own interpreter: 32-bit
unsigned arithmetic, and a load beyond the captured bytes or a division by zero
ends the filter with "no match".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Instruction classes, the low three bits of an opcode.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)

_CLASS, _MODE, _SIZE, _OPERATION, _SOURCE_X = 0x07, 0xE0, 0x18, 0xF0, 0x08
_IMM, _ABS, _IND, _MEM, _LEN, _MSH = range(0x00, 0xC0, 0x20)
_BYTES = {0x00: 4, 0x08: 2, 0x10: 1}
_RETURN_A = 0x10
_TXA = 0x80
_NEG, _JUMP_ALWAYS = 0x80, 0x00
_ALU_SIGN = {
    0x00: "+", 0x10: "-", 0x20: "*", 0x30: "/", 0x40: "|",
    0x50: "&", 0x60: "<<", 0x70: ">>", 0x90: "%", 0xA0: "^",
}  # fmt: skip
_JUMP_SIGN = {0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&"}
_WORD_BITS = 32

# Offsets from here up are Linux's SKF_AD_OFF: the packet's type, its device and the like.
_ANCILLARY = 0xFFFFF000

NO_MATCH = "\t\treturn 0;"
ANYWHERE = 1 << 16


class Instruction(NamedTuple):
    """`struct sock_filter` / `struct bpf_insn`; `jt` and `jf` count from the next instruction."""

    code: int
    jt: int
    jf: int
    k: int


def to_c(program: Sequence[Instruction], name: str = "pcap_match") -> str:
    """C text of `int name(const u8 *pkt, u32 caplen, u32 wirelen)`: 1 match, 0 none.

    The text needs `u8`, `u32`, `u64`, `__always_inline` and `PACKET_BYTES`, the size of
    the buffer behind `pkt`, which bounds every load for the verifier whatever `caplen`
    claims. It has forward jumps only. Raises ValueError for a program that jumps back,
    asks for what is not in the packet, or holds an opcode that is not classic BPF.
    """
    targets = {target for at, one in enumerate(program) for target in _targets(at, one)}
    if any(target >= len(program) for target in targets):
        raise ValueError("it needs a loop (`protochain`), which the kernel refuses")
    body: list[str] = []
    for at, one in enumerate(program):
        if at in targets:
            body.append(f"l{at}:")
        body += _statement(at, one)
    words = sorted(set(re.findall(r"\b(?:a|x|m\d+)\b", "\n".join(body))))
    return "\n".join(
        [
            f"static __always_inline int {name}(const u8 *pkt, u32 caplen, u32 wirelen)",
            "{",
            *(f"\tu32 {word} = 0;" for word in words),
            *(["\tu64 at;"] if any("at = " in line for line in body) else []),
            "",
            *body,
            "}",
            "",
        ]
    )


def reach(program: Sequence[Instruction], link_bytes: int, header_bytes: int) -> int:
    """How many bytes behind the link header a program reads; ANYWHERE if that cannot be told.

    What it finds relative to X begins `header_bytes`, a network header without options, behind
    the link header, if nothing but that header's length is ever loaded into X.
    """
    ends = [0]
    for one in program:
        sets_x = one.code & _CLASS == LDX or one.code & (_CLASS | _TXA) == MISC
        if sets_x and (one.code & _MODE, one.k) != (_MSH, link_bytes):
            return ANYWHERE
        mode, size = one.code & _MODE, _BYTES.get(one.code & _SIZE, 1)
        if one.code & _CLASS in (LD, LDX) and mode in (_ABS, _IND, _MSH):
            ends.append(one.k + size - link_bytes + (header_bytes if mode == _IND else 0))
    return max(ends)


def reads_below(program: Sequence[Instruction], offset: int) -> bool:
    """Whether a program looks at a byte before `offset`."""
    loads = (one for one in program if one.code & _CLASS in (LD, LDX))
    return any(one.code & _MODE in (_ABS, _IND, _MSH) and one.k < offset for one in loads)


def _targets(at: int, one: Instruction) -> Iterator[int]:
    """Yield the indices that `one`, at index `at`, may jump to."""
    if one.code & _CLASS != JMP:
        return
    if one.code & _OPERATION == _JUMP_ALWAYS:
        yield at + 1 + one.k
    else:
        yield at + 1 + one.jt
        yield at + 1 + one.jf


def _statement(at: int, one: Instruction) -> list[str]:
    kind = one.code & _CLASS
    if kind in (LD, LDX):
        return _load(one, "a" if kind == LD else "x")
    if kind in (ST, STX):
        return [f"\tm{one.k} = {'a' if kind == ST else 'x'};"]
    if kind == ALU:
        return _arithmetic(one)
    if kind == JMP:
        return _jump(at, one)
    if kind == RET:
        return [
            "\treturn a != 0;" if one.code & _SIZE == _RETURN_A else f"\treturn {one.k != 0:d};"
        ]
    return ["\ta = x;" if one.code & _TXA else "\tx = a;"]


def _load(one: Instruction, register: str) -> list[str]:
    mode, size = one.code & _MODE, _BYTES.get(one.code & _SIZE)
    simple = {_IMM: f"{one.k}u", _MEM: f"m{one.k}", _LEN: "wirelen"}
    if mode in simple:
        return [f"\t{register} = {simple[mode]};"]
    if one.k >= _ANCILLARY and mode in (_ABS, _IND):
        raise ValueError("it asks for what is not in the packet (its direction or device)")
    if mode == _MSH:
        return [*_bound_constant(one.k, 1), f"\tx = (pkt[{one.k}] & 0xf) << 2;"]
    if size and mode == _ABS:
        return [*_bound_constant(one.k, size), f"\ta = {_big_endian(size, 'pkt', one.k)};"]
    if size and mode == _IND:
        return [*_bound_variable(one.k, size), f"\ta = {_big_endian(size, '(pkt + at)', 0)};"]
    raise _unknown(one)


def _bound_constant(offset: int, size: int) -> list[str]:
    end = offset + size
    return [f"\tif (PACKET_BYTES < {end}ull || caplen < {end}ull)", NO_MATCH]


def _bound_variable(offset: int, size: int) -> list[str]:
    # The empty asm keeps the compiler from testing one copy of the offset and loading
    # through another, of which the verifier would not know the bounds.
    return [
        f"\tat = (u64)x + {offset}ull;",
        '\tasm volatile("" : "+r"(at));',
        f"\tif (at > PACKET_BYTES - {size} || at + {size} > caplen)",
        NO_MATCH,
    ]


def _big_endian(size: int, base: str, offset: int) -> str:
    # Byte by byte: the offset may be odd, and some CPUs fault on unaligned words.
    parts = []
    for index in range(size):
        shift = 8 * (size - 1 - index)
        byte = f"{base}[{offset + index}]"
        parts.append(f"(u32){byte} << {shift}" if shift else byte)
    return " | ".join(parts)


def _arithmetic(one: Instruction) -> list[str]:
    operation, by_x = one.code & _OPERATION, bool(one.code & _SOURCE_X)
    if operation == _NEG:
        return ["\ta = -a;"]
    sign = _ALU_SIGN.get(operation)
    if sign is None:
        raise _unknown(one)
    if sign in ("/", "%") and by_x:
        return ["\tif (x == 0)", NO_MATCH, f"\ta {sign}= x;"]
    if sign in ("/", "%") and one.k == 0:
        return ["\treturn 0;"]
    if sign in ("<<", ">>") and by_x:
        return [f"\ta = x < {_WORD_BITS} ? a {sign} x : 0;"]
    if sign in ("<<", ">>") and one.k >= _WORD_BITS:
        return ["\ta = 0;"]
    return [f"\ta {sign}= {'x' if by_x else f'{one.k}u'};"]


def _jump(at: int, one: Instruction) -> list[str]:
    operation = one.code & _OPERATION
    if operation == _JUMP_ALWAYS:
        return [f"\tgoto l{at + 1 + one.k};"]
    if operation not in _JUMP_SIGN:
        raise _unknown(one)
    operand = "x" if one.code & _SOURCE_X else f"{one.k}u"
    return [
        f"\tif (a {_JUMP_SIGN[operation]} {operand})",
        f"\t\tgoto l{at + 1 + one.jt};",
        f"\tgoto l{at + 1 + one.jf};",
    ]


def _unknown(one: Instruction) -> ValueError:
    return ValueError(f"opcode {one.code:#04x} is not classic BPF")
