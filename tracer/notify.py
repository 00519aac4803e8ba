"""What systemd wants to know of a service (sd_notify(3)): ready, alive, reloading, stopping."""

from __future__ import annotations

import os
import socket
import time


class Notifier:
    """Talks to NOTIFY_SOCKET, where there is one; without it every call does nothing."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._period_s = _watchdog_s() if self._address else None
        self._alive_s = 0.0

    def ready(self, status: str) -> None:
        """All hooks are attached."""
        self._send("READY=1", f"STATUS={status}")

    def alive(self) -> None:
        """To be called at least every `watchdog_s`; says so no more often than need be."""
        now_s = time.monotonic()
        if self._period_s and now_s - self._alive_s >= self._period_s / 4:
            self._alive_s = now_s
            self._send("WATCHDOG=1")

    @property
    def watchdog_s(self) -> float:
        """Longest time between two calls of `alive`: half of what systemd allows."""
        return self._period_s / 2 if self._period_s else float("inf")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1)
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return  # the service manager is gone or busy: that must not stop the service


def _watchdog_s() -> float | None:
    """WatchdogSec of the unit, if it is meant for this process."""
    period_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not period_us.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(period_us) / 1e6
