"""The kernels we boot: where Debian has them, unpacked once, one directory a kernel release."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from vm.apt import CACHE, Apt, locked
from vm.programs import run

if TYPE_CHECKING:
    from pathlib import Path

META_PACKAGE = "linux-image-amd64"
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.x": "sid"}
"""Name of a kernel → the Debian suite whose kernel it is; sid's is the newest there is."""
PARTS = re.compile(r"linux-(image|binary|modules|base)-\d")
"""Packages that a kernel is made of; the newest are split into several."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel."""

    name: str
    """As in SUITES."""
    release: str
    """As `uname -r` will tell it."""
    root: Path
    """Holds `boot/` and `lib/modules/<release>/`."""

    @property
    def modules(self) -> Path:
        """Its module directory."""
        return self.root / "lib/modules" / self.release

    @property
    def image(self) -> Path:
        """The compressed kernel."""
        places = self.root / f"boot/vmlinuz-{self.release}", self.modules / "vmlinuz"
        return next(place for place in places if place.exists())


def fetch(name: str, *, again: bool = False) -> Kernel:
    """The kernel `name`, from the cache if it is there and not to be fetched `again`."""
    if name not in SUITES:
        raise TracerError(f"kernel '{name}': unknown", f"known: {', '.join(SUITES)}")
    with locked():
        # Names what was unpacked whole: a cut-off download has none.
        link = CACHE / name
        if again or not link.exists():
            _download(name, link)
        return Kernel(name, (link / "release").read_text(), link.resolve())


def _download(name: str, link: Path) -> None:
    """Unpack the newest packages of `name`, then point `link` at them."""
    apt = Apt(SUITES[name])
    apt.update()
    packages = apt.parts(META_PACKAGE, PARTS)
    del packages[META_PACKAGE]  # holds nothing
    image = next(package for package in packages if package.startswith("linux-image-"))
    release = image.removeprefix("linux-image-")
    target = CACHE / "unpacked" / release
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    apt.unpack(packages, target)
    if not (target / "lib").exists():
        (target / "lib").symlink_to("usr/lib")  # packages of a merged /usr
    run("depmod", "-b", target, release, hint="apt-get install kmod")
    (target / "release").write_text(release)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
