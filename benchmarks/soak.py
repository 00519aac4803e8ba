"""Is `tracer flows` flat and exact while everything around it changes? Months in minutes.

    sudo .venv/bin/python benchmarks/soak.py [--minutes 30] [--connections 1000] [--own-pods]
        [--plain] [--step-clock]

In a world of its own (network, mounts and processes: nothing of the machine takes part) a real
containerd runs pods. A pod opens connections to another without a pause; pods and namespaces come,
send a counted number of packets and go; files rotate every few seconds and are read and removed;
their disk fills up and is freed; containerd is killed and started again. With --step-clock the
wall clock is set forward and back, which everything else on the machine sees, too: in a guest
without containerd that is `scripts/kernels 6.12 -- .venv/bin/python benchmarks/soak.py --minutes 2
--connections 20 --plain --step-clock`.

Judged are: every counted packet is in the files once (unless it is in a device's sum, which the
figures tell); all packets of the two pods with connections are those of their devices' statistics;
times are those of the wall clock when they were sent; memory in the last third is that of the
second; no record is lost; stderr holds nothing that what was done does not explain.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "functional"))

from lab import cluster as lab_cluster
from lab import containerd, namespaces, runner, topology
from lab.namespaces import End
from lab.shell import run
from lab.traffic import send_udp, udp_listener

from tracer.wall_time import time_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

    from lab.topology import Host

INSIDE = "TRACER_SOAK_INSIDE"
WORLD = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
UID_MARK = "50a650a6"
SITE = 178
"""Of addresses that functional tests do not use: they may run beside it, in namespaces that the
kernel shows to this tracer too, and an address in two namespaces names no pod."""
DISK, DISK_BYTES = Path("/run/soak"), 96 << 20
NAMESPACES = ("shop", "ops", "soak")
FULL_S, PAUSE_S = 3.0, 2.0
READY_S, STOP_S = 900.0, 120.0
"""To begin, and to write the last interval, on a machine that others use, or an emulated one."""
TELLS_WHERE = {"PYTHONFAULTHANDLER": "1"}
"""A process that has to be aborted writes the stack of each thread to stderr."""
STALL_S = 30.0
"""That an answer may take, on the same."""
MAX_FLOWS = 131072
"""Room for some seconds without a processor."""
SAMPLE_S = 5.0
GROWTH_BYTES = 8 << 20
"""Memory that may come and go between two thirds of a run."""
SLACK_NS = 1_000_000_000
"""That a record's times may be off, on the same machine; the clock is stepped by an hour."""
IN_FLIGHT = 16
"""Packets of neighbour discovery between the look at a device and that at its counters."""
EXPLAINED = re.compile(
    r"tracing flows |the wall clock was set|\d+ flow records|over: |"
    r"warning: \S+: (no space left on device: records wait|no room)|"
    r"warning: (cri|containerd|/run/containerd|runtime)"
)
LINGER_0 = struct.pack("ii", 1, 0)


def world() -> None:
    """What the world inside needs first; /run is its own, with all that lives there."""
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/netns").mkdir()
    run("mount", "--bind", "/run/netns", "/run/netns")
    run("mount", "--make-shared", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    for directory in (containerd.CNI_STATE, lab_cluster.LOGS):
        directory.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    DISK.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(DISK))
    lab_cluster.UID_MARK = UID_MARK
    containerd.SITE = SITE
    runner.READY_S = READY_S


def connect_forever(
    client: str, web: str, address: str, a_second: int, stop: Event, made: Synchronized[int]
) -> None:
    """So many short TCP connections a second, each with a question and an answer; counts them."""
    asking, answering = namespaces.Namespace(client), namespaces.Namespace(web)
    listener = answering.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("", 7001))
    listener.listen(64)
    listener.settimeout(STALL_S)
    begin_s = time.monotonic()
    with asking.entered():
        while not stop.is_set():
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
                one.settimeout(STALL_S)
                # Ends with a reset: no port waits for its TIME_WAIT.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                one.connect((address, 7001))
                with listener.accept()[0] as accepted:
                    one.sendall(b"question")
                    accepted.recv(100)
                    accepted.sendall(b"answer")
                    one.recv(100)
            made.value += 1
            time.sleep(max(0.0, begin_s + made.value / a_second - time.monotonic()))


