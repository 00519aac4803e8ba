import pytest
from btf_writer import BtfWriter

from tracer.kernel import tree
from tracer.kernel.btf import Btf
from tracer.kernel.helper_ids import HELPERS


def small_kernel():
    w = BtfWriter()
    u32 = w.int("unsigned int", 4)
    w.typedef("u32", u32)
    w.enum("bpf_func_id", BPF_FUNC_unspec=0, BPF_FUNC_map_lookup_elem=1)
    w.enum("", BPF_ANY=0, BPF_NOEXIST=1)
    w.enum("", SOMETHING_ELSE=7)
    flags = w.struct("", 4, ("vlan_all", u32, 0))
    group = w.union("", 4, ("", flags, 0), ("headers", flags, 0))
    w.struct("sk_buff", 8, ("len", u32, 0), ("", group, 32))
    return Btf(w.blob())


def lines_of(btf):
    return tree.vmlinux(btf).splitlines()


def test_what_the_kernel_has_can_be_tested_with_ifdef():
    macros = {line.split()[1] for line in lines_of(small_kernel()) if line.startswith("#define H")}
    assert macros == {
        "HAS_FUNC_unspec",
        "HAS_FUNC_map_lookup_elem",
        "HAS_ENUM_bpf_func_id",
        "HAS_STRUCT_sk_buff",
        "HAS_sk_buff__vlan_all",
    }


def test_a_bit_is_found_by_its_byte_and_mask():
    w = BtfWriter()
    u8 = w.int("unsigned char", 1)
    flags = w.struct(
        "", 2, ("redirected", u8, 8, 1), ("from_ingress", u8, 11, 1), ("tstamp_type", u8, 12, 2)
    )
    w.struct("sk_buff", 8, ("len", u8, 0), ("", flags, 32))
    found = {line for line in lines_of(Btf(w.blob())) if line.endswith(tuple("0123456789"))}
    assert {
        "#define BYTE_sk_buff__redirected 5",
        "#define MASK_sk_buff__redirected 1",
        "#define BYTE_sk_buff__from_ingress 5",
        "#define MASK_sk_buff__from_ingress 8",
        "#define HAS_sk_buff__tstamp_type 1",
    } <= found
    assert not [line for line in found if "BYTE_sk_buff__tstamp_type" in line]


def test_helpers_that_the_kernel_lacks_get_their_number():
    lines = lines_of(small_kernel())
    assert "#define BPF_FUNC_map_update_elem 2" in lines
    assert "#define BPF_FUNC_cgrp_storage_delete 211" in lines
    assert not [line for line in lines if "#define BPF_FUNC_map_lookup_elem " in line]


def test_helper_ids_of_the_abi():
    # From uapi/linux/bpf.h, spread over the list: one name too many or too few moves them.
    known = {"probe_read": 4, "tail_call": 12, "skb_output": 111, "probe_read_kernel": 113}
    known |= {"ringbuf_output": 130, "get_func_ip": 173, "ktime_get_tai_ns": 208}
    assert {name: HELPERS.index(name) for name in known} == known
    assert len(HELPERS) == len(set(HELPERS)) == 212


def test_of_anonymous_enums_only_the_wanted():
    text = tree.vmlinux(small_kernel())
    assert "enum  { BPF_ANY = 0, BPF_NOEXIST = 1 };" in text
    assert "SOMETHING_ELSE" not in text


def test_offsets_of_what_we_read_are_proved():
    lines = lines_of(small_kernel())
    assert '_Static_assert(sizeof(struct sk_buff) == 8, "sizeof struct sk_buff");' in lines
    proof = "__builtin_offsetof(struct sk_buff, vlan_all) == 4"
    assert any(proof in line for line in lines)


def test_missing_names_what_no_btf_has():
    missing = tree.missing(small_kernel())
    assert "sk_buff" not in missing
    assert "nf_conn" in missing


@pytest.mark.parametrize(
    ("machine", "arch", "config"),
    [("x86_64", "x86", "CONFIG_X86_64"), ("aarch64", "arm64", "CONFIG_ARM64")],
)
def test_files_of_each_architecture(machine, arch, config):
    files = tree.files(small_kernel(), machine, "6.1.0-18-amd64", 65536)
    assert f"arch/{arch}/include/" in files
    assert f"#define {config} 1" in files["include/linux/kconfig.h"]
    assert files["include/asm/page.h"] == "#define PAGE_SIZE 65536\n"
    assert machine in tree.architectures()


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-18-amd64", (6, 1, 0)),
        ("5.10.223+", (5, 10, 223)),
        ("4.14.336", (4, 14, 255)),
        ("7.2-rc1", (7, 2, 0)),
        ("6.18.44-fc-v769", (6, 18, 44)),
    ],
)
def test_version_code(release, version):
    major, minor, patch = version
    files = tree.files(small_kernel(), "x86_64", release, 4096)
    code = (major << 16) + (minor << 8) + patch
    assert f"#define LINUX_VERSION_CODE {code}\n" in files["include/linux/version.h"]
