"""Loads a Program in a worker process and owns what comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.errors import TracerError
from tracer.kernel.attach import attach
from tracer.kernel.hooks import HOOKS
from tracer.kernel.program import Attached, MapInfo, Program

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DESCRIPTORS = 253  # SCM_MAX_FD
TIMEOUT_S = 240  # an emulated machine verifies what `trace` needs for two minutes


@dataclass(slots=True)
class Loaded:
    """A running BPF object.

    Its links, programs and maps live as long as these descriptors: when the process ends,
    however it ends, the kernel takes all of it away.
    """

    maps: Mapping[str, tuple[MapInfo, int]]
    """Name → (layout, fd)."""
    attached: tuple[Attached, ...]
    missing: tuple[str, ...]
    """Optional hooks that could not be attached, and why."""
    programs: Mapping[str, int]
    """BPF function → program fd."""
    links: dict[str, list[int]]
    """Hook → where it is attached now, netfilter programs aside."""
    drop_reasons: Mapping[int, str]
    """Value of enum skb_drop_reason → name; empty where the kernel has none."""
    warnings: tuple[str, ...]

    @property
    def degraded(self) -> bool:
        """Whether a hook is missing or attached in a way that is no full substitute."""
        return bool(self.missing) or any(way.refused and not way.full for way in self.attached)

    def attach(self, hook: str) -> None:
        """Attach a hook that is not, until `withdraw`. Raises OSError."""
        if hook in self.links:
            return
        way = next(way for way in self.attached if way.hook == hook)
        row = next(row for row in HOOKS if row.name == hook)
        links = self.links[hook] = []
        for function in row.functions:
            fd, at_exit = self.programs[function], row.runs_at_exit(function)
            links.append(attach(fd, way.way, way.target, at_exit=at_exit))

    def withdraw(self, *hooks: str) -> None:
        """Detach those of `hooks` that are attached."""
        for hook in hooks:
            for link in self.links.pop(hook, ()):
                os.close(link)

    def detach(self) -> None:
        """No event and no count comes after this; maps stay readable."""
        self.withdraw(*self.links)

    def close(self) -> None:
        """Detach and give everything back to the kernel."""
        self.detach()
        for fd in (*self.programs.values(), *(fd for _, fd in self.maps.values())):
            os.close(fd)
        self.programs, self.maps = {}, {}


def _loaded(answer: dict[str, Any], descriptors: list[int]) -> Loaded:
    maps = [MapInfo(**info) for info in answer["maps"]]
    held = dict(zip(answer["held"], descriptors[len(maps) :], strict=True))
    links: dict[str, list[int]] = {}
    for hook in HOOKS:
        made = [held[name] for f in hook.functions if (name := f"link:{f}") in held]
        if made:
            links[hook.name] = made
    return Loaded(
        maps={info.name: (info, fd) for info, fd in zip(maps, descriptors, strict=False)},
        attached=tuple(
            Attached(**{**way, "refused": tuple(way["refused"])}) for way in answer["attached"]
        ),
        missing=tuple(answer["missing"]),
        programs={
            name.removeprefix("program:"): fd
            for name, fd in held.items()
            if name.startswith("program:")
        },
        links=links,
        drop_reasons={int(value): name for value, name in answer["drop_reasons"].items()},
        warnings=tuple(answer["warnings"]),
    )


class Loader:
    """A load under way; compile time is free for other start-up work."""

    def __init__(self, program: Program) -> None:
        """Start the worker."""
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(TIMEOUT_S)
        self._worker = subprocess.Popen(
            # Isolated: nothing in the user's directory or environment becomes root's code.
            [sys.executable, "-I", "-m", "tracer.kernel.worker", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            # Ctrl-C in a terminal goes to the whole foreground group: the parent decides.
            start_new_session=True,
        )
        theirs.close()
        assert self._worker.stdin is not None  # noqa: S101 - PIPE was asked for
        with self._worker.stdin as request:
            request.write(json.dumps(program.to_dict()).encode())

    def wait(self) -> Loaded:
        """The attached object; raises TracerError where nothing could be attached."""
        try:
            answer, descriptors = self._receive()
        finally:
            self.cancel()
        if "error" in answer:
            raise TracerError(answer["error"], answer["hint"])
        return _loaded(answer, descriptors)

    def cancel(self) -> None:
        """Stop the worker if it still runs; what it loaded goes with it."""
        self._worker.kill()
        self._worker.wait()
        self._socket.close()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            size, descriptors, _, _ = socket.recv_fds(self._socket, 4, MAX_DESCRIPTORS)
            expected = int.from_bytes(size, "little")
            message = b""
            while len(message) < expected or not expected:
                chunk = self._socket.recv(expected - len(message) or 1)
                if not chunk:
                    raise TracerError(
                        f"worker: ended without an answer (status {self._worker.wait()})",
                        "see the messages above; tracer doctor checks bcc",
                    )
                message += chunk
        except TimeoutError:
            raise TracerError(f"worker: no answer within {TIMEOUT_S} s") from None
        return json.loads(message), descriptors
