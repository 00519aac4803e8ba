"""What the kernel counts about a loaded program, from /proc/self/fdinfo."""

from __future__ import annotations

from pathlib import Path

from tracer.kernel.libbpf import library

BPF_STATS_RUN_TIME = 0


def measure_programs() -> int | None:
    """Have the kernel time all BPF programs until the descriptor is closed; None where it cannot.

    BPF_ENABLE_STATS, 5.8: d46edd671a14. Each run of a program takes some 20 ns longer meanwhile.
    """
    enable = getattr(library(), "bpf_enable_stats", None)
    descriptor = enable(BPF_STATS_RUN_TIME) if enable else -1
    return descriptor if descriptor >= 0 else None


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
