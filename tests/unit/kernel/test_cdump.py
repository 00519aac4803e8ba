"""The layouts are judged by a C compiler, where there is one: they are its rules."""

import random
import shutil
import subprocess

import pytest
from btf_writer import BtfWriter

from tracer.kernel.btf import RECORDS, Btf, BtfError, Kind
from tracer.kernel.cdump import CDump

CC = shutil.which("clang") or shutil.which("cc")
needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")


class Sample:
    """A writer with the usual integers."""

    def __init__(self):
        self.w = BtfWriter()
        self.u8 = self.w.int("unsigned char", 1)
        self.u16 = self.w.int("short unsigned int", 2)
        self.u32 = self.w.int("unsigned int", 4)
        self.u64 = self.w.int("long unsigned int", 8)

    def dump(self, *names):
        btf = Btf(self.w.blob())
        dump = CDump(btf)
        records = [btf.find(name, RECORDS) for name in names]
        for record in records:
            dump.add(record)
        return dump, "\n".join([*dump.lines, *dump.asserts(records)]) + "\n"


def compile_c(text, *options):
    assert CC
    return subprocess.run(
        [CC, "-xc", "-Wall", "-Werror", *options, "-"],
        input=text,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def prove(text):
    """The compiler accepts it: its asserts hold and it warns of nothing."""
    if CC:
        done = compile_c(text, "-fsyntax-only")
        assert done.returncode == 0, done.stderr + text


def test_gaps_and_the_tail_become_padding():
    s = Sample()
    s.w.struct("s", 64, ("a", s.u8, 0), ("b", s.u32, 8 * 16), ("c", s.u8, 8 * 20))
    dump, text = s.dump("s")
    assert "[15]" in text  # between a and b: 16 is more than b's alignment asks for
    assert "[43]" in text  # after c, as aligned(64) leaves it
    assert "packed" not in text
    prove(text)
    assert dump.size_bytes(1) == 1


def test_natural_gaps_are_left_to_the_compiler():
    s = Sample()
    s.w.struct("s", 16, ("a", s.u8, 0), ("b", s.u64, 64))
    _, text = s.dump("s")
    assert "__pad" not in text
    prove(text)


def test_packed_by_a_member_and_by_the_size():
    s = Sample()
    s.w.struct("member", 12, ("a", s.u32, 0), ("b", s.u64, 32))
    s.w.struct("size", 6, ("a", s.u32, 0), ("b", s.u16, 32))
    s.w.struct("holder", 13, ("x", s.u8, 0), ("m", 5, 8))
    _, text = s.dump("member", "size", "holder")
    assert text.count("__attribute__((packed))") == 2  # align 1 makes `holder` natural
    prove(text)


def test_anonymous_union_in_place():
    s = Sample()
    pair = s.w.struct("", 8, ("x", s.u32, 0), ("y", s.u32, 32))
    union = s.w.union("", 16, ("", pair, 0), ("q", s.u64, 0), ("big", s.w.array(s.u8, 16), 0))
    s.w.struct("s", 24, ("head", s.u64, 0), ("", union, 64))
    _, text = s.dump("s")
    assert 'offsetof(struct s, y) == 12, "struct s.y"' in text
    prove(text)


def test_union_larger_than_its_members():
    s = Sample()
    s.w.union("u", 64, ("a", s.u8, 0), ("b", s.u64, 0))
    _, text = s.dump("u")
    assert "[64]" in text
    prove(text)


def test_a_tagged_anonymous_member_is_written_out():
    """-fms-extensions, kernel 7.x: plain C declares no member for `struct ns_common;`."""
    s = Sample()
    common = s.w.struct("ns_common", 16, ("ops", s.u64, 0), ("inum", s.u32, 64))
    s.w.struct("net", 24, ("passive", s.u32, 0), ("", common, 64))
    _, text = s.dump("net")
    assert 'offsetof(struct net, inum) == 16, "struct net.inum"' in text
    prove(text)


def test_pointers_bring_nothing_along():
    s = Sample()
    far = s.w.struct("far", 8, ("x", s.u64, 0))
    named = s.w.typedef("far_t", far)
    nameless = s.w.typedef("nameless_t", s.w.struct("", 8, ("x", s.u64, 0)))
    ptr = s.w.ptr
    s.w.struct(
        "s",
        72,
        ("far", ptr(s.w.modifier(Kind.CONST, far)), 0),
        ("self", ptr(s.w.next_id + 9), 64),
        ("via_typedef", ptr(named), 128),
        ("nameless", ptr(nameless), 192),
        ("call", ptr(s.w.prototype(0, far)), 256),
        ("deep", ptr(ptr(far)), 320),
        ("fwd", ptr(s.w.forward("later", union=True)), 384),
        ("array", s.w.array(ptr(far), 2), 448),
    )
    _, text = s.dump("s")
    body = text.splitlines()[0]
    assert "struct far {" not in text
    for part in (
        "struct far *far;",
        "struct far *via_typedef;",
        "void *nameless;",
        "void (*call)(void);",
        "struct far **deep;",
        "union later *fwd;",
        "struct far *array[2];",
    ):
        assert part in body
    prove(text)


def test_values_are_defined_before_their_holder():
    s = Sample()
    inner = s.w.struct("inner", 4, ("x", s.u32, 0))
    alias = s.w.typedef("inner_t", inner)
    s.w.struct("s", 12, ("list", s.w.array(alias, 3), 0))
    dump, text = s.dump("s")
    assert [line.split(" {")[0] for line in dump.lines[:1]] == ["struct inner"]
    assert dump.lines[1] == "typedef struct inner inner_t;"
    prove(text)


def test_enums_of_every_size_and_repeated_constants():
    s = Sample()
    one = s.w.enum("one", size=1, A=1)
    four = s.w.enum("four", MASK=0xFFFF0000)
    signed = s.w.enum("minus", signed=True, NEGATIVE=-5)
    eight = s.w.enum64("eight", BIG=1 << 40)
    again = s.w.enum("again", A=1)
    members = [("a", one, 0), ("b", four, 32), ("c", signed, 64), ("d", eight, 128)]
    s.w.struct("s", 32, *members, ("e", again, 192))
    dump, text = s.dump("s")
    assert dump.has_constant("MASK")
    assert text.count("A = 1") == 1
    prove(text + '_Static_assert(MASK == 0xffff0000u && NEGATIVE == -5 && BIG == 1L << 40, "");')


def test_namesakes_get_a_suffix_and_module_copies_do_not():
    base = BtfWriter()
    i = base.int("int", 4)
    base.struct("s", 4, ("x", i, 0))
    module = BtfWriter(base)
    copy = module.struct("s", 4, ("x", i, 0))
    other = module.struct("s", 8, ("x", i, 0), ("y", i, 32))
    module.struct("holder", 12, ("same", copy, 0), ("differs", other, 32))
    btf = Btf(base.blob())
    btf.add_module(module.blob())
    dump = CDump(btf)
    holder = btf.find("holder", RECORDS)
    dump.add(holder)
    assert "struct s same;" in dump.lines[-1]
    assert "struct s___2 differs;" in dump.lines[-1]
    prove("\n".join([*dump.lines, *dump.asserts([holder])]))


@needs_compiler
def test_bitfields_land_on_their_bits(tmp_path):
    s = Sample()
    fields = [("a", 3, 2), ("b", 5, 7), ("c", 40, 8), ("d", 77, 1)]
    members = [(name, s.u32 if at < 64 else s.u16, at, width) for name, at, width in fields]
    s.w.struct("s", 16, *members, ("end", s.u8, 8 * 12, 0))
    _, text = s.dump("s")
    lines = [
        f"{{ struct s v; memset(&v, 0, 16); v.{name} = -1; out(&v); }}" for name, _, _ in fields
    ]
    text = f"#include <stdio.h>\n#include <string.h>\n{text}"
    text += "static void out(void *v) { fwrite(v, 16, 1, stdout); }\n"
    text += f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    program = tmp_path / "bits"
    done = compile_c(text, "-Wno-overflow", "-Wno-bitfield-constant-conversion", "-o", str(program))
    assert done.returncode == 0, done.stderr
    out = subprocess.run([program], capture_output=True, check=True, timeout=10).stdout
    seen = [int.from_bytes(out[16 * i : 16 * i + 16], "little") for i in range(len(fields))]
    assert seen == [((1 << width) - 1) << at for _, at, width in fields]


@needs_compiler
def test_any_layout_is_reproduced():
    """Random members at random offsets: aligned, packed, over-aligned, nested."""
    rng = random.Random(20_18)  # noqa: S311 - repeatable, not secret
    s = Sample()
    sizes = {s.u8: 1, s.u16: 2, s.u32: 4, s.u64: 8}
    names = []
    for number in range(150):
        at, members = 0, []
        for index in range(rng.randrange(1, 9)):
            target = rng.choice(list(sizes))
            align = rng.choice((1, sizes[target], 16)) if number % 3 == 0 else min(sizes[target], 8)
            at = -(-at // align) * align + align * (rng.random() < 0.2)
            members.append((f"m{index}", target, 8 * at))
            at += sizes[target]
        size = -(-at // 8) * 8 if number % 2 else at
        names.append(f"s{number}")
        sizes[s.w.struct(names[-1], size, *members)] = size
    _, text = s.dump(*names)
    prove(text)


def test_members_that_overlap_are_refused():
    s = Sample()
    s.w.struct("s", 8, ("a", s.u64, 0), ("b", s.u32, 32))
    with pytest.raises(BtfError, match="s: members overlap before byte 4"):
        s.dump("s")


def test_only_definable_kinds_can_be_added():
    s = Sample()
    btf = Btf(s.w.blob())
    with pytest.raises(BtfError, match="INT 'unsigned char'"):
        CDump(btf).add(btf.type(s.u8))
