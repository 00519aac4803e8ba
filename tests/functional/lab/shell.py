"""Running programs: argument lists, a timeout on each, and an error that tells what failed."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 20.0


class CommandFailedError(AssertionError):
    """A program of the laboratory returned non-zero; the text holds its stderr."""


def run(*argv: str, check: bool = True, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Stdout of `argv`; `CommandFailedError` on a non-zero exit unless `check` is false."""
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        raise CommandFailedError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def until(holds: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until `holds()` is true, looking every 20 ms; AssertionError names `what` if never."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)
