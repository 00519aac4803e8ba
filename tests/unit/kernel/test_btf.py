import struct

import pytest
from btf_writer import BtfWriter

from tracer.kernel.btf import ENUMS, HEADER, RECORDS, Btf, BtfError, Kind, Member


def test_struct_members_with_offsets_and_bitfields():
    w = BtfWriter()
    u32 = w.int("unsigned int", 4)
    w.struct("hdr", 8, ("len", u32, 0, 0), ("ihl", u32, 32, 4), ("version", u32, 36, 4))
    found = Btf(w.blob()).find("hdr", RECORDS)
    assert found.size_bytes == 8
    assert found.members == (
        Member("len", u32, 0, 0),
        Member("ihl", u32, 32, 4),
        Member("version", u32, 36, 4),
    )


def test_offsets_without_bitfields_use_all_32_bits():
    w = BtfWriter()
    u8 = w.int("unsigned char", 1)
    w.struct("huge", 1 << 28, ("last", u8, (1 << 31) - 8))
    assert Btf(w.blob()).find("huge", RECORDS).members[0].bit_offset == (1 << 31) - 8


def test_enumerators_signed_unsigned_and_64_bits():
    w = BtfWriter()
    w.enum("e", A=0, MASK=0xFFFF0000)
    w.enum("s", signed=True, NEG=-1)
    w.enum64("big", TOP=1 << 63)
    w.enum64("low", signed=True, BOTTOM=-(1 << 40))
    btf = Btf(w.blob())
    assert dict(btf.find("e", ENUMS).values) == {"A": 0, "MASK": 0xFFFF0000}
    assert dict(btf.find("s", ENUMS).values) == {"NEG": -1}
    assert dict(btf.find("big", ENUMS).values) == {"TOP": 1 << 63}
    assert dict(btf.find("low", ENUMS).values) == {"BOTTOM": -(1 << 40)}


def test_every_kind_is_stepped_over_exactly():
    w = BtfWriter()
    i = w.int("int", 4)
    w.add(Kind.VAR, "v", i, words=[0])
    w.add(Kind.DATASEC, ".data", 8, 2, words=[1, 0, 4, 1, 4, 4])
    w.add(Kind.FLOAT, "double", 8)
    w.add(Kind.DECL_TAG, "tag", i, words=[0xFFFFFFFF])
    w.modifier(Kind.TYPE_TAG, i, "rcu")
    w.prototype(i, i, 0)
    w.add(Kind.FUNC, "f", w.next_id - 1)
    w.array(i, 7)
    w.forward("later", union=True)
    w.enum("empty")
    last = w.struct("last", 4, ("x", i, 0))
    btf = Btf(w.blob())
    assert btf.find("last", RECORDS).id == last
    assert btf.type(last - 3).length == 7
    assert btf.type(last - 5).params == (i, 0)
    assert btf.type(last - 2).flag


def test_strip_looks_behind_qualifiers_and_typedefs():
    w = BtfWriter()
    i = w.int("int", 4)
    name = w.typedef("t", w.modifier(Kind.CONST, i))
    top = w.modifier(Kind.VOLATILE, name)
    btf = Btf(w.blob())
    assert btf.strip(top).name == "int"
    assert btf.strip(top, typedefs=False).name == "t"


def test_a_member_is_looked_for_in_anonymous_members_only():
    w = BtfWriter()
    i = w.int("int", 4)
    inner = w.struct("", 8, ("a", i, 0), ("b", i, 32))
    union = w.union("", 8, ("", inner, 0))
    w.struct("s", 24, ("first", i, 0), ("", union, 64), ("named", inner, 128))
    btf = Btf(w.blob())
    s = btf.find("s", RECORDS)
    assert btf.member(s, "b").bit_offset == 96
    assert btf.member(s, "named").bit_offset == 128
    assert btf.member(s, "c") is None


def test_modules_overlap_in_the_file_but_not_here():
    base = BtfWriter()
    i = base.int("int", 4)
    base.forward("nf_conn")
    first, second = BtfWriter(base), BtfWriter(base)
    inner = first.struct("zone", 4, ("id", i, 0))
    first.struct("nf_conn", 8, ("zone", inner, 0), ("mark", i, 32))
    pad = second.struct("other", 4, ("x", i, 0))
    second.struct("nft_chain", 4, ("o", pad, 0))
    assert inner == pad
    btf = Btf(base.blob())
    btf.add_module(first.blob())
    btf.add_module(second.blob())
    conn = btf.find("nf_conn", RECORDS)
    chain = btf.find("nft_chain", RECORDS)
    assert btf.type(conn.members[0].type_id).name == "zone"
    assert btf.type(conn.members[1].type_id).name == "int"
    assert btf.type(chain.members[0].type_id).name == "other"


def test_module_strings_may_lie_in_vmlinux():
    base = BtfWriter()
    i = base.int("int", 4)
    base.struct("mark", 4, ("x", i, 0))
    module = BtfWriter(base)
    shared = base.strings.index(b"mark\0")
    module.types += struct.pack("=6I", 0, Kind.STRUCT << 24 | 1, 4, shared, i, 0)
    btf = Btf(base.blob())
    btf.add_module(module.blob())
    assert btf.type(base.next_id).members[0].name == "mark"


def test_find_prefers_vmlinux():
    base = BtfWriter()
    i = base.int("int", 4)
    mine = base.struct("s", 4, ("x", i, 0))
    module = BtfWriter(base)
    module.struct("s", 4, ("y", i, 0))
    btf = Btf(base.blob())
    btf.add_module(module.blob())
    assert btf.find("s", RECORDS).id == mine
    assert btf.find("s", ENUMS) is None


def _with_kind(kind):
    w = BtfWriter()
    w.add(kind, "x", 4)
    return w.blob()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (HEADER.pack(0x1234, 1, 0, HEADER.size, 0, 0, 0, 0), "magic"),
        (_with_kind(Kind.FLOAT)[:-1], "cut short"),
        (_with_kind(20), "unknown BTF kind 20"),
        (_with_kind(Kind.ARRAY), "last type is cut short"),
    ],
)
def test_what_is_not_btf_is_refused(data, message):
    with pytest.raises(BtfError, match=message):
        Btf(data)


def test_an_id_beyond_the_last_is_refused():
    w = BtfWriter()
    w.int("int", 4)
    with pytest.raises(BtfError, match="no type 2"):
        Btf(w.blob()).type(2)
