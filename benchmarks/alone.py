"""For benchmarks on the laboratory of tests/functional: one user of it at a time."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = Path("/run/tracer-tests.lock")
"""The tests' own: they sweep away every namespace that is named as theirs."""


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no functional test runs; none begins during the block."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
