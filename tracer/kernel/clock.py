"""The kernel's event clock and the wall clock."""

from __future__ import annotations

import time


def wall_offset_ns() -> int:
    """CLOCK_REALTIME - CLOCK_BOOTTIME, ns: add it to an event's time.

    Events carry bpf_ktime_get_boot_ns (5.8: 71d19214776e), which goes on in suspend. Ask anew
    for every batch: then a step of the wall clock shows in the next records, as it should.
    The pair of reads with the smallest gap of three wins.
    """
    best_gap_ns, offset_ns = None, 0
    for _ in range(3):
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        gap_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before_ns
        if best_gap_ns is None or gap_ns < best_gap_ns:
            best_gap_ns, offset_ns = gap_ns, wall_ns - before_ns - gap_ns // 2
    return offset_ns
