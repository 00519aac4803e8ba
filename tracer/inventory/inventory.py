"""The live model of the node: scan once, or follow."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.inventory.collect import Collector
from tracer.inventory.cri_follow import Follower
from tracer.inventory.facts import SOURCES, Facts, Paths
from tracer.inventory.linger import Lingering, linger
from tracer.inventory.merge import merge

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection

    from tracer.model import Node

LOOK_S = 1.0
"""How often to look at the directories' times, which nothing tells us of."""
POLL_S = 30.0
"""How often to look at everything, for what tells nobody (a new process in an old cgroup)."""
GAP_S, MAX_GAP_S = 0.05, 1.0
"""Least time between two refreshes, on a small node and on a huge one."""
SHARE = 1 / 10
"""Most of one CPU that refreshes may take while events keep coming."""
IDLE_SHARE = 1 / 400
"""Most of one CPU that the poll may take."""
STOP_S = 0.08

_log = logging.getLogger(__name__)


class Inventory:
    """Which pod does this netns, device, address and cgroup belong to.

    `sources` limits what is asked (names of `facts.SOURCES`; all by default). `node` may be
    read from any thread; everything else belongs to the thread that made the object.
    """

    def __init__(self, sources: Collection[str] | None = None, paths: Paths | None = None) -> None:
        self._sources = tuple(SOURCES if sources is None else sources)
        self._paths = paths or Paths()
        self._collector = Collector(self._paths, self._sources)
        self._cri = Follower(self._paths.cri_sockets if "cri" in self._sources else ())
        self._node: Node | None = None
        self._lingering = Lingering()
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poked = False
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def node(self) -> Node:
        """The latest snapshot; scans if there is none yet."""
        return self._node or self.scan()

    @property
    def netns(self) -> int:
        """Inode of the node's own network namespace; known without a scan."""
        return self._collector.node_netns()[0]

    def scan(self) -> Node:
        """Read everything now, whatever was known; never raises for a missing source."""
        asking = threading.Thread(target=self._cri.refresh, name="cri-scan", daemon=True)
        asking.start()
        with self._lock:
            self._collector.forget()
            facts = self._collector.collect()
            asking.join()
            return self._publish(facts)

    def start(self, on_change: Callable[[Node], None] | None = None) -> None:
        """Follow the node in the background; `on_change` is called there with each new `Node`."""
        for work, argument in ((self._run, on_change), (self._cri.run, self._nudge)):
            thread = threading.Thread(target=work, args=(argument,), daemon=True)
            thread.name = f"inventory-{len(self._threads)}"
            self._threads.append(thread)
            thread.start()

    def poke(self) -> None:
        """Refresh soon: an event names something unknown. Cheap, any thread, any number."""
        self._cri.poke()
        if not self._poked:
            self._poked = True
            self._nudge()

    def stop(self) -> None:
        """Stop following, within 0.1 s; `node` stays readable."""
        self._stopped.set()
        self._cri.stop()
        self._nudge()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads.clear()

    def _nudge(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _publish(self, facts: Facts) -> Node:
        facts = replace(
            facts, sandboxes=self._cri.sandboxes, warnings=facts.warnings + self._cri.warnings
        )
        before = self._node
        node = merge(facts)
        if before is None:
            self._node = node = replace(node, version=1)
            return node
        node = linger(node, before, self._lingering, time.monotonic())
        if replace(node, version=before.version) == before:
            return before
        self._node = node = replace(node, version=before.version + 1)
        return node

    def _run(self, on_change: Callable[[Node], None] | None) -> None:
        try:
            with self._lock:
                opened = self._collector.open_events()
            with opened or nullcontext() as events:
                self._follow(events, on_change)
        except Exception:  # noqa: BLE001 - a thread's last words
            if not self._stopped.is_set():
                _log.exception("inventory: stopped following the node; names may become stale")

    def _follow(
        self, events: socket.socket | None, on_change: Callable[[Node], None] | None
    ) -> None:
        with self._lock:
            self._collector.forget()  # what changed before the socket was open is unheard
        seen = self._node
        while not self._stopped.is_set():
            with self._lock:
                started = time.thread_time()
                node = self._publish(self._collector.collect())
                cost = time.thread_time() - started
            looked = time.monotonic()
            if node is not seen and on_change:
                on_change(node)
            seen = node
            self._stopped.wait(min(max(GAP_S, cost / SHARE), MAX_GAP_S))
            poll = time.monotonic() + max(POLL_S, cost / IDLE_SHARE)
            self._wait(events, min(poll, self._collector.settling.next_s(looked)))

    def _wait(self, events: socket.socket | None, deadline: float) -> None:
        """Until something changed, somebody asked, or the deadline."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if events:
            poll.register(events, select.POLLIN)
        while not self._stopped.is_set() and (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(min(left, LOOK_S) * 1000)}
            if self._wake in ready:
                os.eventfd_read(self._wake)
                self._poked = False
                return
            if events and events.fileno() in ready:
                with self._lock:
                    changed = self._collector.follow(events)
                if changed:
                    self._cri.poke()
                    return
            if self._collector.read_stamps() != self._collector.stamps:
                self._cri.poke()
                return
