"""What is compared: tracer's commands, and the tools that people use today."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from two_pods import NODE, PODS, blast, compile_blast, on_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY_S = 30.0
HEAVY_MILLISECONDS = 500
"""Of traffic, until a tool looks whether it is heavy."""
SETTLE_S = 0.2
STOP_S = 120.0
"""A million flows are still to be written."""
BPFTRACE_COUNT = """
BEGIN { printf("ready\\n"); }
tracepoint:net:net_dev_start_xmit, tracepoint:net:netif_receive_skb { @packets[probe] = count(); }
tracepoint:skb:kfree_skb { @dropped = count(); }
"""
BPFTRACE_TUPLE = """
BEGIN { printf("ready\\n"); }
tracepoint:net:net_dev_start_xmit /args->protocol == 0x800/ {
    $skb = (struct sk_buff *)args->skbaddr;
    $ip = (struct iphdr *)($skb->head + $skb->network_header);
    $to = (struct udphdr *)($skb->head + $skb->network_header + 20);
    @packets[$ip->protocol, $ip->saddr, $ip->daddr, $to->source, $to->dest] = count();
    @bytes[$ip->protocol, $ip->saddr, $ip->daddr, $to->source, $to->dest] = sum(args->len);
}
END { clear(@packets); clear(@bytes); }
"""
"""Where `tracer flows` counts: a packet between pods is counted twice."""
MOST_FLOWS = 131_072
MAIN_TOOLS = ("drops", "flows", "trace", "tcpdump", "bpftrace")
"""What is compared where nothing else is asked for."""
TRACER = (sys.executable, "-I", "-m", "tracer")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that watches the packets."""

    name: str
    argv: tuple[str, ...]
    ready: str
    """What it writes once it watches."""
    stdout_matters: bool = False
    """`ready` comes on stdout, not on stderr."""
    settled: str = ""
    """What it writes once it has got used to heavy traffic."""


def tools(directory: Path) -> tuple[Tool, ...]:
    """Every tool; files that they write go to `directory`."""
    node_veth = next(iter(PODS))
    flows = ("--max-flows", str(MOST_FLOWS), "--write", str(directory / "flows.jsonl"))
    node = ("nsenter", f"--net=/run/netns/{NODE}")
    # Headers only: what one would write for long, and in tcpdump's favour.
    tcpdump = ("tcpdump", "-n", "-i", node_veth, "-s", "128", "-w", str(directory / "capture.pcap"))
    trace = (*TRACER, "trace", "--concurrent", "-o", "json")
    return (
        Tool("drops", on_node(*TRACER, "drops", "--concurrent", "-o", "json"), "\ntracing"),
        Tool("flows", on_node(*TRACER, "flows", "--concurrent", *flows), "\ntracing"),
        # A selection that nothing on the bench matches; one packet of a hundred; every packet.
        Tool("trace", on_node(*trace, "udp port 1"), "\ntracing", settled="\non standby: "),
        Tool("trace-standby", on_node(*trace, "--standby", "udp port 1"), "\ntracing"),
        Tool("trace-hooks", on_node(*trace, "--standby=never", "udp port 1"), "\ntracing"),
        Tool(
            "trace-sampled",
            on_node(*trace, "--sample", "1/100"),
            "\ntracing",
            settled="\nsampling in bursts: ",
        ),
        Tool("trace-all", on_node(*trace), "\ntracing"),
        Tool("tcpdump", (*node, *tcpdump), "listening on"),
        _bpftrace("bpftrace", BPFTRACE_TUPLE),
        _bpftrace("bpftrace-count", BPFTRACE_COUNT),
        Tool("bcc", _ours("socktop.py"), "ready"),
        Tool("empty", _ours("empty.py"), "ready"),
        # The same hooks as trace's, and nothing done in them.
        Tool("trace-standby-floor", on_node(*_ours("floor.py"), "--standby"), "ready"),
        Tool("trace-floor", on_node(*_ours("floor.py")), "ready"),
    )


def _bpftrace(name: str, script: str) -> Tool:
    mounted = 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"'
    more = ("sh", "env", f"BPFTRACE_MAP_KEYS_MAX={MOST_FLOWS}", "bpftrace", "-B", "line", "-e")
    argv = ("unshare", "--mount", "sh", "-c", mounted, *more, script)
    return Tool(name, argv, "ready", stdout_matters=True)


def _ours(name: str) -> tuple[str, ...]:
    return (sys.executable, str(Path(__file__).with_name(name)))


@dataclass(frozen=True, slots=True)
class Running:
    """A tool at work: its processes without the wrappers that started them."""

    processes: tuple[psutil.Process, ...]

    def cpu_ns(self) -> int:
        """CPU time of its threads so far, by the scheduler's own count."""
        total_ns = 0
        for process in self.processes:
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # just ended
                    total_ns += int((task / "schedstat").read_text().split()[0])
        return total_ns

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return sum(int(process.memory_info().rss) for process in self.processes)

    def programs(self) -> dict[int, tuple[int, int]]:
        """BPF programs that it holds: id → (ns run, runs); needs kernel.bpf_stats_enabled."""
        found = {}
        for process in self.processes:
            found.update(held_programs(process.pid))
        return found


def held_programs(pid: int | str) -> dict[int, tuple[int, int]]:
    """BPF programs to which process `pid` has descriptors: id → (ns run, runs)."""
    found = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except FileNotFoundError:
            continue  # closed meanwhile
        if "run_time_ns" in lines:
            found[int(lines["prog_id"])] = int(lines["run_time_ns"]), int(lines["run_cnt"])
    return found


@contextlib.contextmanager
def running(tool: Tool, directory: Path) -> Iterator[Running]:
    """Start `tool`, wait until it watches, stop it as Ctrl-C would."""
    said = directory / f"{tool.name}.said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            tool.argv,
            stdin=subprocess.DEVNULL,
            stdout=output if tool.stdout_matters else subprocess.DEVNULL,
            stderr=output,
        )
    try:
        _wait_for(tool, tool.ready, process, said)
        time.sleep(SETTLE_S)
        if tool.settled:
            burst = partial(blast, compile_blast(directory), "udp", HEAVY_MILLISECONDS)
            _wait_for(tool, tool.settled, process, said, meanwhile=burst)
        yield Running(_leaves(process.pid))
    finally:
        _stop(process)


def _nap() -> None:
    time.sleep(0.02)


def _wait_for(
    tool: Tool,
    words: str,
    process: subprocess.Popen[bytes],
    said: Path,
    meanwhile: Callable[[], object] = _nap,
) -> None:
    end = time.monotonic() + READY_S
    while words not in "\n" + (text := said.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{tool.name} did not say {words!r}: {text.strip()[-500:]}")
        meanwhile()


def _leaves(pid: int) -> tuple[psutil.Process, ...]:
    """The processes below the wrappers (nsenter, unshare); wrappers wait and cost nothing."""
    top = psutil.Process(pid)
    everyone = [top, *top.children(recursive=True)]
    return tuple(process for process in everyone if process.name() not in ("unshare", "sh"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for leaf in _leaves(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                leaf.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
