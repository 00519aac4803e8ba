"""The types of an arm64 kernel: Debian's package, fetched and verified by apt, is not booted."""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass

from tracer.errors import TracerError
from vm.apt import CACHE, Apt, locked
from vm.catalog import PARTS

SUITE, META_PACKAGE = "trixie", "linux-image-cloud-arm64"
"""The smallest image; what it lacks beside the others is drivers."""
HEADER = struct.Struct("<HBBI4I")
"""struct btf_header of linux/btf.h."""
MAGIC = HEADER.pack(0xEB9F, 1, 0, HEADER.size, 0, 0, 0, 0)[:8]
"""Its magic, version, flags and size."""


@dataclass(frozen=True, slots=True)
class Types:
    """What an arm64 kernel tells of itself."""

    release: str
    """As `uname -r` tells it."""
    btf: bytes
    """/sys/kernel/btf/vmlinux."""


def fetch() -> Types:
    """The types, from the cache if they are there."""
    with locked():
        target = CACHE / "arm64"
        if not (target / "release").exists():  # written last
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            apt = Apt(SUITE, "arm64")
            apt.update()
            packages = apt.parts(META_PACKAGE, PARTS)
            del packages[META_PACKAGE]  # holds nothing
            apt.unpack(packages, target)
            image = next(target.glob("boot/vmlinuz-*"))
            (target / "btf").write_bytes(find_btf(image.read_bytes()))
            release = image.name.removeprefix("vmlinuz-")
            for unpacked in ("boot", "lib", "usr"):
                shutil.rmtree(target / unpacked, ignore_errors=True)
            (target / "release").write_text(release)
        return Types((target / "release").read_text(), (target / "btf").read_bytes())


def find_btf(image: bytes) -> bytes:
    """The BTF that an uncompressed kernel image holds; TracerError if it holds none."""
    at = image.find(MAGIC)
    while at >= 0:
        *_, types_at, types_bytes, strings_at, strings_bytes = HEADER.unpack_from(image, at)
        # Two tables, one behind the other: eight bytes alone may come by chance.
        if types_at == 0 and types_bytes == strings_at > 0 < strings_bytes:
            return image[at : at + HEADER.size + strings_at + strings_bytes]
        at = image.find(MAGIC, at + 1)
    raise TracerError("the arm64 kernel image holds no BTF", "is it compressed? take another")
