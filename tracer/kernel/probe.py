"""What this kernel and this Python can do for tracer: one finding per question.

Nothing here changes the node. Without root the questions that need it are answered by
"not permitted", the others as usual.
"""

from __future__ import annotations

import ctypes as ct
import importlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from tracer.kernel import headers, libbpf, pcap
from tracer.model import Finding, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RINGBUF_MAP = 27
BCC_HINT = "Debian, Ubuntu: apt-get install python3-bpfcc; Fedora, RHEL: dnf install python3-bcc"

CAPABILITIES = {"sys_ptrace": 19, "sys_admin": 21, "syslog": 34, "perfmon": 38, "bpf": 39}
"""The capabilities that tracer uses → bit in CapEff (linux/capability.h)."""

CHEAP_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "xen"}
"""Clock sources read in tens of ns; each count and each drop reads the clock once."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the kernel tells about itself; tests point them elsewhere."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


def findings(
    places: Places, cache_dirs: Sequence[Path] = headers.DEFAULT_CACHE_DIRS
) -> Iterator[Finding]:
    """Look at everything but the hooks, in the order in which a reader wants to know it."""
    yield Finding("kernel", State.OK, f"{platform.release()} {platform.machine()}")
    yield privileges(places)
    yield bpf()
    yield lockdown(places)
    yield jit(places)
    yield btf(places)
    yield header_cache(cache_dirs)
    yield bcc()
    yield libbpf_library()
    yield libpcap()
    yield kallsyms(places)
    yield tracefs(places)
    yield clock(places)


def effective_capabilities(places: Places) -> set[str]:
    """Return those of `CAPABILITIES` that this process has."""
    status = (places.proc / "self/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if "CapEff" in line)
    return {name for name, bit in CAPABILITIES.items() if mask >> bit & 1}


def privileges(places: Places) -> Finding:
    """Tell whether this process may load programs and look into others' namespaces."""
    has = effective_capabilities(places)
    who = f"uid {os.geteuid()} with {', '.join(sorted(has)) or 'no capability that helps'}"
    if "sys_admin" not in has and not {"bpf", "perfmon"} <= has:
        lost = f"{who}: neither sys_admin nor bpf and perfmon"
        return Finding("privileges", State.MISSING, lost, "run it with sudo")
    if not {"sys_admin", "sys_ptrace"} <= has:
        lost = f"{who}: pods' network namespaces cannot be entered, devices stay without pod"
        return Finding("privileges", State.DEGRADED, lost, "run it with sudo")
    return Finding("privileges", State.OK, who)


def bpf() -> Finding:
    """Tell whether the bpf system call loads a program and makes a ring buffer."""
    try:
        os.close(load_empty())
        os.close(_make_ring_buffer())
    except TracerError as error:
        return Finding("bpf", State.MISSING, error.message, error.hint)
    except OSError as error:
        hint = "run it with sudo; in a container, give it CAP_BPF and CAP_PERFMON, or privileges"
        return Finding("bpf", State.MISSING, f"the bpf system call: {error.strerror}", hint)
    return Finding("bpf", State.OK, "loads programs, makes ring buffers")