class Files:
    """Reads and removes what tracer has finished; the sums of it."""

    def __init__(self, path: Path, receiver: int) -> None:
        """`receiver` is the network namespace of who gets what is counted by port."""
        self._path, self._receiver = path, receiver
        self.by_port: Counter[int] = Counter()
        self.times: dict[int, tuple[str, str]] = {}
        """Of each port the first and the last packet."""
        self.by_device: Counter[tuple[int, str]] = Counter()
        self.lost: Counter[str] = Counter()
        self.records = self.files = self.other = 0

    def collect(self, *, everything: bool = False) -> None:
        """Of backups all; the file that is written only when nobody writes it any more."""
        for file in sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}")):
            self._take(file)
        if everything:
            self._take(self._path)

    def _take(self, file: Path) -> None:
        for line in file.read_bytes().splitlines():
            self._add(orjson.loads(line))
        file.unlink()
        self.files += 1

    def _add(self, record: dict[str, Any]) -> None:
        self.records += 1
        if record["type"] == "lost":
            self.lost[record["source"]] += record["count"]
        elif record["verdict"] == "forwarded":
            self.by_device[record["netns"], record["direction"]] += record["packets"]
            self.other += record["packets"] if "flow.other" in record else 0
            here = record["netns"], record["direction"]
            if here == (self._receiver, "ingress") and record.get("transport") == "udp":
                port = record["dst.port"]
                self.by_port[port] += record["packets"]
                first, last = self.times.get(port, (record["time"], record["end_time"]))
                self.times[port] = min(first, record["time"]), max(last, record["end_time"])


@dataclass(frozen=True, slots=True)
class Plain:
    """Two namespaces that a third one joins, where no containerd can run."""

    client: Host
    web: Host


World = lab_cluster.Cluster | Plain


@contextmanager
def plain() -> Iterator[Plain]:
    """The same, gone after the block."""
    with topology.routed("-soak") as made:
        yield Plain(made.left, made.right)


class Soak:
    """The world's events, one after another, and what they must have left in the files."""

    def __init__(self, cluster: World, files: Files, *, step_clock: bool) -> None:
        self._cluster, self._files = cluster, files
        self.sent: Counter[int] = Counter()
        self.sent_at: dict[int, tuple[str, str]] = {}
        """Of each port: wall clock before the first packet and after the last."""
        self._number = 0
        self._events = [self.full_disk, self.packets]
        if isinstance(cluster, lab_cluster.Cluster):
            self._events = [self.pod, self.namespace, self.full_disk, self.runtime]
        if step_clock:
            self._events.append(self.clock)
        self.done: Counter[str] = Counter()

    def next(self) -> None:
        """One event."""
        event = self._events[self._number % len(self._events)]
        self._number += 1
        event()
        self.done[event.__name__] += 1
        time.sleep(PAUSE_S)
        self._files.collect()

    def _send(self, where: namespaces.Namespace) -> None:
        """A counted number of packets to a port that nobody else uses."""
        port, count = 21000 + len(self.sent), 37
        begin_ns = time.time_ns()
        with udp_listener(self._cluster.web.where, port):
            send_udp(where, (self._cluster.web.ip4, port), count)
        self.sent[port] += count
        self.sent_at[port] = time_text(begin_ns - SLACK_NS), time_text(time.time_ns() + SLACK_NS)

    def packets(self) -> None:
        """Nothing else."""
        self._send(self._cluster.client.where)

    def pod(self) -> None:
        """A pod comes, sends and goes."""
        key = f"soak/brief-{self._number}"
        brief = self._cluster.run_pod(key, app="brief")
        self._send(brief.where)
        self._cluster.remove_pod(key)

    def namespace(self) -> None:
        """A network namespace that is no pod's does the same."""
        made = namespaces.create("soak")
        # The kernel takes a namespace's devices away some time after the namespace.
        here = f"{namespaces.PREFIX}s{self._number}"
        net = f"10.247.{SITE}"
        ends = (f"{net}.1/24",), (f"{net}.2/24",)
        namespaces.join(End(namespaces.node(), here, ends[0]), End(made, "eth0", ends[1]))
        made.ip(f"route add default via {net}.1")
        self._send(made)
        namespaces.delete("soak")

    def full_disk(self) -> None:
        """Nothing can be written for a while."""
        filler = DISK / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        time.sleep(FULL_S)
        filler.unlink()

    def runtime(self) -> None:
        """Containerd dies and comes again."""
        self._cluster.runtime.kill()
        self._send(self._cluster.client.where)
        self._cluster.runtime.start()

    def clock(self) -> None:
        """The wall clock is an hour ahead for a while."""
        for by_s in (3600, -3600):
            self._send(self._cluster.client.where)
            time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + by_s)
            time.sleep(1)
            self._send(self._cluster.client.where)


@dataclass(slots=True)
class Connections:
    """How many there were, and how it ended."""

    made: int = 0
    exit_code: int | None = None


@contextmanager
def connections(cluster: World, a_second: int) -> Iterator[Connections]:
    """Short connections from client to web for the block."""
    context = multiprocessing.get_context("fork")
    stop, made = context.Event(), context.Value("q", 0)
    ends = cluster.client.where.path, cluster.web.where.path, cluster.web.ip4
    process = context.Process(target=connect_forever, args=(*ends, a_second, stop, made))
    process.start()
    whole = Connections()
    try:
        yield whole
    finally:
        stop.set()
        process.join(2 * STALL_S)
        whole.made, whole.exit_code = made.value, process.exitcode


def device_packets(pod: lab_cluster.Pod | Host) -> dict[tuple[int, str], int]:
    """What the pod's device has counted."""
    ways = (("egress", "tx_packets"), ("ingress", "rx_packets"))
    where = pod.where
    return {(where.inode, way): where.device_statistic("eth0", name) for way, name in ways}


