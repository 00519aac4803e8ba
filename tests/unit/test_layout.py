"""The dtypes equal what the C compiler makes of bpf/event.h, member by member."""

import shutil
import subprocess

import numpy as np
import pytest

from tracer.layout import bpf_dir, layout, parse

TYPES = "".join(
    f"typedef {c} {name};\n"
    for name, c in (
        ("__u8", "unsigned char"),
        ("__u16", "unsigned short"),
        ("__be16", "unsigned short"),
        ("__u32", "unsigned int"),
        ("__u64", "unsigned long long"),
        ("__s32", "int"),
        ("__s64", "long long"),
    )
)


def _rows():
    """(struct, member or '', offset, size) as the dtypes have it."""
    for name, dtype in layout().structs.items():
        yield name, "", 0, dtype.itemsize
        for member, (kind, offset, *_) in dtype.fields.items():
            yield name, member, offset, kind.itemsize


def test_every_size_and_offset_is_the_compilers(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("needs a C compiler")
    lines = [
        f'printf("{name} {member} %zu %zu\\n", '
        + (
            f"offsetof(struct {name}, {member}), sizeof(((struct {name} *)0)->{member}));"
            if member
            else f"(size_t)0, sizeof(struct {name}));"
        )
        for name, member, *_ in _rows()
    ]
    source = tmp_path / "layout.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n{TYPES}"
        f'#include "{bpf_dir()}/event.h"\nint main(void) {{ {" ".join(lines)} }}\n'
    )
    subprocess.run([compiler, "-o", tmp_path / "layout", source], check=True, timeout=60)
    told = subprocess.run(
        [tmp_path / "layout"], check=True, timeout=10, capture_output=True, text=True
    ).stdout
    expected = "".join(
        f"{name} {member} {offset} {size}\n" for name, member, offset, size in _rows()
    )
    assert told == expected
    assert len(expected.splitlines()) > 50


def test_enums_and_constants_are_read():
    assert layout().enums["direction"].DIRECTION_INGRESS == 2
    assert layout().structs["drop_event"]["stack"].shape == (layout().constants["STACK_FRAMES"],)
    assert layout().structs["drop_event"]["packet"].shape == (layout().constants["PACKET_BYTES"],)


def test_arrays_take_a_constant_as_length():
    source = "#define N 3\nstruct s { __u32 a[N]; __u16 b; __u16 pad; };"
    assert parse(source).structs["s"] == np.dtype(
        [("a", "<u4", (3,)), ("b", "<u2"), ("pad", "<u2")]
    )


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("struct s { __u8 a; __u32 b; };", "hidden padding before 'b'"),
        ("struct s { __u32 a; __u8 b; };", "hidden padding at the end"),
        ("struct s { __u32 a:3; };", "cannot read the member"),
        ("struct s { unsigned long a[2][2]; };", "cannot read the member"),
    ],
)
def test_what_the_compiler_would_lay_out_otherwise_is_refused(source, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse(source)
