import os
from types import SimpleNamespace

import pytest
from btf_writer import BtfWriter

from tracer.errors import TracerError
from tracer.kernel import headers

KERNEL = SimpleNamespace(machine="x86_64", release="6.1.0-test", version="#1 SMP")
BUILD_ID = b"\4\0\0\0\4\0\0\0\3\0\0\0GNU\0abcd"


def vmlinux_types():
    w = BtfWriter()
    u32 = w.int("unsigned int", 4)
    skb = w.struct("sk_buff", 4, ("len", u32, 0))
    prototype = w.prototype(0, w.ptr(0), w.ptr(skb))
    w.typedef("btf_trace_consume_skb", w.ptr(prototype))
    w.enum("skb_drop_reason", SKB_DROP_REASON_NO_SOCKET=3)
    return w


def module(base, name):
    w = BtfWriter(base)
    w.struct(name, 4, ("zone", 1, 0))
    return w.blob()


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel's files below tmp_path, in place of /sys and /lib/modules."""
    for name in ("btf", "modules", "tracing"):
        (tmp_path / name).mkdir()
    (tmp_path / "btf/vmlinux").write_bytes(vmlinux_types().blob())
    (tmp_path / "notes").write_bytes(BUILD_ID)
    monkeypatch.setattr(headers, "BTF_DIR", tmp_path / "btf")
    monkeypatch.setattr(headers, "NOTES", tmp_path / "notes")
    monkeypatch.setattr(headers, "MODULES_DIR", tmp_path / "modules")
    monkeypatch.setattr(headers, "TRACEFS_DIRS", (tmp_path / "tracing",))
    monkeypatch.setattr(os, "uname", lambda: KERNEL)
    return tmp_path


def no_parse(*_):
    raise AssertionError("BTF was parsed")


def test_types_from_btf(kernel):
    types = headers.ensure([kernel / "cache"])
    assert types.origin == "btf"
    assert types.source_dir == kernel / "cache" / types.key
    assert types.tracepoints == {"consume_skb": ("struct sk_buff *",)}
    assert types.drop_reasons == {3: "NO_SOCKET"}
    assert "struct sk_buff {" in (types.source_dir / "include/linux/vmlinux.h").read_text()
    assert types.environment == {"BCC_KERNEL_SOURCE": str(types.source_dir)}
    assert any("struct nf_conn is in no BTF" in warning for warning in types.warnings)


def test_the_second_time_nothing_is_parsed(kernel, monkeypatch):
    first = headers.ensure([kernel / "cache"])
    monkeypatch.setattr(headers, "Btf", no_parse)
    assert headers.ensure([kernel / "cache"]) == first


def test_a_tree_in_a_later_directory_is_found(kernel, monkeypatch):
    first = headers.ensure([kernel / "second"])
    monkeypatch.setattr(headers, "Btf", no_parse)
    assert headers.ensure([kernel / "first", kernel / "second"]) == first


def test_corrupted_facts_are_made_again(kernel):
    first = headers.ensure([kernel / "cache"])
    (first.source_dir / "facts.json").write_text('{"files": {}, "facts": 7')
    assert headers.ensure([kernel / "cache"]) == first


def test_another_kernel_another_tree(kernel, monkeypatch):
    keys = {headers.ensure([kernel / "cache"]).key}
    (kernel / "notes").write_bytes(BUILD_ID + b"other build")
    keys.add(headers.ensure([kernel / "cache"]).key)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(**vars(KERNEL) | {"version": "#2"}))
    keys.add(headers.ensure([kernel / "cache"]).key)
    monkeypatch.setattr(headers, "_GENERATOR", ("btf.py",))
    keys.add(headers.ensure([kernel / "cache"]).key)
    assert len(keys) == 4


def test_without_a_build_id_the_types_are_the_key(kernel):
    (kernel / "notes").unlink()
    first = headers.ensure([kernel / "cache"]).key
    changed = (kernel / "btf/vmlinux").read_bytes().replace(b"NO_SOCKET", b"NO_SOCKEX")
    (kernel / "btf/vmlinux").write_bytes(changed)
    assert headers.ensure([kernel / "cache"]).key != first


def test_a_module_that_is_loaded_later_makes_another_tree(kernel):
    first = headers.ensure([kernel / "cache"])
    (kernel / "btf/nf_conntrack").write_bytes(module(vmlinux_types(), "nf_conn"))
    second = headers.ensure([kernel / "cache"])
    assert second.key != first.key
    assert (
        "#define HAS_nf_conn__zone 1" in (second.source_dir / "include/linux/vmlinux.h").read_text()
    )
    assert not any("nf_conn " in warning for warning in second.warnings)


