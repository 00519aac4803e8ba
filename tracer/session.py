"""A live run: load while the node is scanned, keep the kernel's selection true, wait, stop.

Everything runs on one thread but the inventory's own; signals, inventory changes and the ring
buffer all wake the same epoll, so an idle run costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tracer import instance
from tracer.analysis.drops import Context
from tracer.analysis.selection import PodSelection, check_selection, marks
from tracer.errors import TracerError
from tracer.inventory import Inventory
from tracer.kernel.clock import WallClock
from tracer.kernel.loader import Loaded, Loader
from tracer.kernel.maps import Map
from tracer.kernel.stats import recursion_misses
from tracer.kernel.symbols import Symbols
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import FrameType

    from tracer.kernel.program import Program
    from tracer.model import ClusterView, Node

ONE = (1).to_bytes(4, sys.byteorder)


class Beyond(Protocol):
    """What tells of more than the node: the Kubernetes API, or kube-proxy's rules."""

    view: ClusterView
    version: int
    """Grows with every change of `view` or `warnings`."""
    warnings: tuple[str, ...]

    def start(self, on_change: Callable[[], None]) -> None:
        """Follow; `on_change` is called in another thread after each new `version`."""

    def stop(self) -> None:
        """Stop following; `view` stays readable."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends by itself."""

    count: int | None = None
    duration_s: float | None = None


