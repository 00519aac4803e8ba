"""Debian's packages of any suite, fetched and verified by apt, unpacked and never installed.

apt gets its own sources, lists and cache below `CACHE`, apart from the machine's own.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from vm.programs import run

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tracer-kernels-vm")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PUBLIC_MIRROR = "http://deb.debian.org/debian"
NETWORK = "is the network up? then run it again"


@contextmanager
def locked() -> Iterator[None]:
    """`CACHE` is there, and ours alone for the block."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Apt:
    """apt with one suite of Debian as its only source, for this machine or another."""

    def __init__(self, suite: str, architecture: str = "amd64") -> None:
        self._suite = suite
        self._home = CACHE / "apt" / f"{suite}-{architecture}"
        self._sources = self._home / "sources.list"
        self._options = (
            f"-oDir::Etc::SourceList={self._sources}",
            "-oDir::Etc::SourceParts=-",
            f"-oDir::State::Lists={self._home / 'lists'}",
            f"-oDir::Cache={self._home / 'cache'}",
            # What this machine has installed says nothing of the suite.
            "-oDir::State::Status=/dev/null",
            f"-oAPT::Architecture={architecture}",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=2",
            "-oAcquire::http::Timeout=30",
        )

    def update(self) -> None:
        """Fetch the package list of the suite."""
        if not KEYRING.exists():
            raise TracerError(f"{KEYRING}: absent", "apt-get install debian-archive-keyring")
        for directory in ("lists/partial", "cache/archives/partial"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        self._sources.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {self._suite} main\n")
        # A list that cannot be fetched is an error, not a warning.
        words = ("-oAPT::Update::Error-Mode=any", "-q", "update")
        run("apt-get", *self._options, *words, hint=NETWORK)

    def parts(self, package: str, wanted: re.Pattern[str]) -> dict[str, str]:
        """`package` and what it depends on, as far as `wanted` matches the names → version."""
        todo, found = [package], {}
        while todo:
            record = run("apt-cache", *self._options, "show", "--no-all-versions", todo[-1],
                         hint=f"is it still in Debian {self._suite}?")  # fmt: skip
            fields = dict(re.findall(r"^(\w+): (.*)$", record, re.MULTILINE))
            found[todo.pop()] = fields["Version"]
            names = re.split(r"[ :(,|]+", fields.get("Depends", ""))
            todo += [each for each in names if wanted.match(each) and each not in found]
        return found

    def unpack(self, packages: dict[str, str], target: Path) -> None:
        """Fetch packages (→ version) and unpack them below `target`."""
        for package, version in packages.items():
            print(f"fetching {package} {version}", file=sys.stderr)
            run("apt-get", *self._options, "-q", "download", f"{package}={version}",
                cwd=target, hint=NETWORK)  # fmt: skip
            for archive in target.glob("*.deb"):
                run("dpkg", "-x", archive, target, hint="is the disk full?")
                archive.unlink()


def _mirror() -> str:
    """The Debian mirror that this machine uses, else the public one."""
    told = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)",
               hint="scripts/kernels needs Debian's or Ubuntu's apt")  # fmt: skip
    for line in told.splitlines():
        address, _, suite = line.partition(" ")
        if address.rstrip("/").endswith("/debian") and "-" not in suite:
            return address.rstrip("/")
    return PUBLIC_MIRROR
