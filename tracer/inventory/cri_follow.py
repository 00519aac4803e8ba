"""Every CRI socket of the node, followed in a thread of its own: a slow runtime stops nobody."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tracer.inventory.cri_errors import CriError, NoCriError
from tracer.inventory.facts import CRI_SOCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tracer.inventory.cri import Runtime
    from tracer.inventory.facts import Sandbox

RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits after the first, second, … failure in a row."""
POLL_S = 15.0
"""How often to ask when nothing tells of a change (runtimes without events)."""
HURRY_POLL_S, HURRY_S = 0.5, 5.0
"""How often, and for how long, after a poke: a sandbox is ready a while after its veth is."""
GAP_S = 0.1
"""Least time between two questions, however many events there are."""


class Follower:
    """The sandboxes of every runtime; `sandboxes` and `warnings` are replaced whole."""

    def __init__(self, sockets: Sequence[Path]) -> None:
        self.sandboxes: tuple[Sandbox, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self._sockets = sockets
        self._runtimes: dict[Path, Runtime] = {}
        self._told: dict[Path, tuple[Sandbox, ...]] = {}
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._failures = 0
        self._hurry_until = 0.0
        self._lock = threading.Lock()

    def refresh(self) -> bool:
        """Ask every runtime now; True where sandboxes or warnings changed.

        The sandboxes of a runtime that does not answer stay as they were last told.
        """
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        warnings = []
        for path in self._sockets:
            try:
                self._ask(path)
            except NoCriError:
                self._drop(path)  # a plain Docker host: nothing is lost
            except CriError as error:
                self._drop(path)
                warnings.append(f"cri: {error}; names and labels of new pods may be missing")
        self._failures = self._failures + 1 if warnings else 0
        before = _by_id(self.sandboxes), self.warnings
        self.sandboxes = tuple(box for boxes in self._told.values() for box in boxes)
        self.warnings = tuple(warnings)
        return before != (_by_id(self.sandboxes), self.warnings)

    def run(self, changed: Callable[[], None]) -> None:
        """Follow until `stop`; calls `changed` after each refresh that changed something."""
        while not self._stopped.is_set():
            if self.refresh() and not self._stopped.is_set():
                changed()
            for path, runtime in tuple(self._runtimes.items()):
                self._listen(path, runtime)
            self._stopped.wait(GAP_S)
            if self._failures:
                self._stopped.wait(RETRY_S[min(self._failures, len(RETRY_S)) - 1])
            else:
                hurries = time.monotonic() < self._hurry_until
                self._wanted.wait(HURRY_POLL_S if hurries else POLL_S)
            self._wanted.clear()

    def poke(self) -> None:
        """Ask again soon. A runtime that failed keeps its backoff."""
        self._hurry_until = time.monotonic() + HURRY_S
        self._wanted.set()

    def stop(self) -> None:
        """End `run` and every call under way, at once."""
        self._stopped.set()
        self._wanted.set()
        for runtime in tuple(self._runtimes.values()):
            runtime.close()

    def _ask(self, path: Path) -> None:
        try:
            is_there = path.exists()
        except OSError as error:
            raise CriError(f"{path}: {error.strerror}") from error
        if not is_there:
            self._drop(path)
            self._told.pop(path, None)
            if path not in CRI_SOCKETS:  # the usual places may be empty; one that was named, not
                raise CriError(f"{path}: no such socket")
            return
        # grpc costs 20 MB and 60 ms: only a node with a runtime pays them.
        from tracer.inventory.cri import Runtime  # noqa: PLC0415

        if path not in self._runtimes:
            self._runtimes[path] = Runtime(path)
        self._told[path] = self._runtimes[path].sandboxes()

    def _drop(self, path: Path) -> None:
        if runtime := self._runtimes.pop(path, None):
            runtime.close()

    def _listen(self, path: Path, runtime: Runtime) -> None:
        if runtime.listening:
            return
        runtime.listening = True
        name = f"cri-events {path}"
        threading.Thread(target=self._relay, args=(runtime,), name=name, daemon=True).start()

    def _relay(self, runtime: Runtime) -> None:
        try:
            for _ in runtime.events():
                self.poke()
        except CriError:
            # The stream broke: the next refresh meets the same failure and reports it.
            runtime.listening = False
            self.poke()


def _by_id(sandboxes: tuple[Sandbox, ...]) -> dict[str, Sandbox]:
    return {sandbox.id: sandbox for sandbox in sandboxes}
