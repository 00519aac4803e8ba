"""The kernel's event clock and the wall clock."""

from __future__ import annotations

import ctypes as ct
import errno
import os
import time

TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
FAR_S = 1 << 33
"""Seconds since 1970 that no clock reaches, but the kernel's arithmetic does."""
SLEW_NS = 1_000_000
"""A wall clock that is slewed by less than this keeps its offset: times of one run agree."""
MOST_STEPS = 64


def wall_offset_ns() -> int:
    """CLOCK_REALTIME - CLOCK_BOOTTIME, ns: add it to an event's time.

    Events carry bpf_ktime_get_boot_ns (5.8: 71d19214776e), which goes on in suspend. The pair of
    reads with the smallest gap of three wins.
    """
    best_gap_ns, offset_ns = None, 0
    for _ in range(3):
        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        gap_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before_ns
        if best_gap_ns is None or gap_ns < best_gap_ns:
            best_gap_ns, offset_ns = gap_ns, wall_ns - before_ns - gap_ns // 2
    return offset_ns


class WallClock:
    """The wall clock's offset as it is, and as it was before each step of the clock.

    An event keeps the time that the wall clock showed when it happened, whenever it is read. The
    kernel tells of steps at once (TFD_TIMER_CANCEL_ON_SET) to who waits for `descriptor`.
    """

    def __init__(self) -> None:
        self.offset_ns = wall_offset_ns()
        self.steps: tuple[tuple[int, int], ...] = ()
        """(CLOCK_BOOTTIME at which a step was seen, offset until then), oldest first."""
        self.descriptor = _cancelled_on_set()
        """Readable after a step; -1 where there is none: then steps are seen by `look` only."""

    def look(self) -> int:
        """See whether the clock was stepped: by how many ns, 0 if not (slews follow silently)."""
        told = self._told()
        now_ns, offset_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), wall_offset_ns()
        change_ns = offset_ns - self.offset_ns
        if abs(change_ns) <= SLEW_NS:
            return 0
        # Without word from the kernel, a change that large is a step all the same.
        if told or self.descriptor < 0:
            self.steps = (*self.steps, (now_ns, self.offset_ns))[-MOST_STEPS:]
        else:
            change_ns = 0
        self.offset_ns = offset_ns
        return change_ns

    def close(self) -> None:
        """Give the timer back. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _told(self) -> bool:
        if self.descriptor < 0:
            return False
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        return True


class _Timespec(ct.Structure):
    _fields_ = (("tv_sec", ct.c_long), ("tv_nsec", ct.c_long))


class _Itimerspec(ct.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


def _cancelled_on_set() -> int:
    """A timer that never fires, but whose read fails when the wall clock is set; -1 without one."""
    libc = ct.CDLL(None, use_errno=True)
    fd = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        return -1
    when = _Itimerspec(_Timespec(0, 0), _Timespec(FAR_S, 0))
    flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
    if libc.timerfd_settime(fd, flags, ct.byref(when), None):
        os.close(fd)
        return -1
    return int(fd)
