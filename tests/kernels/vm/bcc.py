"""Other releases of bcc, for this machine's kernel and Python: unpacked, never installed."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from itertools import chain
from pathlib import Path

from tracer.errors import TracerError
from vm.apt import CACHE, Apt, locked
from vm.programs import run

OLD_PARTS = re.compile(r"lib(bpfcc|bpf|clang-cpp|llvm|ffi|z3|edit|bsd|md)[\d-]*$")
"""Of what it depends on, what another Debian has in other versions, or not at all."""
NEW_PARTS = re.compile(r"lib(?!python|perl)|zlib1g")
"""All of it: a newer bcc wants a newer libc, which brings its own loader of programs."""
RELEASES = {
    "0.18": ("bullseye", OLD_PARTS),
    "0.31": ("trixie", NEW_PARTS),
    "0.37": ("sid", NEW_PARTS),
}
"""bcc → the Debian suite that has it, and which of its packages it takes."""
PACKAGE = "python3-bpfcc"
ROOT = Path(__file__).parents[3]


def fetch(release: str) -> Path:
    """A Python that finds bcc `release`, from the cache if it is there.

    It is of a virtual environment that has all of the one we run in, but this bcc.
    """
    if release not in RELEASES:
        raise TracerError(f"bcc '{release}': unknown", f"known: {', '.join(RELEASES)}")
    target = CACHE / f"bcc-{release}"
    with locked():
        whole = target / "whole"
        if not whole.exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            suite, wanted = RELEASES[release]
            apt = Apt(suite)
            apt.update()
            packages = apt.parts(PACKAGE, wanted)
            if not packages[PACKAGE].startswith(f"{release}."):
                has = packages[PACKAGE]
                raise TracerError(f"Debian {suite} has bcc {has} now", "take another release")
            apt.unpack(packages, target)
            whole.touch()
        return _environment(target)


def _environment(target: Path) -> Path:
    """The Python of a virtual environment with this bcc before all else; made anew each time."""
    venv, base = target / "venv", Path(sys.executable).resolve()
    run(base, "-m", "venv", "--clear", "--without-pip", "--system-site-packages", venv,
        hint="apt-get install python3-venv")  # fmt: skip
    (packages,) = venv.glob("lib/python*/site-packages")
    shutil.copytree(target / "usr/lib/python3/dist-packages/bcc", packages / "bcc")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "tracer.pth").write_text(f"{ROOT}\n{ours}\n")
    python = venv / "bin/python"
    python.unlink()
    python.write_text(_wrapper(target, base))
    python.chmod(0o755)
    return python


def _wrapper(target: Path, python: Path) -> str:
    """Runs `python` with the libraries of `target`, and none of the programs that it starts."""
    loaders = chain(target.glob("usr/lib*/ld-linux-*"), Path("/").glob("lib*/ld-linux-*"))
    libraries = next(target.glob("usr/lib/*-linux-gnu"))
    loader = shlex.join([str(next(loaders)), "--library-path", str(libraries)])
    return f'#!/bin/sh\nexec {loader} --argv0 "$0" {shlex.quote(str(python))} "$@"\n'
