"""`--max-cpu`: what `flows` itself costs is measured, and kept within bounds by sampling."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from tracer.analysis.budget import MAX_RATE, next_rate
from tracer.errors import TracerError
from tracer.kernel.stats import measure_programs, run_stats
from tracer.session import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def cpu_percent(text: str) -> float:
    """`2%` → 2.0; TracerError for anything else, zero included."""
    found = _PERCENT.fullmatch(text.strip())
    percent = float(found[1]) if found else 0.0
    if percent <= 0:
        raise TracerError(f"--max-cpu '{text}': not understood", "write it as 2% or 0.5%")
    return percent


def add_budget(parser: argparse.ArgumentParser) -> None:
    """--max-cpu."""
    group = parser.add_argument_group("budget")
    group.add_argument(
        "--max-cpu", type=cpu_percent, metavar="PERCENT",
        help="of one CPU, for tracer and its programs in the kernel: beyond it packets are"
        " sampled, and `sample.rate` tells (default: no limit, every packet is counted)",
    )  # fmt: skip


class Budget:
    """Looks every interval at what was used, and decides the rate of the next."""

    def __init__(self, percent: float, programs: Mapping[str, int]) -> None:
        """Begin to measure; `programs` are descriptors by name."""
        self._percent, self._programs = percent, programs
        self.rate = 1
        """One packet of so many is counted."""
        self._measuring = measure_programs()
        if self._measuring is None:
            say("warning: --max-cpu: the kernel does not time programs (5.8): only the rest counts")
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        """(nanoseconds used so far, of the clock)."""
        stats = [run_stats(fd) for fd in self._programs.values()]
        programs_ns = sum(found[1] for found in stats if found)
        return programs_ns + time.process_time_ns(), time.monotonic_ns()

    def next(self) -> int:
        """The rate from now on; a change is said."""
        used_ns, now_ns = self._now()
        elapsed_ns = max(1, now_ns - self._before[1])
        used = 100 * (used_ns - self._before[0]) / elapsed_ns
        self._before = used_ns, now_ns
        rate = next_rate(self.rate, used, self._percent)
        if rate != self.rate:
            counted = f"one packet in {rate} is counted" if rate > 1 else "each packet is counted"
            most = ", which is the least" if rate == MAX_RATE else ""
            say(f"{used:.2f} % of a CPU used, {self._percent:g} % allowed: {counted}{most}")
        self.rate = rate
        return rate

    def close(self) -> None:
        """Let the kernel measure no more."""
        if self._measuring is not None:
            os.close(self._measuring)
            self._measuring = None
