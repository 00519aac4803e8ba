"""Two pods on a bridge, as the CNI bridge plugin wires them, and packets between them."""

from __future__ import annotations

import fcntl
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = "trb-node"
"""The node is a namespace too: no rule, no conntrack and no packet of the real one takes part."""
BRIDGE = "cni0"
RULES = Path(__file__).with_name("node.rules")
PODS = {"trb-a": "198.18.77.1", "trb-b": "198.18.77.2"}
"""Namespace (and device on the node) → address, of the range that RFC 2544 keeps for this."""
IN_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
ONLY_OURS = f"""
mount -t tmpfs tmpfs /mnt
for name in {NODE} {" ".join(PODS)}; do
    touch /mnt/$name && mount --bind /run/netns/$name /mnt/$name
done
mount --move /mnt /run/netns && exec "$@"
"""
"""Hides the namespaces of everyone else on the machine: they are not on the bench's node."""
SOURCE = Path(__file__).with_name("blast.c")
LOCK = Path("/run/tracer-benchmarks.lock")
"""The names above are there once on a machine."""


@dataclass(frozen=True, slots=True)
class Blast:
    """What one burst of traffic moved."""

    units: int
    """Datagrams or connections; of a stream its reads."""
    bytes: int
    elapsed_ns: int
    p99_ns: int = 0
    """What 99 of 100 round trips did not exceed, where such were timed."""

    @property
    def units_per_s(self) -> float:
        """Datagrams or connections a second."""
        return self.units * 1e9 / self.elapsed_ns

    @property
    def bytes_per_s(self) -> float:
        """Payload a second."""
        return self.bytes * 1e9 / self.elapsed_ns


def run(*argv: str, timeout_s: float = 30.0) -> str:
    """Stdout of `argv`; raises with its stderr when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def two_pods() -> Iterator[None]:
    """Make node, bridge, pods and the node's rules; take them away again. One at a time."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _clean()
        try:
            _make()
            yield
        finally:
            _clean()


def _make() -> None:
    run("ip", "netns", "add", NODE)
    _ip(NODE, "link add", BRIDGE, "type bridge")
    _quiet(NODE, BRIDGE)
    _ip(NODE, "link set", BRIDGE, "up")
    for name, address in PODS.items():
        _pod(name, address)
    run("ip", "netns", "exec", NODE, "iptables-restore", str(RULES))


def on_node(*argv: str) -> tuple[str, ...]:
    """The words that run `argv` where the bench's node is the node: pid 1 lives in it."""
    node = ("nsenter", f"--net=/run/netns/{NODE}", *IN_PID_NAMESPACE)
    return (*node, "unshare", "--mount", "sh", "-c", ONLY_OURS, "sh", *argv)


def _pod(name: str, address: str) -> None:
    run("ip", "netns", "add", name)
    _ip(NODE, "link add", name, "type veth peer name eth0 netns", name)
    _quiet(NODE, name)
    _quiet(name, "eth0")
    _ip(NODE, "link set", name, "master", BRIDGE, "up")
    _ip(name, "address add", f"{address}/24", "dev eth0")
    _ip(name, "link set eth0 up")
    _ip(name, "link set lo up")


def _ip(netns: str, *words: str) -> None:
    run("ip", "-n", netns, *" ".join(words).split())


def _quiet(netns: str, device: str) -> None:
    """No IPv6 on a device: its multicast would be traffic and drops of nobody's."""
    setting = f"net.ipv6.conf.{device}.disable_ipv6=1"
    run("ip", "netns", "exec", netns, "sysctl", "-qw", setting)


def _clean() -> None:
    """Remove what is there, a killed run's leavings included; devices go with their namespace."""
    for name in (*PODS, NODE):
        if Path("/run/netns", name).exists():
            run("ip", "netns", "delete", name)


def compile_blast(directory: Path) -> Path:
    """Compile blast.c into `directory`, if it is not there yet; returns the program."""
    program = directory / "blast"
    if not program.exists():
        run("cc", "-O2", "-Wall", "-pthread", "-o", str(program), str(SOURCE))
    return program


def blast(program: Path, mode: str, milliseconds: int, payload_bytes: int = 64) -> Blast:
    """Send from the first pod to the second, in a mode of blast.c."""
    sender, receiver = (f"/run/netns/{name}" for name in PODS)
    address = list(PODS.values())[1]
    words = (mode, sender, receiver, address, str(milliseconds), str(payload_bytes))
    return Blast(*map(int, run(str(program), *words).split()))