def say(message: str) -> None:
    """One line for the person at the terminal."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - stderr is where messages go


def _key_bytes(key: bytes | int | tuple[int, int]) -> bytes:
    if isinstance(key, bytes):
        return key
    if isinstance(key, int):
        return key.to_bytes(8, sys.byteorder)
    return struct.pack("=II", *key)


def require_root() -> None:
    """Raise TracerError unless BPF programs may be loaded."""
    if os.geteuid() != 0:
        raise TracerError("not root: BPF programs cannot be loaded", "run it with sudo")


class Run:
    """A command that goes on: one instance, its node, and its reasons to stop.

    A context manager. `scan` and then `begin` come before everything else.
    """

    def __init__(
        self,
        command: str,
        selection: PodSelection,
        limits: Limits,
        *,
        concurrent: bool = False,
        cluster: Beyond | None = None,
    ) -> None:
        """Claim the command and its signals; TracerError where it runs already.

        `cluster` is followed while the run lasts, and asked nothing that would be waited for.
        """
        self.command, self.selection, self.limits = command, selection, limits
        self._claim = None if concurrent else instance.claim(command)
        self._stopping = False
        self._clock = WallClock()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.settimeout(0)
        self._signals = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self.inventory = Inventory()
        self.cluster = cluster
        self._joined: tuple[Node, ClusterView, int, Node] | None = None
        self._started_s = time.monotonic()
        self._seen_version = -1
        self._told: frozenset[str] = frozenset()

    def scan(self) -> None:
        """Look at the node; TracerError unless a pod of it was selected."""
        if self.cluster:
            self.cluster.start(on_change=self.wake)
        self.inventory.scan()
        check_selection(self.selection, self.inventory.node)

    def begin(self) -> None:
        """Follow the node from now on; the duration begins."""
        self._started_s = time.monotonic()
        self._seen_version = self.inventory.node.version
        self.inventory.start(on_change=lambda _node: self.wake())

    @property
    def node(self) -> Node:
        """The latest snapshot of the node, with what the Kubernetes API knows beyond it."""
        node, cluster = self.inventory.node, self.cluster
        if cluster is None:
            return node
        view, version, known = cluster.view, cluster.version, self._joined
        if known is None or known[0] is not node or known[1] is not view or known[2] != version:
            joined = replace(
                view.over(node),
                warnings=node.warnings + cluster.warnings,
                version=node.version + version,
            )
            known = self._joined = node, view, version, joined
        return known[3]

    def close(self) -> None:
        """Stop following, and give the signals and the claim back."""
        self.inventory.stop()
        self._release()

    def __enter__(self) -> Run:  # noqa: PYI034 - typing.Self is 3.11's
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        if self.cluster:
            self.cluster.stop()
        signal.set_wakeup_fd(-1)
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        self._wake_read.close()
        self._wake_write.close()
        self._clock.close()
        if self._claim:
            self._claim.close()

    # Waiting and stopping

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def stop(self) -> None:
        """End the run after the current batch."""
        self._stopping = True

    def wake(self) -> None:
        """Let `wait` return soon; from any thread."""
        try:
            self._wake_write.send(b"\0")
        except OSError:
            return  # full: it will wake anyway; closed: the run is over

    @property
    def running(self) -> bool:
        """False once a signal, `stop` or the duration ended the run."""
        return not self._stopping and self.left_s > 0

    @property
    def left_s(self) -> float:
        """Seconds until the duration is over."""
        if self.limits.duration_s is None:
            return float("inf")
        return self._started_s + self.limits.duration_s - time.monotonic()

    def _look_at_clock(self) -> None:
        """Notice a step of the wall clock: what happened before keeps the time of before."""
        step_ns = self._clock.look()
        if step_ns:
            say(f"the wall clock was set by {step_ns / 1e9:+.3f} s: times follow it from here on")

    def wait(self, timeout_s: float, *descriptors: int) -> None:
        """Sleep until a descriptor is readable, a signal or change comes, or the time is up."""
        with select.epoll() as epoll:
            for descriptor in (self._wake_read.fileno(), self._clock.descriptor, *descriptors):
                if descriptor >= 0:
                    epoll.register(descriptor, select.EPOLLIN)
            if self.running:
                epoll.poll(max(0.0, min(timeout_s, self.left_s)))
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        self._look_at_clock()
        if self.inventory.node.version != self._seen_version:
            self._seen_version = self.inventory.node.version
            self.on_node()
        if frozenset(self.node.warnings) != self._told:
            self.tell_warnings()

    def on_node(self) -> None:
        """What is to be done when the node has changed."""

    def tell_warnings(self) -> None:
        """Say which sources of names failed since the last look, and which are back."""
        warnings = frozenset(self.node.warnings)
        for warning in sorted(warnings - self._told):
            say(f"warning: {warning}")
        for warning in sorted(self._told - warnings):
            say(f"over: {warning}")
        self._told = warnings

    def ready(self, by: str, ready_file: Path | None) -> None:
        """Say that tracing has begun, and by what; make the file that scripts wait for."""
        say(f"tracing {self.command} on {self.inventory.node.name}: {by}; Ctrl-C ends")
        if ready_file:
            try:
                ready_file.write_text("ready\n")
            except OSError as error:
                raise TracerError(
                    f"ready file {ready_file}: {error.strerror}", "name a writable path"
                ) from error


class Session(Run):
    """A run with a loaded program: keeps the kernel's selection true, counts its losses.

    A context manager: on leaving it, everything is given back to the kernel.
    """

    def __init__(
        self,
        command: str,
        program: Program,
        selection: PodSelection,
        limits: Limits,
        *,
        concurrent: bool = False,
        cluster: Beyond | None = None,
    ) -> None:
        """Claim, load, and scan the node meanwhile; raises TracerError for what stops it."""
        require_root()
        super().__init__(command, selection, limits, concurrent=concurrent, cluster=cluster)
        self._deferred = program.deferred
        node_netns = {"NODE_NETNS": f"{self.inventory.netns}U"}
        loader = Loader(replace(program, defines={**program.defines, **node_netns}))
        try:
            self.scan()
            self.symbols = Symbols()
            self.loaded: Loaded = loader.wait()
        except BaseException:
            loader.cancel()
            self._release()
            raise
        self.lost: dict[str, int] = {}
        self._selection_version = 0
        self.push_selection()
        self.begin()

    def __enter__(self) -> Session:  # noqa: PYI034 - typing.Self is 3.11's
        return self

    def close(self) -> None:
        """Give the kernel everything back, and end the run."""
        self.loaded.close()
        super().close()

    def on_node(self) -> None:
        """Tell the kernel of the pods that have come and gone."""
        self.push_selection()

    # The kernel's side

    def map(self, name: str, key: str, value: str) -> Map:
        """A map of the loaded object; `key` and `value` are structs of event.h or dtypes."""
        structs = layout().structs
        info, fd = self.loaded.maps[name]
        return Map(info, fd, structs.get(key, key), structs.get(value, value))

    def push_selection(self) -> None:
        """Tell the kernel which places and addresses are pods', and which are selected."""
        node = self.inventory.node
        wanted = marks(self.selection, node)
        self.fill("pod_addresses", "V16", wanted.addresses)
        self.fill("pod_places", "<u8", wanted.places)
        self.fill("selected_cgroups", "<u8", dict.fromkeys(wanted.cgroups, 1))
        if "selection_version" in self.loaded.maps:
            # What programs remember of the old selection is void.
            self._selection_version += 1 << 32
            version = self.map("selection_version", "<u4", "<u8")
            version.update(bytes(4), self._selection_version.to_bytes(8, sys.byteorder))

    def fill(self, name: str, key: str, wanted: Mapping[Any, int]) -> None:
        """Make a hash map with 32-bit values hold just `wanted`; says what does not fit.

        Keys are bytes, one number, or a (netns, ifindex).
        """
        refused = self.map(name, key, "<u4").replace(
            {_key_bytes(one): value.to_bytes(4, sys.byteorder) for one, value in wanted.items()}
        )
        if refused:
            say(f"warning: map {name} is full: {refused} entries are missing")

    def context(self) -> Context:
        """What names the numbers of the records read now."""
        self._look_at_clock()
        return Context(
            node=self.node,
            reasons=self.loaded.drop_reasons,
            symbol=self.symbols.name,
            wall_offset_ns=self._clock.offset_ns,
            clock_steps=self._clock.steps,
        )

    def losses(self) -> dict[str, int]:
        """Everything lost so far by source; sources without loss are left out."""
        counts = self.map("losses", "<u4", "<u8").read()[1].sum(axis=1)
        sources = layout().enums["loss"]
        lost = {
            source.name.removeprefix("LOSS_").lower(): int(counts[source])
            for source in sources
            if source.name != "LOSS_SOURCES" and counts[source]
        }
        for function, fd in self.loaded.programs.items():
            misses = recursion_misses(fd)
            if misses:
                lost[f"{function} missed"] = misses
        return lost

    def new_losses(self, others: Mapping[str, int] | None = None) -> dict[str, int]:
        """What was lost since the last call, by source; `lost` has the totals.

        `others` are totals of sources that are not of the loaded program.
        """
        losses = {**self.losses(), **(others or {})}
        new = {source: count - self.lost.get(source, 0) for source, count in losses.items()}
        self.lost = losses
        return {source: count for source, count in new.items() if count}

    def announce(self, ready_file: Path | None) -> None:
        """Say how each hook attached, what is missing, and that tracing has begun."""
        for warning in self.loaded.warnings:
            say(f"warning: {warning}")
        self.tell_warnings()
        if not len(self.symbols):
            say("warning: /proc/kallsyms hides addresses: functions and hooks are not named")
        for missing in self.loaded.missing:
            say(f"warning: {missing}")
        for way in self.loaded.attached:
            if way.refused:
                say(f"hook {way.hook}: by {way.way}: {way.costs} ({'; '.join(way.refused)})")
        hooks = ", ".join(
            f"{way.hook} ({way.way}{', where needed' if way.hook in self._deferred else ''})"
            for way in self.loaded.attached
        )
        self.ready(hooks, ready_file)
