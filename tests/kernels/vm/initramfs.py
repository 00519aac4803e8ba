"""What a guest boots from: busybox, one script, and the modules that reach this machine's root."""

from __future__ import annotations

import lzma
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracer.errors import TracerError

if TYPE_CHECKING:
    from vm.catalog import Kernel

NEEDED = ("virtio_pci", "virtio_console", "overlay", "9pnet_virtio", "9p")
INIT = Path(__file__).parent / "guest/init.sh"
CONSOLE = (5, 1)
"""Device number of /dev/console, for what the script says before it has mounted /dev."""


class Entry(NamedTuple):
    """One file of a cpio archive."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(kernel: Kernel) -> bytes:
    """The archive for one kernel."""
    modules = _insertion_order(kernel)
    directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [Entry(name, directory) for name in ("bin", "proc", "sys", "dev", "modules")]
    entries += [
        Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
        Entry("bin/busybox", program, _static_busybox()),
        Entry("init", program, INIT.read_bytes()),
        Entry("modules/order", program, "".join(f"{path.name}\n" for path in modules).encode()),
    ]
    entries += [Entry(f"modules/{path.name}", program, _unpacked(path)) for path in modules]
    return _cpio(entries)


def _cpio(entries: list[Entry]) -> bytes:
    """The `newc` format of Documentation/driver-api/early-userspace/buffer-format.rst."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        sizes = (len(entry.data), 0, 0, *entry.device, len(name), 0)
        fields = (inode, entry.mode, 0, 0, 1, 0, *sizes)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def _insertion_order(kernel: Kernel) -> list[Path]:
    """Files of the needed modules that are not built in, each after those it depends on."""
    built_in = {
        _module_name(line) for line in (kernel.modules / "modules.builtin").read_text().splitlines()
    }
    files, depends = {}, {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        files[_module_name(path)] = kernel.modules / path
        depends[_module_name(path)] = [_module_name(other) for other in others.split()]
    order: list[str] = []

    def add(name: str) -> None:
        if name in built_in or name in order:
            return
        if name not in files:
            raise TracerError(f"kernel {kernel.release}: no module {name}", "take another kernel")
        for other in depends[name]:
            add(other)
        order.append(name)

    for name in NEEDED:
        add(name)
    return [files[name] for name in order]


def _unpacked(path: Path) -> bytes:
    """A module as insmod takes it."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
    return data


def _static_busybox() -> bytes:
    """busybox, which must need no library: there is none yet."""
    found = shutil.which("busybox")
    data = Path(found).read_bytes() if found else b""
    if not data or b"/ld-linux" in data[:4096]:
        raise TracerError("busybox: absent, or not a static one", "apt-get install busybox-static")
    return data
