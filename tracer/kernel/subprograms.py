"""Functions of a BPF object that are called, not inlined; pure.

bcc compiles each function by itself and relocates no calls between them. So a function calls
another by a number that no helper has, and here that other one is put behind it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BPF_CALL, BPF_PSEUDO_CALL, BPF_PSEUDO_KFUNC_CALL = 0x85, 1, 2
STEP = 8
"""Bytes of an instruction."""
SUBPROGRAMS: Mapping[str, int] = {
    "follow_typed": 0x7F01,
    "tell_typed": 0x7F02,
    "follow_raw": 0x7F03,
    "tell_raw": 0x7F04,
    "tell_death": 0x7F05,
}
"""Function → the number that stands for it; the sources know it as CALL_<function>."""


def call(number: int, kind: int = 0) -> bytes:
    """The instruction that calls a helper, or a function of another BPF_PSEUDO_ kind."""
    return struct.pack("<BBhi", BPF_CALL, kind << 4, 0, number)


def split(instructions: bytes) -> list[bytes]:
    """One element an instruction."""
    return [instructions[at : at + STEP] for at in range(0, len(instructions), STEP)]


def link(instructions: bytes, function: Callable[[str], bytes]) -> bytes:
    """A program and behind it each subprogram that it calls, or that these call, once.

    `function` gives the instructions of a subprogram.
    """
    stand_ins = {call(number): name for name, number in SUBPROGRAMS.items()}
    linked = split(instructions)
    places: dict[str, int] = {}
    at = 0
    while at < len(linked):  # it grows meanwhile
        name = stand_ins.get(linked[at])
        if name is not None:
            if name not in places:
                places[name] = len(linked)
                linked += split(function(name))
            linked[at] = call(places[name] - at - 1, BPF_PSEUDO_CALL)
        at += 1
    return b"".join(linked)
