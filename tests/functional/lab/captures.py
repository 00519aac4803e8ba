"""What Wireshark finds in a capture."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def rows(path: Path, *fields: str) -> list[list[str]]:
    """`fields` of every packet, by tshark; a complaint of it is an AssertionError."""
    if not shutil.which("tshark"):
        pytest.skip("tshark is not installed")
    argv = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    for field in fields:
        argv += ["-e", field]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    problems = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert (done.returncode, problems) == (0, [])
    return [line.split("\t") for line in done.stdout.splitlines()]