def test_a_module_that_is_none_of_ours_does_not(kernel):
    first = headers.ensure([kernel / "cache"])
    (kernel / "btf/ext4").write_bytes(module(vmlinux_types(), "ext4_inode"))
    assert headers.ensure([kernel / "cache"]).key == first.key


def test_a_module_that_cannot_be_read_is_a_warning(kernel):
    (kernel / "btf/nf_nat").write_bytes(b"not BTF, but long enough for a header")
    types = headers.ensure([kernel / "cache"])
    assert any("btf/nf_nat: no BTF magic" in warning for warning in types.warnings)
    assert types.tracepoints


def test_the_next_directory_when_the_first_cannot_be_used(kernel):
    (kernel / "first").write_text("in the way")
    (kernel / "second").mkdir()
    (kernel / "second").chmod(0o777)
    candidates = [kernel / "absent/first", kernel / "first", kernel / "second", kernel / "third"]
    assert headers.ensure(candidates).source_dir.parent == kernel / "third"


def test_no_directory_can_be_used(kernel):
    (kernel / "first").write_text("in the way")
    with pytest.raises(TracerError) as caught:
        headers.ensure([kernel / "first", kernel / "absent/second"])
    assert "first: not a directory; " in caught.value.message
    assert "second: No such file or directory" in caught.value.message
    assert str(kernel / "first") in caught.value.hint


def install_headers(kernel, name="build"):
    path = kernel / "modules" / KERNEL.release / name
    (path / "include/linux").mkdir(parents=True)
    (path / "include/linux/kconfig.h").write_text("")
    return path


@pytest.mark.parametrize("name", ["build", "source"])
def test_installed_headers_without_btf(kernel, name):
    (kernel / "btf/vmlinux").unlink()
    path = install_headers(kernel, name)
    types = headers.ensure([kernel / "cache"])
    assert (types.origin, types.source_dir, types.tracepoints) == ("headers", path, {})
    assert types.environment == {}
    assert "drop reasons have no names" in types.warnings[0]


def test_drop_reasons_without_btf_come_from_tracefs(kernel):
    (kernel / "btf/vmlinux").unlink()
    install_headers(kernel)
    event = kernel / "tracing/events/skb/kfree_skb"
    event.mkdir(parents=True)
    (event / "format").write_text(
        "field:enum skb_drop_reason reason;\toffset:28;\tsize:4;\tsigned:0;\n"
        'print fmt: "reason: %s", __print_symbolic(REC->reason, { 2, "NOT_SPECIFIED" }, '
        '{ 3, "NO_SOCKET" }, { 0x10001, "RX_DROP_U_MIC_FAIL" })\n'
    )
    types = headers.ensure([kernel / "cache"])
    assert types.drop_reasons == {
        2: "NOT_SPECIFIED",
        3: "NO_SOCKET",
        0x10001: "RX_DROP_U_MIC_FAIL",
    }
    assert "names" not in types.warnings[0]


def test_neither_btf_nor_headers(kernel):
    (kernel / "btf/vmlinux").unlink()
    with pytest.raises(TracerError) as caught:
        headers.ensure([kernel / "cache"])
    assert (
        caught.value.message
        == f"kernel types: no BTF at {kernel}/btf/vmlinux and no kernel headers"
    )
    for word in ("linux-headers-6.1.0-test", "kernel-devel-6.1.0-test", "CONFIG_DEBUG_INFO_BTF=y"):
        assert word in caught.value.hint


def test_btf_that_this_reader_does_not_know(kernel):
    w = BtfWriter()
    w.add(20, "new kind")
    (kernel / "btf/vmlinux").write_bytes(w.blob())
    with pytest.raises(TracerError, match=r"unknown BTF kind 20\) and no kernel headers"):
        headers.ensure([kernel / "cache"])
    install_headers(kernel)
    assert headers.ensure([kernel / "cache"]).origin == "headers"


def test_a_machine_without_a_tree(kernel, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(**vars(KERNEL) | {"machine": "s390x"}))
    with pytest.raises(TracerError, match="no header tree is made for s390x"):
        headers.ensure([kernel / "cache"])


def test_cache_directories_of_root_and_of_others(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [str(path) for path in headers.default_cache_dirs()] == [
        "/var/cache/tracer",
        "/run/tracer",
        "/dev/shm/tracer",  # noqa: S108 - its owner and mode are checked
    ]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/.cache")
    assert str(headers.default_cache_dirs()[0]) == "/home/me/.cache/tracer"
