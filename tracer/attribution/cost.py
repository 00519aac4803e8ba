"""What reading rules costs: CPU time, which does not grow on a busy node."""

from __future__ import annotations

import resource
import time


def cpu_s() -> float:
    """CPU time of this thread, and of the programs that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + ended.ru_utime + ended.ru_stime
