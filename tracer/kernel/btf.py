"""Reads BTF, the kernel's own description of its types (Documentation/bpf/btf.rst).

One `Btf` holds vmlinux and any number of modules: a module's types continue vmlinux's
ids, and so overlap with other modules' ids; here every type has one id of its own.
Types are decoded when asked for: a kernel has 150,000 and we need some hundreds.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MAGIC = 0xEB9F
HEADER = struct.Struct("=HBBIIIII")


class BtfError(Exception):
    """The blob is not BTF, is cut short, or holds a kind this reader does not know."""


class Kind(IntEnum):
    """`BTF_KIND_*` of linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


RECORDS = frozenset({Kind.STRUCT, Kind.UNION})
ENUMS = frozenset({Kind.ENUM, Kind.ENUM64})
MODIFIERS = frozenset({Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
SIZED = RECORDS | ENUMS | {Kind.INT, Kind.FLOAT}

# Words after the 3-word header: a fixed number, plus some per element of the type.
_FIXED_WORDS = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_ELEMENT_WORDS = {
    Kind.STRUCT: 3,
    Kind.UNION: 3,
    Kind.ENUM: 2,
    Kind.FUNC_PROTO: 2,
    Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}
_INDEXED = frozenset({Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF})


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union; `name` is empty for an anonymous one."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int
    """Width of a bitfield, 0 for an ordinary member."""


@dataclass(frozen=True, slots=True)
class Type:
    """One BTF type; only the fields that its kind has are set."""

    id: int
    kind: Kind
    name: str = ""
    size_bytes: int = 0
    """INT, FLOAT, STRUCT, UNION, ENUM, ENUM64."""
    target: int = 0
    """Type id: of what it points to, stands for, qualifies, returns or has as element."""
    flag: bool = False
    """kind_flag; for FWD: it is a union."""
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    """Enumerators, in order."""
    params: tuple[int, ...] = ()
    """Type ids of a FUNC_PROTO's parameters; 0 last means `...`."""
    length: int = 0
    """Number of an ARRAY's elements."""


VOID = Type(0, Kind.VOID, "void")


@dataclass(frozen=True, slots=True)
class _Blob:
    """vmlinux or one module. `first` is its first id as the file counts, `id` as we count."""

    first: int
    id: int
    words: memoryview
    starts: list[int]
    """Index of each type's first word."""
    strings: bytes
    strings_start: int
    """The file's string offsets below this one are vmlinux's."""


def _type_starts(words: memoryview) -> list[int]:
    """Find where each type begins: the only pass over all of them, hence written for speed."""
    step = [3] * 32
    per_element = [0] * 32
    for fixed, count in _FIXED_WORDS.items():
        step[fixed] += count
    for element, count in _ELEMENT_WORDS.items():
        per_element[element] = count
    starts: list[int] = []
    at, end = 0, len(words)
    infos = words.tolist()
    while at < end:
        starts.append(at)
        info = infos[at + 1]
        kind = info >> 24 & 31
        if not 0 < kind <= Kind.ENUM64:
            raise BtfError(f"unknown BTF kind {kind}")
        at += step[kind] + per_element[kind] * (info & 0xFFFF)
    if at != end:
        raise BtfError("the last type is cut short")
    return starts


def _sections(data: bytes) -> tuple[memoryview, bytes]:
    """Cut out the type section as 32-bit words, and the string section."""
    if len(data) < HEADER.size:
        raise BtfError("too short for a BTF header")
    magic, _, _, header, type_at, type_bytes, string_at, string_bytes = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BtfError("no BTF magic")
    types = data[header + type_at : header + type_at + type_bytes]
    strings = data[header + string_at : header + string_at + string_bytes]
    if len(types) != type_bytes or type_bytes % 4 or len(strings) != string_bytes:
        raise BtfError("a section is cut short")
    return memoryview(types).cast("I"), strings


class Btf:
    """The types of one kernel. Ids are valid for this object only."""

    def __init__(self, vmlinux: bytes) -> None:
        """Index the content of /sys/kernel/btf/vmlinux; raises BtfError."""
        self._blobs: list[_Blob] = []
        self._types: dict[int, Type] = {0: VOID}
        self._ids: dict[str, list[int]] = {}
        self._next_id = 1
        self._add(vmlinux, first=1, strings_start=0)

    def add_module(self, data: bytes) -> None:
        """Add a module's split BTF, /sys/kernel/btf/MODULE; raises BtfError."""
        base = self._blobs[0]
        self._add(data, first=1 + len(base.starts), strings_start=len(base.strings))

    def type(self, type_id: int) -> Type:
        """Return the type with that id; id 0 is void."""
        known = self._types.get(type_id)
        if known is None:
            known = self._types[type_id] = self._decode(type_id)
        return known

    def find(self, name: str, kinds: Collection[Kind]) -> Type | None:
        """Return the first type of that name and kind; vmlinux before modules, in order added."""
        for type_id in self._ids.get(name, ()):
            found = self.type(type_id)
            if found.kind in kinds:
                return found
        return None

    def named(self, prefix: str = "", suffix: str = "") -> Iterator[Type]:
        """Every named struct, union, enum and typedef whose name begins and ends so."""
        for name, ids in self._ids.items():
            if name.startswith(prefix) and name.endswith(suffix):
                yield from map(self.type, ids)

    def anonymous_enums(self) -> Iterator[Type]:
        """Every enum without a tag: the home of many constants."""
        yield from (t for t in map(self.type, self._ids.get("", ())) if t.kind in ENUMS)

    def strip(self, type_id: int, *, typedefs: bool = True) -> Type:
        """Return the type behind qualifiers and tags, and behind typedefs unless told not to."""
        found = self.type(type_id)
        while found.kind in MODIFIERS or (typedefs and found.kind is Kind.TYPEDEF):
            found = self.type(found.target)
        return found

    def member(self, record: Type, name: str) -> Member | None:
        """Return what C means by `record.name`, in anonymous members too; None if it is nothing.

        Its bit_offset counts from where `record` begins.
        """
        for member in record.members:
            if member.name == name:
                return member
            if not member.name and not member.bit_size:
                inner = self.strip(member.type_id)
                found = self.member(inner, name) if inner.kind in RECORDS else None
                if found:
                    return replace(found, bit_offset=member.bit_offset + found.bit_offset)
        return None

    def _add(self, data: bytes, *, first: int, strings_start: int) -> None:
        words, strings = _sections(data)
        blob = _Blob(first, self._next_id, words, _type_starts(words), strings, strings_start)
        self._blobs.append(blob)
        self._next_id += len(blob.starts)
        for type_id, start in enumerate(blob.starts, blob.id):
            kind = words[start + 1] >> 24 & 31
            if kind in _INDEXED:
                name = self._string(blob, words[start])
                # Of the nameless, only enums are looked for (for their constants).
                if name or kind in ENUMS:
                    self._ids.setdefault(name, []).append(type_id)

    def _string(self, blob: _Blob, offset: int) -> str:
        if offset < blob.strings_start:
            blob = self._blobs[0]
        at = offset - blob.strings_start
        return blob.strings[at : blob.strings.index(b"\0", at)].decode()

    def _decode(self, type_id: int) -> Type:
        if not 0 < type_id < self._next_id:
            raise BtfError(f"no type {type_id}")
        blob = self._blobs[bisect_right(self._blobs, type_id, key=lambda b: b.id) - 1]
        start = blob.starts[type_id - blob.id]
        name_at, info, size_or_type = blob.words[start : start + 3]
        kind, count, flag = Kind(info >> 24 & 31), info & 0xFFFF, bool(info >> 31)
        words = blob.words[start + 3 :]
        shift = blob.id - blob.first

        def ours(file_id: int) -> int:
            return file_id + shift if file_id >= blob.first else file_id

        name = self._string(blob, name_at)
        size = size_or_type if kind in SIZED else 0
        target = 0 if kind in SIZED else ours(size_or_type)
        if kind in RECORDS:
            members = tuple(
                Member(
                    self._string(blob, words[i]),
                    ours(words[i + 1]),
                    words[i + 2] & 0xFFFFFF if flag else words[i + 2],
                    words[i + 2] >> 24 if flag else 0,
                )
                for i in range(0, 3 * count, 3)
            )
            return Type(type_id, kind, name, size, members=members)
        if kind in ENUMS:
            values = tuple(
                (self._string(blob, words[at]), value)
                for at, value in _enum_values(words, kind, count, signed=flag)
            )
            return Type(type_id, kind, name, size, values=values)
        if kind is Kind.FUNC_PROTO:
            params = tuple(ours(words[i]) for i in range(1, 2 * count, 2))
            return Type(type_id, kind, name, target=target, params=params)
        if kind is Kind.ARRAY:
            return Type(type_id, kind, target=ours(words[0]), length=words[2])
        return Type(type_id, kind, name, size, target, flag)


def _enum_values(
    words: memoryview, kind: Kind, count: int, *, signed: bool
) -> Iterator[tuple[int, int]]:
    """(index of the name's word, value) of each enumerator."""
    width = _ELEMENT_WORDS[kind]
    bits = 32 * (width - 1)
    for at in range(0, width * count, width):
        value = words[at + 1] | (words[at + 2] << 32 if kind is Kind.ENUM64 else 0)
        yield at, value - (1 << bits) if signed and value >> (bits - 1) else value
