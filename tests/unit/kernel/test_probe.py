"""What `doctor` concludes from what the kernel shows, on made-up /proc and /sys."""

import sys

import pytest

from tracer.kernel import probe
from tracer.model import State

ALL_CAPABILITIES = sum(1 << bit for bit in probe.CAPABILITIES.values())


@pytest.fixture
def places(tmp_path):
    return probe.Places(tmp_path / "proc", tmp_path / "sys")


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def bits(*names):
    return sum(1 << probe.CAPABILITIES[name] for name in names)


@pytest.mark.parametrize(
    ("mask", "state"),
    [
        (ALL_CAPABILITIES, State.OK),
        (bits("sys_admin", "sys_ptrace"), State.OK),
        (bits("bpf", "perfmon"), State.DEGRADED),
        (bits("sys_admin"), State.DEGRADED),
        (bits("bpf"), State.MISSING),
        (bits("sys_ptrace", "syslog"), State.MISSING),
        (0, State.MISSING),
    ],
)
def test_privileges(places, mask, state):
    put(places.proc / "self/status", f"Name:\tx\nCapPrm:\t0\nCapEff:\t{mask:016x}\n")
    assert probe.privileges(places).state is state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("[none] integrity confidentiality\n", State.OK),
        ("none [integrity] confidentiality\n", State.OK),
        ("none integrity [confidentiality]\n", State.MISSING),
    ],
)
def test_lockdown(places, text, state):
    put(places.sys / "kernel/security/lockdown", text)
    assert probe.lockdown(places).state is state


def test_lockdown_absent(places):
    assert probe.lockdown(places).state is State.OK


@pytest.mark.parametrize(("text", "state"), [("0\n", State.DEGRADED), ("1\n", State.OK)])
def test_jit(places, text, state):
    put(places.proc / "sys/net/core/bpf_jit_enable", text)
    assert probe.jit(places).state is state


def test_btf_counts_modules(places):
    for name in ("vmlinux", "nf_conntrack", "bridge"):
        put(places.sys / "kernel/btf" / name, "")
    finding = probe.btf(places)
    assert finding.state is State.OK
    assert "2 modules" in finding.detail


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("ffffffff81000000 T _text\n", State.OK),
        ("0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n", State.OK),
        ("0000000000000000 T _text\n0000000000000000 t a\n", State.DEGRADED),
        ("", State.DEGRADED),
    ],
)
def test_kallsyms(places, text, state):
    put(places.proc / "kallsyms", text)
    assert probe.kallsyms(places).state is state


def test_kallsyms_absent(places):
    assert probe.kallsyms(places).state is State.DEGRADED


@pytest.mark.parametrize(("name", "state"), [("tsc", State.OK), ("hpet", State.DEGRADED)])
def test_clock(places, name, state):
    put(places.sys / "devices/system/clocksource/clocksource0/current_clocksource", name + "\n")
    finding = probe.clock(places)
    assert finding.state is state
    assert name in finding.detail


@pytest.fixture
def only_packages_in(monkeypatch, tmp_path):
    """`import bcc` finds what is in tmp_path, or nothing."""
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_bcc_absent(only_packages_in):
    assert list(only_packages_in.iterdir()) == []
    finding = probe.bcc()
    assert finding.state is State.MISSING
    assert "python3-bpfcc" in finding.hint


def test_pypis_bcc_is_told_apart(only_packages_in):
    """PyPI's package of that name has __init__.py and bcc.py, and nothing to do with BPF."""
    put(only_packages_in / "bcc/__init__.py", "raise SystemExit('must not be run')")
    put(only_packages_in / "bcc/bcc.py", "")
    finding = probe.bcc()
    assert finding.state is State.MISSING
    assert "is not BCC" in finding.detail
    assert str(only_packages_in) in finding.detail
    assert finding.hint.startswith("pip uninstall bcc")


def test_a_broken_bcc_says_why(only_packages_in):
    put(only_packages_in / "bcc/__init__.py", "raise ImportError('libbcc.so.0: cannot open')")
    put(only_packages_in / "bcc/libbcc.py", "")
    finding = probe.bcc()
    assert finding.state is State.MISSING
    assert "libbcc.so.0: cannot open" in finding.detail
