"""One guest: the QEMU process, its three ports, and when to end it."""

from __future__ import annotations

import contextlib
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tracer.errors import TracerError
from vm import initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vm.catalog import Kernel

JOB = Path(__file__).parent / "guest/job.sh"
PORTS = ("control", "out", "err")
TIMED_OUT = 124
"""As of timeout(1)."""
CHUNK_BYTES = 1 << 18
POSSIBLE = 8
"""Processors that could be added, as a node has: without preemption a kernel keeps so many returns
of one function in sight (kretprobe), and a bridge nests four calls of nf_hook_slow."""
PROGRAMS = {"setpriv": "util-linux", "qemu-system-x86_64": "qemu-system-x86"}
"""What a guest needs here → its Debian package."""
COMMAND_LINE = (
    "console=ttyS0 loglevel=4 rdinit=/init panic=-1 oops=panic"
    # An emulated processor needs no defence, and its time is not to be trusted to be even.
    " mitigations=off nokaslr no_timer_check tsc=reliable random.trust_cpu=on nmi_watchdog=0"
    # A namespace is deleted after a grace period of RCU: seconds here.
    " rcupdate.rcu_expedited=1"
    # QEMU 7.2 gets cmpxchg16b wrong now and then, and the kernel's slab allocator uses it
    # (cpuid bit 4*32+13). Programs see it still: numpy does not start without.
    " clearcpuid=141"
)


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, and within which bounds."""

    command: tuple[str, ...]
    directory: Path
    share: Path | None = None
    """A directory of the host that the guest may write to, at the same path."""
    boot_s: float = 90
    run_s: float = 900
    memory: str = "2G"
    processors: int = 2
    count_instructions: bool = False
    """One processor, and each nanosecond of the guest is one of its instructions."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a guest ended."""

    code: int
    """The command's exit code; 124: it took longer than `run_s`."""
    boot_s: float
    """From the start of QEMU to the start of the command."""
    run_s: float


class BootError(TracerError):
    """The command never started."""


class GuestDiedError(TracerError):
    """The guest ended while the command ran."""


def run(kernel: Kernel, job: Job, out: BinaryIO, err: BinaryIO) -> Ending:
    """Boot `kernel`, run the job, write what it writes; the guest is gone after the call."""
    with tempfile.TemporaryDirectory(prefix="tracer-guest-") as name:
        directory = Path(name)
        (directory / "initramfs").write_bytes(initramfs.build(kernel))
        (directory / "job.sh").write_text(_script(kernel, job))
        with _ports() as (ours, theirs), _qemu(kernel, job, directory, theirs) as qemu:
            return _Conversation(qemu, job, directory / "console", ours).until_end(out, err)


def _script(kernel: Kernel, job: Job) -> str:
    """What runs as process 1 once the root is mounted: our facts, then the fixed text."""
    facts = {
        "kernel_root": kernel.root,
        "share": job.share or "",
        "name": f"kernel-{kernel.name.replace('.', '-')}",
        "directory": job.directory,
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in facts.items()]
    return "\n".join([*lines, f"set -- {shlex.join(job.command)}", JOB.read_text()])


@contextlib.contextmanager
def _ports() -> Iterator[tuple[dict[str, socket.socket], dict[str, socket.socket]]]:
    """Our ends and QEMU's ends of the ports."""
    pairs = {name: socket.socketpair() for name in PORTS}
    try:
        yield (
            {name: pair[0] for name, pair in pairs.items()},
            {name: pair[1] for name, pair in pairs.items()},
        )
    finally:
        for pair in pairs.values():
            for end in pair:
                end.close()


def _arguments(kernel: Kernel, job: Job, directory: Path, ports: dict[str, int]) -> list[str]:
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-machine", "q35,usb=off", "-cpu", "max,la57=off", "-m", job.memory]
    if job.count_instructions:
        words += ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on"]
    else:
        words += ["-accel", "tcg,thread=multi", "-smp", f"{job.processors},maxcpus={POSSIBLE}"]
    words += ["-kernel", str(kernel.image), "-initrd", str(directory / "initramfs")]
    words += ["-append", f"{COMMAND_LINE} job={directory}"]
    words += ["-serial", f"file:{directory / 'console'}"]
    words += ["-virtfs", _shared(Path("/"), "host") + ",readonly=on"]
    if job.share:
        words += ["-virtfs", _shared(job.share, "share")]
    words += ["-device", "virtio-serial-pci"]
    for name, descriptor in ports.items():
        words += ["-chardev", f"socket,id={name},fd={descriptor}"]
        words += ["-device", f"virtserialport,chardev={name},name={name}"]
    return words


