"""What the kernel counts about a loaded program, from /proc/self/fdinfo."""

from __future__ import annotations

from pathlib import Path


def recursion_misses(program_fd: int) -> int:
    """Runs that the kernel skipped because the program was already running on that CPU.

    5.12: 9ed9e9ba2337; 0 where the kernel does not tell.
    """
    return _counts(program_fd).get("recursion_misses", 0)


def run_stats(program_fd: int) -> tuple[int, int] | None:
    """(runs, nanoseconds in all); None unless the kernel measures (kernel.bpf_stats_enabled).

    5.1: 492ecee892c2. Measuring stopped later, the counts stay.
    """
    counts = _counts(program_fd)
    runs = counts.get("run_cnt", 0)
    return (runs, counts.get("run_time_ns", 0)) if runs else None


def _counts(program_fd: int) -> dict[str, int]:
    lines = Path(f"/proc/self/fdinfo/{program_fd}").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: int(value) for name, _, value in pairs if value.strip().isdecimal()}
