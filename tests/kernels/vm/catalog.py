"""The kernels we boot: where Debian has them, fetched and verified by apt, unpacked once.

Nothing is installed: apt gets its own sources, lists and cache below `CACHE`, and packages are
unpacked there, one directory a kernel release.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from vm.programs import run

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tracer-kernels-vm")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PUBLIC_MIRROR = "http://deb.debian.org/debian"
META_PACKAGE = "linux-image-amd64"
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.x": "sid"}
"""Name of a kernel → the Debian suite whose kernel it is; sid's is the newest there is."""
PARTS = re.compile(r"linux-(image|binary|modules|base)-\d")
"""Packages that a kernel is made of; the newest are split into several."""
NETWORK = "is the network up? then run it again"


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
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked():
        # Names what was unpacked whole: a cut-off download has none.
        link = CACHE / name
        if again or not link.exists():
            _download(name, link)
        return Kernel(name, (link / "release").read_text(), link.resolve())


@contextmanager
def _locked() -> Iterator[None]:
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(name: str, link: Path) -> None:
    """Unpack the newest packages of `name`, then point `link` at them."""
    apt = Apt(SUITES[name])
    apt.update()
    packages = apt.parts(META_PACKAGE)
    image = next(package for package in packages if package.startswith("linux-image-"))
    release = image.removeprefix("linux-image-")
    target = CACHE / "unpacked" / release
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for package, version in packages.items():
        print(f"fetching {package} {version}", file=sys.stderr)
        run("apt-get", *apt.options, "-q", "download", f"{package}={version}",
            cwd=target, hint=NETWORK)  # fmt: skip
        for archive in target.glob("*.deb"):
            run("dpkg", "-x", archive, target, hint="is the disk full?")
            archive.unlink()
    if not (target / "lib").exists():
        (target / "lib").symlink_to("usr/lib")  # packages of a merged /usr
    run("depmod", "-b", target, release, hint="apt-get install kmod")
    (target / "release").write_text(release)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


class Apt:
    """apt with one suite of Debian as its only source, apart from the machine's own."""

    def __init__(self, suite: str) -> None:
        self._suite = suite
        self._home = CACHE / "apt" / suite
        self._sources = self._home / "sources.list"
        self.options = (
            f"-oDir::Etc::SourceList={self._sources}",
            "-oDir::Etc::SourceParts=-",
            f"-oDir::State::Lists={self._home / 'lists'}",
            f"-oDir::Cache={self._home / 'cache'}",
            "-oAPT::Architecture=amd64",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
        )

    def update(self) -> None:
        """Fetch the package list of the suite."""
        if not KEYRING.exists():
            raise TracerError(f"{KEYRING}: absent", "apt-get install debian-archive-keyring")
        for directory in ("lists/partial", "cache/archives/partial"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        self._sources.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {self._suite} main\n")
        run("apt-get", *self.options, "-q", "update", hint=NETWORK)

    def parts(self, meta_package: str) -> dict[str, str]:
        """The packages that `meta_package` is made of → version."""
        todo, found = [meta_package], {}
        while todo:
            package = todo.pop()
            record = run("apt-cache", *self.options, "show", "--no-all-versions", package,
                         hint=f"is it still in Debian {self._suite}?")  # fmt: skip
            fields = dict(re.findall(r"^(\w+): (.*)$", record, re.MULTILINE))
            if package != meta_package:
                found[package] = fields["Version"]
            names = re.split(r"[ :(,|]+", fields.get("Depends", ""))
            todo += [each for each in names if PARTS.match(each) and each not in found]
        return found


def _mirror() -> str:
    """The Debian mirror that this machine uses, else the public one."""
    told = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)",
               hint="scripts/kernels needs Debian's or Ubuntu's apt")  # fmt: skip
    for line in told.splitlines():
        address, _, suite = line.partition(" ")
        if address.rstrip("/").endswith("/debian") and "-" not in suite:
            return address.rstrip("/")
    return PUBLIC_MIRROR
