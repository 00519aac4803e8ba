"""The program under test, as a user runs it: a process, its two streams and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from lab.shell import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Record = dict[str, Any]

READY_S = 60.0
"""Until `--ready-file` appears; a cold header cache included."""
STOP_S = 10.0
SETTLE_S = 0.15
"""After the last expected record: one too many would come within this time."""


def tracer(*arguments: str) -> list[str]:
    """The command line that runs tracer from this very environment."""
    return [sys.executable, "-m", "tracer", *arguments]


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished run left."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[Record]:
        """Standard output, one JSON object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def finish(
    *arguments: str, timeout_s: float = 30, env: dict[str, str] | None = None, **popen: Any
) -> Done:
    """Run tracer to its end."""
    done = subprocess.run(
        tracer(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        check=False,
        **popen,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def matches(record: Record, wanted: Record) -> bool:
    """Whether `record` has every item of `wanted`; a callable there judges the value."""
    for name, want in wanted.items():
        value = record.get(name)
        if not (want(value) if callable(want) else value == want):
            return False
    return True


def start(
    *arguments: str, env: dict[str, str] | None = None, **popen: Any
) -> subprocess.Popen[str]:
    """Start tracer with both streams in pipes."""
    return subprocess.Popen(
        tracer(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        **popen,
    )


def cpu_s(pid: int) -> float:
    """Processor time that a process and its threads have used."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


@dataclass(slots=True)
class Live:
    """A running tracer, its lines read as they come."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ready_s: float = 0.0
    """From start to `--ready-file`."""
    stop_s: float = 0.0
    """From the signal to the exit."""
    _threads: list[threading.Thread] = field(default_factory=list)

    def read(self) -> None:
        """Start to collect both streams."""
        for stream, into in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            thread = threading.Thread(target=_collect, args=(stream, into), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def err(self) -> str:
        """Standard error so far."""
        return "".join(self.errors)

    def records(self, since: int = 0) -> list[Record]:
        """Whole JSON lines so far, from line number `since`."""
        return [json.loads(line) for line in self.lines[since:] if line.endswith("\n")]

    def wait_for_line(self, holds: Callable[[str], bool], timeout_s: float = 10) -> None:
        """Wait until one line of standard error satisfies `holds`."""
        end = time.monotonic() + timeout_s
        while not any(holds(line) for line in tuple(self.errors)):
            assert time.monotonic() < end, f"no such line on stderr:\n{self.err}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT) -> Done:
        """Send a signal (unless it has ended) and wait for the end."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended(began)

    def ended(self, began: float | None = None, timeout_s: float = STOP_S) -> Done:
        """Wait for an end that comes by itself."""
        self.process.wait(timeout_s)
        if began is not None:
            self.stop_s = time.monotonic() - began
        for thread in self._threads:
            thread.join(5)
        return Done(self.process.returncode, "".join(self.lines), self.err)


def _collect(stream: Any, into: list[str]) -> None:
    with suppress(ValueError):  # the test closed the stream, as a reader that leaves does
        for line in stream:
            into.append(line)  # noqa: PERF402 - each as it comes, while others read the list


@contextmanager
def running(
    *arguments: str, env: dict[str, str] | None = None, alone: bool = False
) -> Iterator[Live]:
    """tracer with every hook attached; killed after the block if the test did not stop it.

    Unless `alone`, it does not mind other instances.
    """
    beside = () if alone else ("--concurrent",)
    with tempfile.TemporaryDirectory(prefix="tracer-ready-") as directory:
        ready = Path(directory, "ready")
        began = time.monotonic()
        process = start(*arguments, *beside, "--ready-file", str(ready), env=env)
        live = Live(process)
        live.read()
        try:
            while not ready.exists():
                assert process.poll() is None, f"exit {process.returncode} at start:\n{live.err}"
                assert time.monotonic() - began < READY_S, f"not ready:\n{live.err}"
                time.sleep(0.01)
            live.ready_s = time.monotonic() - began
            yield live
        finally:
            if process.poll() is None:
                process.kill()
            live.ended()


@contextmanager
def whole(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Live]:
    """The same, stopped after the block: it must end well and have lost nothing."""
    with running(*arguments, env=env) as live:
        yield live
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


def until_lines(live: Live, count: int, timeout_s: float = 5) -> None:
    """Wait until standard output has `count` lines."""
    until(lambda: len(live.lines) >= count, f"{count} lines, now {live.lines}", timeout_s)


def until_quiet(live: Live, quiet_s: float = 0.3, timeout_s: float = 5) -> None:
    """Wait until nothing has come to standard output for `quiet_s`."""
    end, before = time.monotonic() + timeout_s, -1
    while len(live.lines) != before and time.monotonic() < end:
        before = len(live.lines)
        time.sleep(quiet_s)


@dataclass(slots=True)
class Watch:
    """The records that a live tracer writes from now on."""

    live: Live
    since: int

    def expect(self, count: int, about: Record, timeout_s: float = 5) -> list[Record]:
        """Exactly `count` drop records that match `about`; AssertionError tells what came."""
        end = time.monotonic() + timeout_s
        while len(found := self.find(about)) < count and time.monotonic() < end:
            assert self.live.process.poll() is None, f"tracer ended:\n{self.live.err}"
            time.sleep(0.02)
        time.sleep(SETTLE_S)
        found = self.find(about)
        if len(found) != count:
            seen = "\n".join(line.rstrip() for line in self.live.lines[self.since :][:20])
            raise AssertionError(f"{len(found)} of {count} records for {about}; all:\n{seen}")
        return found

    def find(self, about: Record) -> list[Record]:
        """The records so far that match `about`."""
        return [record for record in self.live.records(self.since) if matches(record, about)]


def watch(live: Live) -> Watch:
    """Look at what comes from here on."""
    return Watch(live, len(live.lines))
