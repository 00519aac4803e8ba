"""The kernel's types, for bcc to compile against: from BTF, or from installed headers.

`ensure` makes the header tree of the running kernel once and remembers it (docs/headers.md).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.errors import TracerError
from tracer.kernel import cache, facts, tree
from tracer.kernel.btf import Btf, BtfError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BTF_DIR = Path("/sys/kernel/btf")
NOTES = Path("/sys/kernel/notes")
MODULES_DIR = Path("/lib/modules")
TRACEFS_DIRS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
MODULES = """
    nf_conntrack nf_nat nf_tables x_tables br_netfilter bridge 8021q sctp
    openvswitch mac80211 sch_fq_codel
""".split()  # noqa: SIM905 - names read best as running text
"""Modules whose BTF is read where loaded: they define types, reasons or tracepoints of ours."""

# One pair of __print_symbolic: `{ 2, "NOT_SPECIFIED" }`.
_SYMBOL = re.compile(r'\{\s*(\w+),\s*"(\w+)"\s*\}')
_GENERATOR = ("btf.py", "cdump.py", "facts.py", "helper_ids.py", "tree.py", "headers.py")


def default_cache_dirs() -> tuple[Path, ...]:
    """Where this user's trees live; a later one serves when those before it cannot."""
    if os.geteuid() == 0:
        return Path("/var/cache/tracer"), Path("/run/tracer"), Path("/dev/shm/tracer")  # noqa: S108 - trusted only if root's own
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "tracer", Path(f"/dev/shm/tracer-{os.geteuid()}")  # noqa: S108 - same


DEFAULT_CACHE_DIRS = default_cache_dirs()


@dataclass(frozen=True, slots=True)
class KernelTypes:
    """Where the running kernel's types are, and what user space must know of them."""

    source_dir: Path
    """The tree that bcc compiles against; told to it by `environment`."""
    key: str
    """Cache key: changes with the kernel, the modules read, and the generator."""
    origin: str
    """`btf`, or `headers` (installed ones)."""
    tracepoints: Mapping[str, tuple[str, ...]]
    """Raw tracepoint in BTF → C types of its arguments without the leading `void *__data`."""
    drop_reasons: Mapping[int, str]
    """Drop reason → name (core names without `SKB_DROP_REASON_`); empty if the kernel has none."""
    warnings: tuple[str, ...]
    """What could not be read, and what that costs."""

    def has(self, macro: str) -> bool:
        """Whether the tree defines one of its `HAS_…` macros; always False for headers."""
        if self.origin != "btf":
            return False
        text = (self.source_dir / "include/linux/vmlinux.h").read_text()
        return re.search(rf"^#define {macro}\b", text, re.MULTILINE) is not None

    @property
    def environment(self) -> dict[str, str]:
        """What bcc must find in the environment when it compiles.

        Nothing for installed headers: bcc finds them itself, and only then can use them where
        a distribution splits them in two directories (Debian's `build` and `source`).
        """
        return {"BCC_KERNEL_SOURCE": str(self.source_dir)} if self.origin == "btf" else {}


def ensure(cache_dirs: Sequence[Path] = DEFAULT_CACHE_DIRS) -> KernelTypes:
    """Return the running kernel's types, made now if in no cache; raises TracerError."""
    vmlinux, machine = BTF_DIR / "vmlinux", os.uname().machine
    if not vmlinux.exists():
        return _installed(f"no BTF at {vmlinux}")
    if machine not in tree.architectures():
        return _installed(f"no header tree is made for {machine}")
    try:
        modules = _read_modules()
        key = _key(vmlinux, modules)
        for directory in cache_dirs:
            known = cache.load(directory, key)
            if known is not None:
                return _types(directory / key, key, known)
        files, known = _generate(vmlinux.read_bytes(), modules)
    except (OSError, BtfError) as error:
        return _installed(f"BTF at {vmlinux} cannot be read ({error})")
    return _store(cache_dirs, key, files, known)


