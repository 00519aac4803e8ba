"""Writes BTF types as C whose layout, compiled for BPF, is exactly the kernel's.

Only what is asked for is written, with everything it holds by value; a pointer's target
is left to a forward name, so asking for `sk_buff` does not bring half of the kernel.
Offsets are never trusted to the compiler: gaps become explicit padding, a record whose
members are not aligned is packed, tagged anonymous members (`-fms-extensions`) are
written out, and `asserts` lets the compiler prove every offset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.kernel.btf import ENUMS, RECORDS, BtfError, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracer.kernel.btf import Btf, Member, Type

POINTER_BYTES = 8
_INT_MAX = 0x7FFFFFFF
_ENUM_MODES = {1: "QI", 2: "HI", 8: "DI"}


class CDump:
    """Collects C definitions in an order that compiles; `lines` is the outcome."""

    def __init__(self, btf: Btf) -> None:
        self.lines: list[str] = []
        self._btf = btf
        self._done: set[int] = set()
        self._tags: dict[str, list[Type]] = {}
        self._typedefs: dict[str, Type] = {}
        self._constants: set[str] = set()
        self._packed: dict[int, bool] = {}

    def add(self, wanted: Type) -> None:
        """Define a struct, union, enum or typedef completely, after what it needs."""
        if wanted.kind in RECORDS:
            self._define_record(wanted)
        elif wanted.kind in ENUMS:
            self._define_enum(wanted)
        elif wanted.kind is Kind.TYPEDEF:
            self._define_typedef(wanted)
        else:
            raise BtfError(f"{wanted.kind.name} {wanted.name!r} has no definition in C")

    def has_constant(self, name: str) -> bool:
        """Whether an enumerator of that name has been written."""
        return name in self._constants

    def asserts(self, records: Iterable[Type]) -> list[str]:
        """`_Static_assert`s of the size and of every offset in each (already added) record."""
        lines = []
        for record in records:
            name = f"{_keyword(record)} {self._tag(record)}"
            lines.append(f'_Static_assert(sizeof({name}) == {record.size_bytes}, "sizeof {name}");')
            lines += [
                f"_Static_assert(__builtin_offsetof({name}, {member}) == {offset}, "
                f'"{name}.{member}");'
                for member, offset in self._offsets(record, 0)
            ]
        return lines

    def size_bytes(self, type_id: int) -> int:
        """Tell what sizeof says; 0 for void, functions and forward declarations."""
        bare = self._btf.strip(type_id)
        if bare.kind is Kind.PTR:
            return POINTER_BYTES
        if bare.kind is Kind.ARRAY:
            return bare.length * self.size_bytes(bare.target)
        return bare.size_bytes

    def declare(self, type_id: int, name: str) -> str:
        """C declaration of `name` with that type, by value; defines what it needs first."""
        bare = self._btf.strip(type_id, typedefs=False)
        if bare.kind is Kind.PTR:
            return self._declare_pointer(bare, name)
        if bare.kind is Kind.ARRAY:
            return self.declare(bare.target, f"{name}[{bare.length}]")
        if bare.kind in RECORDS and not bare.name:
            return f"{self._body(bare, '')} {name}"
        if bare.kind in ENUMS and not bare.name:
            return f"{self._enum_body(bare, '')} {name}"
        if bare.kind in RECORDS | ENUMS | {Kind.TYPEDEF}:
            self.add(bare)
        return f"{self._name(bare)} {name}"

    def _name(self, bare: Type) -> str:
        """How C calls a named type."""
        if bare.kind in RECORDS:
            return f"{_keyword(bare)} {self._tag(bare)}"
        if bare.kind in ENUMS:
            return f"enum {self._tag(bare)}"
        if bare.kind is Kind.FWD:
            return f"{'union' if bare.flag else 'struct'} {bare.name}"
        if bare.kind in {Kind.INT, Kind.FLOAT}:
            return "_Bool" if bare.name == "bool" else bare.name
        return bare.name

    def _declare_pointer(self, pointer: Type, name: str) -> str:
        """Declare a pointer: it needs no definition of its target, so it never brings one."""
        target = self._btf.strip(pointer.target)
        if target.kind is Kind.PTR:
            return self._declare_pointer(target, f"*{name}")
        if target.kind is Kind.FUNC_PROTO:
            return f"void (*{name})(void)"
        nameable = target.name and target.kind in RECORDS | {Kind.FWD, Kind.INT}
        return f"{self._name(target) if nameable else 'void'} *{name}"

    def _define_typedef(self, typedef: Type) -> None:
        # One name, one meaning: the first definition of a typedef wins.
        if typedef.name in self._typedefs or typedef.name.startswith("__builtin_"):
            return
        self._typedefs[typedef.name] = typedef
        self.lines.append(f"typedef {self.declare(typedef.target, typedef.name)};")

    def _define_enum(self, enum: Type) -> None:
        tag = self._tag(enum)
        if enum.id in self._done:
            return
        self._done.add(enum.id)
        self.lines.append(f"{self._enum_body(enum, tag)};")

    def _enum_body(self, enum: Type, tag: str) -> str:
        # C has one space for all constants: those another enum brought are not repeated.
        fresh = [(name, value) for name, value in enum.values if name not in self._constants]
        self._constants.update(name for name, _ in fresh)
        if not fresh:
            fresh = [(f"__enum{enum.id}", 0)]
        values = ", ".join(f"{name} = {_constant(value)}" for name, value in fresh)
        mode = _ENUM_MODES.get(enum.size_bytes)
        attribute = f" __attribute__((mode({mode})))" if mode else ""
        return f"enum {tag} {{ {values} }}{attribute}"

    def _define_record(self, record: Type) -> None:
        record = self._canonical(record)
        if record.id not in self._done:
            self._done.add(record.id)
            self.lines.append(f"{self._body(record, self._tag(record))};")

    def _canonical(self, record: Type) -> Type:
        """Modules repeat each other's types: the same record seen first, or this one."""
        seen = self._btf.find(record.name, {record.kind})
        if seen and (seen.size_bytes, len(seen.members)) == (
            record.size_bytes,
            len(record.members),
        ):
            return seen
        return record

    def _tag(self, named: Type) -> str:
        """Return the C tag; another type of the same name gets `___2`, as bpftool does it."""
        if named.kind in RECORDS:
            named = self._canonical(named)
        namesakes = self._tags.setdefault(named.name, [])
        if named not in namesakes:
            namesakes.append(named)
        place = namesakes.index(named)
        return named.name if place == 0 else f"{named.name}___{place + 1}"

    def _body(self, record: Type, tag: str) -> str:
        """`struct tag { … }` with its padding and attributes."""
        if record.kind is Kind.UNION:
            parts = [self._member(m) for m in record.members]
            end_bits = 8 * max((self.size_bytes(m.type_id) for m in record.members), default=0)
        else:
            parts, end_bits = self._struct_parts(record)
        end = _round_up((end_bits + 7) // 8, self._align(record))
        if end < record.size_bytes:
            # A union's padding overlays its members, a struct's follows them.
            used = 0 if record.kind is Kind.UNION else (end_bits + 7) // 8
            parts.append(_pad(record, record.size_bytes, record.size_bytes - used))
        packed = " __attribute__((packed))" if self._is_packed(record) else ""
        return f"{_keyword(record)} {tag} {{ {' '.join(parts)} }}{packed}"

    def _struct_parts(self, record: Type) -> tuple[list[str], int]:
        """Members and gaps of a struct, and the bit where the last member ends."""
        parts: list[str] = []
        at = 0
        packed = self._is_packed(record)
        for member in record.members:
            start = member.bit_offset
            if member.bit_size:
                parts += _bit_gap(record, at, start)
                at = start + member.bit_size
            else:
                end = (at + 7) // 8
                align = 1 if packed else self._align(self._btf.strip(member.type_id))
                if _round_up(end, align) != start // 8:
                    parts.append(_pad(record, start // 8, start // 8 - end))
                at = start + 8 * self.size_bytes(member.type_id)
            parts.append(self._member(member))
        return parts, at

    def _member(self, member: Member) -> str:
        if member.bit_size:
            return f"{self.declare(member.type_id, member.name)}:{member.bit_size};"
        bare = self._btf.strip(member.type_id)
        if not member.name and bare.kind in RECORDS:
            # A tag here is `-fms-extensions`: plain C would declare no member at all.
            return f"{self._body(bare, '')};"
        return f"{self.declare(member.type_id, member.name)};"

    def _align(self, bare: Type) -> int:
        """Alignment that the compiler gives to what we write, in bytes."""
        if bare.kind is Kind.PTR:
            return POINTER_BYTES
        if bare.kind is Kind.ARRAY:
            return self._align(self._btf.strip(bare.target))
        if bare.kind in RECORDS:
            return 1 if self._is_packed(bare) else self._widest(bare)
        return bare.size_bytes or 1

    def _widest(self, record: Type) -> int:
        strip = self._btf.strip
        return max((self._align(strip(m.type_id)) for m in record.members), default=1)

    def _is_packed(self, record: Type) -> bool:
        """Whether natural alignment cannot give this layout."""
        known = self._packed.get(record.id)
        if known is None:
            known = record.size_bytes % self._widest(record) != 0 or any(
                m.bit_offset % (8 * self._align(self._btf.strip(m.type_id)))
                for m in record.members
                if not m.bit_size
            )
            self._packed[record.id] = known
        return known

    def _offsets(self, record: Type, base: int) -> Iterator[tuple[str, int]]:
        """(member, offset in bytes) as C names them; bitfields have none."""
        for member in record.members:
            offset = base + member.bit_offset // 8
            bare = self._btf.strip(member.type_id)
            if member.name and not member.bit_size:
                yield member.name, offset
            elif not member.name and bare.kind in RECORDS:
                yield from self._offsets(bare, offset)


def _keyword(record: Type) -> str:
    return "union" if record.kind is Kind.UNION else "struct"


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def _constant(value: int) -> str:
    return f"{value}ULL" if value > _INT_MAX else str(value)


def _pad(record: Type, end: int, size: int) -> str:
    """`size` bytes of padding before byte `end`, named to be unique in its record."""
    if size < 0:
        raise BtfError(f"{record.name or 'anonymous record'}: members overlap before byte {end}")
    return f"char __pad{record.id}_{end}[{size}];"


def _bit_gap(record: Type, start: int, end: int) -> list[str]:
    """Fill bits [start, end): to the next byte, by whole bytes, and the rest."""
    parts = []
    if start < end and start % 8:
        fill = min(end - start, 8 - start % 8)
        parts.append(f"char :{fill};")
        start += fill
    whole_bytes = (end - start) // 8
    if whole_bytes:
        parts.append(_pad(record, end // 8, whole_bytes))
        start += 8 * whole_bytes
    if start < end:
        parts.append(f"char :{end - start};")
    return parts
