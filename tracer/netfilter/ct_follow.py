"""The ears in many network namespaces, read together."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import numpy as np

from tracer.ct_layout import ENTRY
from tracer.netfilter import ctnetlink
from tracer.netfilter.ct_decode import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from tracer.netfilter.ctnetlink import Ears

READ_BYTES = 1 << 18
DRAINS = 256
"""Most reads of one namespace before others have their turn: nearly 64 MiB."""


class Follower:
    """Hears the conntrack events of the namespaces it is told to follow.

    `run_in(path, inode, work)` calls `work` inside a namespace; `groups` are names of
    `ctnetlink.GROUPS`.
    """

    def __init__(
        self,
        run_in: Callable[[str, int, Callable[[], Ears]], Ears],
        groups: Collection[str],
        buffer_bytes: int,
    ) -> None:
        self._run_in, self._groups, self._buffer_bytes = run_in, groups, buffer_bytes
        self._ears: dict[int, Ears] = {}
        self._by_fd: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._refused: set[int] = set()
        self._epoll = select.epoll()
        self._data = bytearray(READ_BYTES)
        self._decoder = Decoder()
        self.has_more = False
        """Whether the last `read` left something, for want of room."""

    @property
    def followed(self) -> Collection[int]:
        """Inodes of the namespaces that are heard."""
        return self._ears.keys()

    def fileno(self) -> int:
        """Readable when an event waits."""
        return self._epoll.fileno()

    def update(self, wanted: Mapping[int, str]) -> tuple[list[int], list[str]]:
        """Follow just `wanted` (inode → path). Returns what is new, and why some are missing.

        A namespace that cannot be heard is told of once.
        """
        for netns in self._ears.keys() - wanted.keys():
            self._close(netns)
        opened, problems = [], []
        for netns in [one for one in wanted if one not in self._ears]:
            try:
                self._open(netns, wanted[netns])
                opened.append(netns)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            except OSError as error:
                if netns not in self._refused:
                    problems.append(f"netns {netns}: {os.strerror(error.errno or 0).lower()}")
                self._refused.add(netns)
        return opened, problems

    def _open(self, netns: int, path: str) -> None:
        ears = self._run_in(
            path, netns, lambda: ctnetlink.open_ears(self._groups, self._buffer_bytes)
        )
        self._ears[netns], self._by_fd[ears.events.fileno()] = ears, netns
        self._epoll.register(ears.events.fileno(), select.EPOLLIN)

    def _close(self, netns: int) -> None:
        ears = self._ears.pop(netns)
        self._epoll.unregister(ears.events.fileno())
        del self._by_fd[ears.events.fileno()]
        self._lost.pop(netns, None)
        ears.close()

    def ready(self) -> list[int]:
        """Namespaces in which an event waits."""
        return [self._by_fd[fd] for fd, _ in self._epoll.poll(0)]

    def read(self, netns: int) -> NDArray[np.void]:
        """Return the events that wait, (n,) ENTRY, READ_BYTES of them at most."""
        used, starts = ctnetlink.take(self._ears[netns].events, memoryview(self._data))
        self.has_more = used > READ_BYTES - ctnetlink.LARGEST_BYTES
        data = np.frombuffer(self._data, np.uint8)
        rows = self._decoder.decode(data, np.array(starts, np.intp))
        rows["netns"], rows["time_ns"] = netns, time.time_ns()
        return rows

    def drain(self, netns: int) -> NDArray[np.void]:
        """Read until nothing waits, or until others must have their turn."""
        parts: list[NDArray[np.void]] = [np.zeros(0, ENTRY)]
        for _ in range(DRAINS):
            rows = self.read(netns)
            parts.append(rows)
            if not len(rows):
                break
        return np.concatenate(parts)

    def new_losses(self) -> dict[int, int]:
        """Namespace → messages lost there since the last call; those without loss are left out."""
        new = {}
        for netns, ears in self._ears.items():
            lost = ctnetlink.lost(ears.events)
            # The kernel counts in 32 bits.
            if count := (lost - self._lost.get(netns, 0)) & 0xFFFFFFFF:
                new[netns] = count
                self._lost[netns] = lost
        return new

    def dump(self, netns: int) -> Iterator[NDArray[np.void]]:
        """Yield the entries that are in the table now."""
        # The kernel walks the hash table of all namespaces for it, some 10 ms: most have no entry.
        if not self.count(netns)[0]:
            return
        for rows in ctnetlink.dump(self._ears[netns].requests, self._decoder):
            rows["netns"], rows["time_ns"] = netns, time.time_ns()
            yield rows

    def counters(self, netns: int) -> dict[str, int]:
        """Sum of all CPUs' counters."""
        sums: dict[str, int] = {}
        for cpu in self.cpus(netns):
            for name, value in cpu.items():
                sums[name] = sums.get(name, 0) + value
        return sums

    def cpus(self, netns: int) -> list[dict[str, int]]:
        """Counters of each CPU, with `cpu`."""
        return ctnetlink.stats_cpu(self._ears[netns].requests)

    def count(self, netns: int) -> tuple[int, int]:
        """Entries there now, and the most that there may be."""
        return ctnetlink.count(self._ears[netns].requests)

    def close(self) -> None:
        """Let go of every namespace."""
        for netns in list(self._ears):
            self._close(netns)
        self._epoll.close()