def _store(
    cache_dirs: Sequence[Path], key: str, files: Mapping[str, str], known: Mapping[str, Any]
) -> KernelTypes:
    failures = []
    for directory in cache_dirs:
        try:
            cache.store(directory, key, files, known)
        except OSError as error:
            failures.append(f"{directory}: {error.strerror or error}")
            continue
        return _types(directory / key, key, known)
    raise TracerError(
        f"kernel types: no cache directory can be used: {'; '.join(failures)}",
        f"free 1 MB of space, or make {cache_dirs[0]} a directory that only this user can write",
    )


def _types(source_dir: Path, key: str, known: Mapping[str, Any]) -> KernelTypes:
    return KernelTypes(
        source_dir,
        key,
        "btf",
        {name: tuple(types) for name, types in known["tracepoints"].items()},
        {int(value): name for value, name in known["drop_reasons"].items()},
        tuple(known["warnings"]),
    )


def _generate(
    vmlinux: bytes, modules: Mapping[str, bytes]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Make the tree's files, and its facts as JSON can hold them."""
    btf = Btf(vmlinux)
    warnings = []
    for name, data in modules.items():
        try:
            btf.add_module(data)
        except BtfError as error:
            warnings.append(f"kernel types: {BTF_DIR / name}: {error}; its types are not known")
    kernel = os.uname()
    files = tree.files(btf, kernel.machine, kernel.release, os.sysconf("SC_PAGE_SIZE"))
    known = {
        "tracepoints": facts.tracepoints(btf),
        "drop_reasons": {str(value): name for value, name in facts.drop_reasons(btf).items()},
        "warnings": warnings + [_lost(name) for name in tree.missing(btf) if name in tree.ASSERTED],
    }
    return files, known


def _lost(name: str) -> str:
    return f"kernel types: struct {name} is in no BTF; what tracer reads from it is not shown"


def _read_modules() -> dict[str, bytes]:
    """BTF of those of `MODULES` that are loaded (a built-in module's types are in vmlinux)."""
    found = {}
    for name in MODULES:
        try:
            found[name] = (BTF_DIR / name).read_bytes()
        except FileNotFoundError:
            continue  # built in, not loaded, or without BTF
    return found


def _key(vmlinux: Path, modules: Mapping[str, bytes]) -> str:
    """Identity of the kernel, of the modules read, and of the code that makes the tree."""
    digest = hashlib.blake2b(digest_size=12)

    def add(name: str, content: bytes) -> None:
        digest.update(f"{name} {len(content)}\n".encode() + content)

    notes = NOTES.read_bytes() if NOTES.exists() else b""
    # The build id is the note that GNU owns; without one the types themselves must serve.
    add("notes", notes if b"GNU\0" in notes else vmlinux.read_bytes())
    add("vmlinux", str(vmlinux.stat().st_size).encode())
    kernel = os.uname()
    add("uname", f"{kernel.machine} {kernel.release} {kernel.version}".encode())
    for name, content in modules.items():
        add(name, content)
    for name in _GENERATOR:
        add(name, Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _installed(why: str) -> KernelTypes:
    """Fall back to installed kernel headers; `why` says what is the matter with BTF."""
    release = os.uname().release
    for name in ("build", "source"):
        path = MODULES_DIR / release / name
        if (path / "include/linux/kconfig.h").is_file():
            reasons, lost = _printed_reasons(), "no typed tracepoints"
            if not reasons:
                lost += ", and drop reasons have no names"
            warning = f"kernel types: {why}: {lost}"
            return KernelTypes(path.resolve(), release, "headers", {}, reasons, (warning,))
    raise TracerError(
        f"kernel types: {why} and no kernel headers",
        f"install linux-headers-{release} (Debian, Ubuntu) or kernel-devel-{release} (Fedora, "
        "RHEL), or run a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    )


def _printed_reasons() -> dict[int, str]:
    """Drop reasons as tracefs prints them in kfree_skb; empty where it does not."""
    for root in TRACEFS_DIRS:
        try:
            text = (root / "events/skb/kfree_skb/format").read_text()
        except OSError:  # absent, or forbidden without root
            continue
        return {int(value, 0): name for value, name in _SYMBOL.findall(text)}
    return {}
