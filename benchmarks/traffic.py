"""The kinds of traffic between the two pods; each says how it is made ready and sent."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import iperf
from many_flows import SERVER_PORT, Sender
from two_pods import NODE, PODS, Blast, blast, compile_blast, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

BURSTS = 5
MILLISECONDS = 80
"""Of one burst."""
LONG_MILLISECONDS = 4000
"""Of one that is alone: the mean of all that a tool does now and then."""
FLOWS, FLOW_ADDRESSES = 100_000, 1000
FIRST_ADDRESS, PREFIX = "198.19.0.0", "198.19.0.0/16"
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of traffic."""

    name: str
    tells: str
    ready: Callable[[Path], AbstractContextManager[Callable[[], list[Blast]]]]
    """Makes it ready (files go to the directory); yields what sends a few bursts."""
    by_bytes: bool = False
    """Its speed is bytes a second, not packets or connections."""

    def speed(self, one: Blast) -> float:
        """Units, or bytes, a second."""
        return one.bytes_per_s if self.by_bytes else one.units_per_s


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a kind of traffic."""

    speed: float
    """Units, or bytes, a second."""
    p99_ns: int
    """Of a round trip; 0 where none was timed."""
    node_cpu_ns: float
    """Of all CPUs of the node, for each unit or byte: whoever used it."""


def read(kind: Kind, send: Callable[[], list[Blast]]) -> Reading:
    """The best of a few bursts: what else runs on the machine only ever slows one down."""
    before_ns = _busy_ns()
    moved = send()
    busy_ns = _busy_ns() - before_ns
    units = sum(one.bytes if kind.by_bytes else one.units for one in moved)
    return Reading(
        max(kind.speed(one) for one in moved), min(one.p99_ns for one in moved), busy_ns / units
    )


def _busy_ns() -> float:
    """Time that the machine's CPUs worked, in steps of 10 ms; stolen time is not ours."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, irq, softirq = map(int, words[1:8])
    return (user + nice + system + irq + softirq) * 1e9 / os.sysconf("SC_CLK_TCK")


@contextmanager
def _blast(
    mode: str,
    payload_bytes: int,
    directory: Path,
    bursts: int = BURSTS,
    milliseconds: int = MILLISECONDS,
) -> Iterator[Callable[[], list[Blast]]]:
    """Bursts of blast.c."""
    program = compile_blast(directory)
    one = partial(blast, program, mode, milliseconds, payload_bytes)
    yield lambda: [one() for _ in range(bursts)]


@contextmanager
def _churn(directory: Path) -> Iterator[Callable[[], list[Blast]]]:
    """Ports are free again at once, on both pods and in the node's conntrack: there are too few."""
    for pod in PODS:
        _sysctl(pod, "net.ipv4.tcp_max_tw_buckets", 0)
    _sysctl(NODE, "net.netfilter.nf_conntrack_tcp_timeout_time_wait", 1)
    with _blast("churn", 64, directory) as send:
        yield send


@contextmanager
def _iperf(port: int, words: str, _directory: Path) -> Iterator[Callable[[], list[Blast]]]:
    with iperf.server(port):
        yield lambda: [iperf.client(port, *words.split())]


@contextmanager
def _many(directory: Path) -> Iterator[Callable[[], list[Blast]]]:
    """A packet of each of FLOWS flows, again and again; the node knows all their connections."""
    sender_pod, server_pod = PODS
    run("ip", "-n", sender_pod, "route", "add", PREFIX, "via", PODS[server_pod])
    run("ip", "-n", server_pod, "route", "add", "local", PREFIX, "dev", "lo")
    for timeout in ("udp_timeout", "udp_timeout_stream"):
        _sysctl(NODE, f"net.netfilter.nf_conntrack_{timeout}", HOUR_S)
    ports = FLOWS // FLOW_ADDRESSES
    words = (SERVER_PORT, ports, FLOW_ADDRESSES, 0, 0)
    sender = Sender(directory, server_pod, FIRST_ADDRESS, *words)
    try:
        sender.send(FLOWS)
        sender.alone_on(0)
        yield lambda: [_timed(sender) for _ in range(BURSTS)]
    finally:
        sender.kill()


def _timed(sender: Sender) -> Blast:
    start_ns = time.monotonic_ns()
    sender.send(FLOWS)
    return Blast(FLOWS, 0, time.monotonic_ns() - start_ns)


def _sysctl(netns: str, name: str, value: int) -> None:
    run("ip", "netns", "exec", netns, "sysctl", "-qw", f"{name}={value}")


KINDS = (
    Kind("udp", "64 B, one thread sends bursts and takes them out", partial(_blast, "udp", 64)),
    Kind(
        "udp-long",
        "the same, one burst of 4 s",
        partial(_blast, "udp", 64, bursts=1, milliseconds=LONG_MILLISECONDS),
    ),
    Kind("udp-1400", "the same, 1400 B", partial(_blast, "udp", 1400)),
    Kind("udp-rr", "64 B, ping-pong between two threads", partial(_blast, "udp-rr", 64)),
    Kind("udp-two", "64 B, a sender and a receiver, each on a CPU", partial(_blast, "udp-two", 64)),
    Kind("tcp", "a stream, one thread", partial(_blast, "tcp", 64), by_bytes=True),
    Kind("iperf-1", "iperf3, TCP, 1 flow", partial(_iperf, 5202, "-P 1"), by_bytes=True),
    Kind("iperf-8", "iperf3, TCP, 8 flows", partial(_iperf, 5203, "-P 8"), by_bytes=True),
    Kind("iperf-64", "iperf3, TCP, 64 flows", partial(_iperf, 5204, "-P 64"), by_bytes=True),
    # Last, what leaves a tool work for seconds: 100,000 flows to be written, or as many drops.
    Kind("iperf-udp", "iperf3, UDP, 64 B", partial(_iperf, 5201, "-u -l 64 -b 0")),
    Kind("churn", "connections of one request and one response", _churn),
    Kind("flows-100k", "8 B to 71 B, 100,000 flows in turn", _many),
)
MAIN = ("udp", "udp-rr", "udp-two", "tcp")
"""What is sent where nothing else is asked for."""


def present() -> tuple[Kind, ...]:
    """Those that this machine can make."""
    return tuple(k for k in KINDS if not k.name.startswith("iperf") or iperf.installed())
