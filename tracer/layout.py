"""`bpf/event.h` as numpy dtypes and enums: the record layouts have one home, the C header.

The subset of C it reads: `#define NAME number`, `enum name { A = 1, … };` and
`struct name { … };` whose members are fixed-width scalars, `char`, earlier structs, and
one-dimensional arrays of these. Padding must be explicit: a layout that the C compiler
would pad is an error, so offsets are sums of sizes on every architecture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCALARS = {
    "__u8": "u1",
    "__u16": "<u2",
    "__be16": ">u2",
    "__u32": "<u4",
    "__u64": "<u8",
    "__s32": "<i4",
    "__s64": "<i8",
}

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE = re.compile(r"^#define[ \t]+(\w+)[ \t]+(\d+)[ \t]*$", re.MULTILINE)
_BLOCK = re.compile(r"\b(enum|struct)\s+(\w+)\s*\{([^}]*)\}\s*;")
_ENUMERATOR = re.compile(r"(\w+)\s*=\s*(\d+)")
_MEMBER = re.compile(r"^(?:(struct)\s+)?(\w+)\s+(\w+)(?:\[(\w+)\])?$")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header declares: numbers, enums, and one dtype per struct."""

    constants: Mapping[str, int]
    enums: Mapping[str, type[IntEnum]]
    structs: Mapping[str, np.dtype[np.void]]


def bpf_dir() -> Path:
    """Folder of the BPF sources: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    for place in (package / "bpf", package.parent / "bpf"):
        if (place / "event.h").is_file():
            return place
    raise TracerError("bpf sources: event.h is missing", "reinstall node-packet-tracer")


def _member(
    text: str, constants: Mapping[str, int], structs: Mapping[str, np.dtype[np.void]]
) -> tuple[str, np.dtype[np.generic], int]:
    """One declaration → (name, dtype with its shape, alignment in C)."""
    found = _MEMBER.match(" ".join(text.split()))
    if not found:
        raise ValueError(f"event.h: cannot read the member '{text.strip()}'")
    is_struct, type_name, name, length = found.groups()
    count = None if length is None else int(constants.get(length, length))
    if type_name == "char" and count:
        return name, np.dtype(f"S{count}"), 1
    if is_struct:
        base: np.dtype[np.generic] = structs[type_name]
        alignment = _alignment(structs[type_name])
    else:
        base = np.dtype(SCALARS[type_name])
        alignment = base.itemsize
    return name, base if count is None else np.dtype((base, (count,))), alignment


def _alignment(dtype: np.dtype[np.void]) -> int:
    """C's alignment of a struct: that of its widest scalar."""
    widest = 1
    for member, *_ in (dtype.fields or {}).values():
        base = member.base
        if base.fields:
            widest = max(widest, _alignment(base))
        elif base.kind != "S":
            widest = max(widest, base.itemsize)
    return widest


def _struct(
    name: str,
    body: str,
    constants: Mapping[str, int],
    structs: Mapping[str, np.dtype[np.void]],
) -> np.dtype[np.void]:
    fields: list[tuple[str, np.dtype[np.generic]]] = []
    offset = 0
    widest = 1
    for text in filter(str.strip, body.split(";")):
        member, dtype, alignment = _member(text, constants, structs)
        if offset % alignment:
            raise ValueError(f"event.h: struct {name}: hidden padding before '{member}'")
        fields.append((member, dtype))
        offset += dtype.itemsize
        widest = max(widest, alignment)
    if offset % widest:
        raise ValueError(f"event.h: struct {name}: hidden padding at the end")
    return np.dtype(fields)


def parse(source: str) -> Layout:
    """Read a header's text; ValueError names the declaration it cannot read."""
    source = _COMMENT.sub(" ", source)
    constants = {name: int(value) for name, value in _DEFINE.findall(source)}
    enums: dict[str, type[IntEnum]] = {}
    structs: dict[str, np.dtype[np.void]] = {}
    for kind, name, body in _BLOCK.findall(source):
        if kind == "enum":
            members = [(member, int(value)) for member, value in _ENUMERATOR.findall(body)]
            enums[name] = cast("type[IntEnum]", IntEnum(name, members))
        else:
            structs[name] = _struct(name, body, constants, structs)
    return Layout(constants, enums, structs)


def hop_dtype(snaplen: int) -> np.dtype[np.void]:
    """`struct hop_event` of a program that was made with SNAPLEN=`snaplen`, a multiple of 8."""
    usual = layout().structs["hop_event"]
    fields = {name: usual[name] for name in usual.names or ()}
    fields["packet"] = np.dtype((np.uint8, (snaplen,)))
    return np.dtype(list(fields.items()))


@cache
def layout() -> Layout:
    """The layout of the BPF sources that this tracer will compile."""
    return parse((bpf_dir() / "event.h").read_text())
