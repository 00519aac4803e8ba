"""Other releases of bcc, for this machine's kernel and Python: unpacked, never installed."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import TracerError
from vm.apt import CACHE, Apt, locked
from vm.programs import run

RELEASES = {"0.18": "bullseye"}
"""bcc → the Debian suite that has it. Newer than this machine's need a newer libc, too."""
PARTS = re.compile(r"lib(bpfcc|bpf|clang-cpp|llvm|ffi|z3|edit|bsd|md)[\d-]*$")
"""Of what it depends on, what another Debian has in other versions, or not at all."""
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Bcc:
    """An unpacked bcc, and a Python that finds it."""

    python: Path
    """Of a virtual environment that has all of the one we run in, but this bcc."""
    libraries: Path
    """For LD_LIBRARY_PATH."""


def fetch(release: str) -> Bcc:
    """bcc `release`, from the cache if it is there."""
    if release not in RELEASES:
        raise TracerError(f"bcc '{release}': unknown", f"known: {', '.join(RELEASES)}")
    target = CACHE / f"bcc-{release}"
    with locked():
        whole = target / "whole"
        if not whole.exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            apt = Apt(RELEASES[release])
            apt.update()
            apt.unpack(apt.parts("python3-bpfcc", PARTS), target)
            whole.touch()
        return Bcc(_environment(target), next(target.glob("usr/lib/*-linux-gnu")))


def _environment(target: Path) -> Path:
    """The Python of a virtual environment with this bcc before all else; made anew each time."""
    venv = target / "venv"
    run(Path(sys.executable).resolve(), "-m", "venv", "--clear", "--without-pip",
        "--system-site-packages", venv, hint="apt-get install python3-venv")  # fmt: skip
    (packages,) = venv.glob("lib/python*/site-packages")
    shutil.copytree(target / "usr/lib/python3/dist-packages/bcc", packages / "bcc")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "tracer.pth").write_text(f"{ROOT}\n{ours}\n")
    return venv / "bin/python"
