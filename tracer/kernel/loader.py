"""Loads a Program in a worker process and owns what comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.errors import TracerError
from tracer.kernel.program import Attached, MapInfo, Program

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DESCRIPTORS = 253  # SCM_MAX_FD
TIMEOUT_S = 120  # an emulated machine compiles for 15 s


@dataclass(slots=True)
class Loaded:
    """A running BPF object.

    Its links, programs and maps live as long as these descriptors: when the process ends,
    however it ends, the kernel takes all of it away.
    """

    maps: Mapping[str, tuple[MapInfo, int]]
    """Name → (layout, fd)."""
    attached: tuple[Attached, ...]
    program_fds: Mapping[str, int]
    """Hook → program fd."""
    link_fds: list[int]
    drop_reasons: Mapping[int, str]
    """Value of enum skb_drop_reason → name; empty where the kernel has none."""
    warnings: tuple[str, ...]

    def detach(self) -> None:
        """No event and no count comes after this; maps stay readable."""
        while self.link_fds:
            os.close(self.link_fds.pop())

    def close(self) -> None:
        """Detach and give everything back to the kernel."""
        self.detach()
        for fd in (*self.program_fds.values(), *(fd for _, fd in self.maps.values())):
            os.close(fd)
        self.program_fds, self.maps = {}, {}


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
        maps = [MapInfo(**info) for info in answer["maps"]]
        attached = tuple(
            Attached(**{**way, "refused": tuple(way["refused"])}) for way in answer["attached"]
        )
        rest = descriptors[len(maps) :]
        return Loaded(
            maps={info.name: (info, fd) for info, fd in zip(maps, descriptors, strict=False)},
            attached=attached,
            program_fds={way.hook: fd for way, fd in zip(attached, rest[::2], strict=True)},
            link_fds=rest[1::2],
            drop_reasons={int(value): name for value, name in answer["drop_reasons"].items()},
            warnings=tuple(answer["warnings"]),
        )

    def cancel(self) -> None:
        """Stop the worker if it still runs; what it loaded goes with it."""
        self._worker.kill()
        self._worker.wait()
        self._socket.close()

    def _receive(self) -> tuple[dict, list[int]]:  # type: ignore[type-arg]
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