def soak(cluster: World, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run for the time; the figures."""
    path = DISK / "flows.jsonl"
    files = Files(path, cluster.web.where.inode)
    words = (
        *("--interval", "1s", "--file-max-age", "4s", "--file-max-backups", "0"),
        *("--max-flows", str(MAX_FLOWS)),
        *(f"--namespace={name}" for name in NAMESPACES if arguments.own_pods),
    )
    watched = (cluster.client, cluster.web)
    rss: list[tuple[float, int]] = []
    with ExitStack() as held:
        live = held.enter_context(
            runner.running("flows", *words, "--write", str(path), env=TELLS_WHERE)
        )
        process = psutil.Process(live.process.pid)
        before = {key: n for pod in watched for key, n in device_packets(pod).items()}
        whole = Soak(cluster, files, step_clock=arguments.step_clock)
        begin_s, cpu_s = time.monotonic(), runner.cpu_s(process.pid)
        with connections(cluster, arguments.connections) as opened:
            while (now_s := time.monotonic() - begin_s) < arguments.minutes * 60:
                whole.next()
                if not rss or now_s - rss[-1][0] > SAMPLE_S:
                    rss.append((now_s, process.memory_info().rss))
                    print(f"{now_s:.0f} s: {rss[-1][1] / 1e6:.1f} MB", file=sys.stderr, flush=True)
            took_s = time.monotonic() - begin_s
        time.sleep(2)
        cpu_s = runner.cpu_s(process.pid) - cpu_s
        after = {key: n for pod in watched for key, n in device_packets(pod).items()}
        stop_s = time.monotonic()
        live.process.send_signal(signal.SIGINT)
        try:
            done = live.ended(stop_s, timeout_s=STOP_S)
        except subprocess.TimeoutExpired:
            live.process.send_signal(signal.SIGABRT)
            done = live.ended(stop_s)
    files.collect(everything=True)
    grew = {key: after[key] - before[key] for key in before}
    return {
        "minutes": arguments.minutes,
        "connections_per_s": round(opened.made / took_s, 1),
        "events": dict(whole.done),
        "files": files.files,
        "records": files.records,
        "packets": sum(files.by_device.values()),
        "packets_summed_by_device": files.other,
        "cpu_percent": round(100 * cpu_s / took_s, 2),
        "stop_s": round(live.stop_s, 1),
        "rss_mb": [round(size / 1e6, 1) for _, size in rss[:: max(1, len(rss) // 24)]],
        "wrong": judge(whole, opened, files, grew, rss, done),
    }


def judge(
    whole: Soak,
    opened: Connections,
    files: Files,
    grew: dict[tuple[int, str], int],
    rss: list[tuple[float, int]],
    done: runner.Done,
) -> list[str]:
    """What is not as it should be, one line each."""
    wrong = [
        f"port {port}: {count} sent, {files.by_port[port]} in the files"
        for port, count in whole.sent.items()
        if not count - files.other <= files.by_port[port] <= count
    ]
    wrong += [
        f"device of netns {key[0]}, {key[1]}: {count} packets, {files.by_device[key]} in the files"
        for key, count in grew.items()
        if abs(files.by_device[key] - count) > IN_FLIGHT
    ]
    wrong += [
        f"port {port}: sent from {begin} to {end}, in the files {files.times[port]}"
        for port, (begin, end) in whole.sent_at.items()
        if port in files.times and not begin < files.times[port][0] <= files.times[port][1] < end
    ]
    sizes = [size for _, size in rss]
    third = len(sizes) // 3
    earlier, later = (statistics.median(part) for part in (sizes[third:-third], sizes[-third:]))
    if later - earlier > GROWTH_BYTES:
        wrong.append(f"memory: {earlier / 1e6:.1f} MB, then {later / 1e6:.1f} MB")
    wrong += [f"lost: {count} of {source}" for source, count in files.lost.items()]
    wrong += [f"exit code {done.code}"] if done.code else []
    wrong += [f"connections: exit code {opened.exit_code}"] if opened.exit_code != 0 else []
    lines = [line for line in done.err.splitlines() if not EXPLAINED.match(line)]
    return wrong + [f"stderr: {line}" for line in dict.fromkeys(lines)]


def main() -> int:
    """Run, print; 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=1000, help="a second")
    parser.add_argument(
        "--own-pods", action="store_true", help="count only these, where others make flows, too"
    )
    parser.add_argument("--plain", action="store_true", help="without containerd: no pods")
    parser.add_argument("--step-clock", action="store_true", help="of the whole machine")
    arguments = parser.parse_args()
    if INSIDE not in os.environ:
        again = (*WORLD, sys.executable, *sys.argv)
        return subprocess.run(again, env={**os.environ, INSIDE: "1"}, check=False).returncode
    world()
    with plain() if arguments.plain else lab_cluster.running() as cluster:
        result = soak(cluster, arguments)
    print(json.dumps(result, indent=2))
    return bool(result["wrong"])


if __name__ == "__main__":
    sys.exit(main())
