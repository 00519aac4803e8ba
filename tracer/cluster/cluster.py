"""The live cluster: a watcher for each resource, and snapshots at a pace that costs little."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from tracer.cluster.store import Store
from tracer.cluster.watch import RESOURCES, Watcher
from tracer.model import ClusterView

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tracer.cluster.access import Access

PACE_S = 0.5
"""Least time between two snapshots: a copy of 50,000 names takes milliseconds."""
IDLE_S = 10.0
"""How often to look for pods whose names may go, when nothing else happens."""
STOP_S = 0.1


class Cluster:
    """What the API server tells, followed in the background; never in anybody's way.

    `view`, `warnings` and `version` may be read from any thread, at any time, and do not wait.
    """

    def __init__(self, access: Access) -> None:
        """Nothing is asked before `start`."""
        self.view = ClusterView()
        self.version = 0
        """Grows with every change of `view` or `warnings`."""
        self.warnings: tuple[str, ...] = ()
        """What cannot be followed, and what is lost by it."""
        self._store, self._taking = Store(), threading.Lock()
        self._dirty, self._stopped = threading.Event(), threading.Event()
        self._watchers = [
            Watcher(resource, access, self._store, self._dirty.set) for resource in RESOURCES
        ]
        self._threads: list[threading.Thread] = []
        self._on_change: Callable[[], None] | None = None

    def start(self, on_change: Callable[[], None] | None = None) -> None:
        """Follow; `on_change` is called in another thread after each new `version`.

        Of a cluster that is followed already, only `on_change` is taken.
        """
        self._on_change = on_change
        if self._threads:
            return
        work = [watcher.run for watcher in self._watchers]
        for number, run in enumerate([*work, self._publish]):
            thread = threading.Thread(target=run, name=f"cluster-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop following, within 0.1 s; `view` stays readable."""
        self._stopped.set()
        self._dirty.set()
        for watcher in self._watchers:
            watcher.stop()
        deadline_s = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._threads.clear()

    def wait_synced(self, timeout_s: float, kinds: Collection[str] = ()) -> bool:
        """Wait until these resources (default: all) were listed once; False if they were not."""
        deadline_s = time.monotonic() + timeout_s
        wanted = [one for one in self._watchers if not kinds or one.resource.kind in kinds]
        synced = [one.synced.wait(max(0.0, deadline_s - time.monotonic())) for one in wanted]
        self._take()
        return all(synced)

    def _publish(self) -> None:
        while not self._stopped.is_set():
            self._dirty.wait(IDLE_S)
            self._dirty.clear()
            if self._take() and self._on_change:
                self._on_change()
            self._stopped.wait(PACE_S)

    def _take(self) -> bool:
        """Bring `view` and `warnings` up to date; True if they changed."""
        with self._taking:
            view, warnings = self._store.view(), self._warnings()
            if view is self.view and warnings == self.warnings:
                return False
            self.view, self.warnings = view, warnings
            self.version += 1
            return True

    def _warnings(self) -> tuple[str, ...]:
        """One line a cause, with all that is lost by it."""
        by_cause: dict[str, list[Watcher]] = defaultdict(list)
        for watcher in self._watchers:
            if watcher.trouble:
                by_cause[watcher.trouble].append(watcher)
        return tuple(
            f"kubernetes API: {', '.join(one.resource.kind for one in watchers)}: {cause}:"
            f" {', '.join(one.resource.lost for one in watchers)} may be missing or stale"
            for cause, watchers in by_cause.items()
        )