def _shared(path: Path, tag: str) -> str:
    return f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap"


@contextlib.contextmanager
def _qemu(
    kernel: Kernel, job: Job, directory: Path, ports: dict[str, socket.socket]
) -> Iterator[subprocess.Popen[bytes]]:
    """A running QEMU, killed after the block, and by the kernel should we die before that."""
    descriptors = {name: end.fileno() for name, end in ports.items()}
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            raise TracerError(f"{program}: not installed", f"apt-get install {package}")
    words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    words += _arguments(kernel, job, directory, descriptors)
    with (directory / "console").open("wb") as console:
        qemu = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=list(descriptors.values()),
        )
    for end in ports.values():
        end.close()
    try:
        yield qemu
    finally:
        qemu.kill()
        qemu.wait()


class _Conversation:
    """Reads the ports until the command has ended, or time has run out, or the guest has died."""

    def __init__(
        self,
        qemu: subprocess.Popen[bytes],
        job: Job,
        console: Path,
        ports: dict[str, socket.socket],
    ) -> None:
        self._qemu, self._job, self._console = qemu, job, console
        self._ports = ports
        self._began = time.monotonic()
        self._started: float | None = None
        self._told = b""

    def until_end(self, out: BinaryIO, err: BinaryIO) -> Ending:
        """Pass on what the command writes until it has ended."""
        sinks = {"out": out, "err": err}
        with selectors.DefaultSelector() as selector:
            for name, port in self._ports.items():
                selector.register(port, selectors.EVENT_READ, name)
            while (code := self._code(silent=not selector.get_map())) is None:
                for key, _ in selector.select(0.5):
                    data = key.fileobj.recv(CHUNK_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.data == "control":
                        self._hear(data)
                    else:
                        _pass(data, sinks[key.data])
        self._drain(sinks)
        ended, started = time.monotonic(), self._started or self._began
        return Ending(code, started - self._began, ended - started)

    def _hear(self, data: bytes) -> None:
        self._told += data
        if self._started is None and self._told.startswith(b"started\n"):
            self._started = time.monotonic()

    def _code(self, *, silent: bool) -> int | None:
        """The exit code, once there is one; raises when there will be none.

        `silent`: every port is closed, so that nothing more is to be heard from a dead guest.
        """
        last = self._told.rpartition(b"\n")[0].rpartition(b"\n")[2].split()
        if last[:1] == [b"exit"]:
            return int(last[1])
        now = time.monotonic()
        if silent and self._qemu.poll() is not None:
            kind = BootError if self._started is None else GuestDiedError
            raise kind("the guest died", f"the end of its console:\n{self._last_words()}")
        if self._started is None and now - self._began > self._job.boot_s:
            raise BootError(
                f"no boot within {self._job.boot_s:.0f} s",
                f"the end of its console:\n{self._last_words()}",
            )
        if self._started is not None and now - self._started > self._job.run_s:
            print(f"timed out after {self._job.run_s:.0f} s", file=sys.stderr)
            return TIMED_OUT
        return None

    def _last_words(self) -> str:
        return "\n".join(self._console.read_text(errors="replace").splitlines()[-25:])

    def _drain(self, sinks: dict[str, BinaryIO]) -> None:
        """What is still on its way when the exit code has come."""
        for name, sink in sinks.items():
            self._ports[name].setblocking(False)  # noqa: FBT003 - the socket's own signature
            with contextlib.suppress(BlockingIOError):
                while data := self._ports[name].recv(CHUNK_BYTES):
                    _pass(data, sink)


def _pass(data: bytes, sink: BinaryIO) -> None:
    sink.write(data)
    sink.flush()