def load_empty(kind: int = libbpf.BPF_PROG_TYPE_RAW_TRACEPOINT) -> int:
    """Load a program of BPF_PROG_TYPE_ `kind` that does nothing; its fd, raises OSError."""
    if reason := libbpf.typed_tracepoints_reason():
        raise TracerError(f"cannot be tried: {reason}", "upgrade libbpf")
    options = libbpf.ProgLoadOpts(sz=ct.sizeof(libbpf.ProgLoadOpts))
    code = libbpf.EMPTY_PROGRAM
    return libbpf.check(
        libbpf.library().bpf_prog_load(
            kind,
            b"probe",
            b"GPL",
            code,
            ct.c_size_t(len(code) // 8),
            ct.byref(options),
        )
    )


def _make_ring_buffer() -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    return libbpf.check(libbpf.library().bpf_map_create(RINGBUF_MAP, b"probe", 0, 0, page, None))


def lockdown(places: Places) -> Finding:
    """Tell whether the kernel's lockdown forbids to read kernel memory."""
    try:
        text = (places.sys / "kernel/security/lockdown").read_text().strip()
    except (FileNotFoundError, PermissionError):
        return Finding("lockdown", State.OK, "none that could be read")
    if "[confidentiality]" in text:
        lost = "confidentiality: BPF programs may not read kernel memory"
        return Finding("lockdown", State.MISSING, lost, "boot with lockdown=integrity or none")
    return Finding("lockdown", State.OK, text)


def jit(places: Places) -> Finding:
    """Tell whether BPF programs run as machine code."""
    try:
        enabled = (places.proc / "sys/net/core/bpf_jit_enable").read_text().strip()
    except (FileNotFoundError, PermissionError):
        return Finding("jit", State.OK, "not told to this user")
    if enabled == "0":
        lost = "off: programs are interpreted, several times slower"
        return Finding("jit", State.DEGRADED, lost, "sysctl net.core.bpf_jit_enable=1")
    return Finding("jit", State.OK, "on")


def btf(places: Places) -> Finding:
    """Tell whether the kernel describes its own types."""
    directory = places.sys / "kernel/btf"
    if (directory / "vmlinux").exists():
        modules = sum(1 for entry in directory.iterdir() if entry.name != "vmlinux")
        return Finding("btf", State.OK, f"{directory / 'vmlinux'}, and of {modules} modules")
    try:
        found = headers.ensure()
    except TracerError as error:
        return Finding("btf", State.MISSING, error.message, error.hint)
    lost = f"absent; the headers in {found.source_dir} serve: no typed tracepoints, no reason names"
    return Finding("btf", State.DEGRADED, lost, "a kernel with CONFIG_DEBUG_INFO_BTF=y")


def header_cache(cache_dirs: Sequence[Path]) -> Finding:
    """Tell whether the kernel's types are at hand for BCC, making them if they are not."""
    try:
        types = headers.ensure(cache_dirs)
    except TracerError as error:
        return Finding("header cache", State.MISSING, error.message, error.hint)
    if types.warnings:
        return Finding("header cache", State.DEGRADED, "; ".join(types.warnings))
    detail = f"{types.source_dir}: {len(types.tracepoints)} tracepoints, "
    return Finding("header cache", State.OK, detail + f"{len(types.drop_reasons)} drop reasons")


def bcc() -> Finding:
    """Tell whether BCC is there, and whether it is BCC."""
    spec = importlib.util.find_spec("bcc")
    if spec is None:
        return Finding("bcc", State.MISSING, "not installed for this Python", BCC_HINT)
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    if not any((place / "libbcc.py").is_file() for place in places):
        found = f"{spec.origin} is not BCC but another package of that name (PyPI's)"
        return Finding("bcc", State.MISSING, found, f"pip uninstall bcc; {BCC_HINT}")
    try:
        module = importlib.import_module("bcc")
    except (ImportError, OSError) as error:
        return Finding("bcc", State.MISSING, f"{spec.origin}: {error}", BCC_HINT)
    version = getattr(module, "__version__", "of unknown version")
    return Finding("bcc", State.OK, f"{version}, {places[0]}")


def libbpf_library() -> Finding:
    """Tell whether libbpf is there and loads typed tracepoints."""
    try:
        library = libbpf.library()
    except TracerError as error:
        return Finding("libbpf", State.MISSING, error.message, error.hint)
    if reason := libbpf.typed_tracepoints_reason():
        lost = f"{reason}: no typed tracepoints, each event costs 3 to 5 times as much"
        return Finding("libbpf", State.DEGRADED, lost, "upgrade libbpf")
    library.libbpf_version_string.restype = ct.c_char_p
    return Finding("libbpf", State.OK, library.libbpf_version_string().decode())


def libpcap() -> Finding:
    """Tell whether packet filters can be compiled."""
    try:
        library = pcap.libpcap()
    except TracerError as error:
        return Finding("libpcap", State.DEGRADED, "absent: no packet filters", error.hint)
    library.pcap_lib_version.restype = ct.c_char_p
    return Finding("libpcap", State.OK, library.pcap_lib_version().decode())


def kallsyms(places: Places) -> Finding:
    """Tell whether the kernel shows its addresses."""
    try:
        with (places.proc / "kallsyms").open() as file:
            # The first symbols may be at 0 in truth: per-CPU ones, on x86 before 6.15.
            shown, why = any(line.partition(" ")[0].strip("0") for line in file), ""
    except OSError as error:
        shown, why = False, f"{error.strerror}: "
    if shown:
        return Finding("kallsyms", State.OK, "readable, with addresses")
    lost = f"{why}no addresses: drops cannot name the function, netfilter hooks are not told"
    return Finding("kallsyms", State.DEGRADED, lost, "root, CAP_SYSLOG, kernel.kptr_restrict < 2")


def tracefs(places: Places) -> Finding:
    """Tell whether tracefs is mounted; no hook of tracer needs it, other tools may."""
    for place in ("kernel/tracing", "kernel/debug/tracing"):
        # os.path.isdir: False as well where this user may not look
        if os.path.isdir(places.sys / place / "events"):  # noqa: PTH112 - Path.is_dir raises
            return Finding("tracefs", State.OK, f"{places.sys / place}; no hook needs it")
    return Finding("tracefs", State.OK, "not mounted or hidden; no hook needs it")


def clock(places: Places) -> Finding:
    """Tell what a reading of the clock costs the programs."""
    source = places.sys / "devices/system/clocksource/clocksource0/current_clocksource"
    try:
        name = source.read_text().strip()
    except OSError:
        return Finding("clock", State.OK, "of unknown source")
    if name in CHEAP_CLOCKS:
        return Finding("clock", State.OK, name)
    lost = f"{name}: each reading is slow (up to 1 us), and so is each packet counted"
    return Finding("clock", State.DEGRADED, lost, "why is tsc not used? see the kernel's log")
