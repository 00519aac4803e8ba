"""What tracing costs: packets a second with and without, and the programs' own time.

Rounds alternate between no tool, tracer and others, for machines vary between minutes more
than tools do; a round's ratios are formed within the round. The direct cost, nanoseconds of
BPF program per packet, is steady: the kernel counts it (kernel.bpf_stats_enabled), and what
the count itself adds is measured with an empty program and taken off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bpf_stats import bpf_stats
from figures import Estimate, estimate
from tools import Tool, held_programs, running, tools
from two_pods import blast, compile_blast, two_pods

from tracer.kernel import libbpf
from tracer.kernel.hooks import TYPED

MODES = ("udp", "udp-rr", "tcp")
OFF = "off"
BURSTS = 5
DIRECT_MILLISECONDS = 600
EMPTY_ON = ("net_dev_start_xmit", "netif_receive_skb")
IDLE_S, IDLE_LOOKS = 2.0, 7

COLUMNS = (
    "tool",
    "udp slower %",
    "udp-rr slower %",
    "tcp slower %",
    "programs ns a packet",
    "of udp %",
    "runs a packet",
    "CPU %",
    "idle CPU %",
    "RSS MB",
)

BARS = {
    # (tool, figure): the most it may be
    ("drops", "slower_percent"): 1.0,
    ("flows", "slower_percent"): 5.0,
    ("drops", "direct_percent"): 1.0,
    ("flows", "direct_percent"): 5.0,
    ("trace-standby", "slower_percent"): 3.0,
    ("trace-sampled", "slower_percent"): 5.0,
    ("drops", "rss_mb"): 120.0,
    ("flows", "rss_mb"): 120.0,
    ("drops", "idle_cpu_percent"): 0.5,
    ("flows", "idle_cpu_percent"): 0.5,
}


@dataclass(slots=True)
class Direct:
    """Time that a tool's programs take per UDP packet, net of what counting it adds."""

    runs_per_packet: float
    ns_per_packet: float


@dataclass(slots=True)
class Samples:
    """What the rounds measured of one tool."""

    speeds: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    """Mode → one figure a round: packets/s, for TCP bytes/s."""
    cpu_percent: list[float] = field(default_factory=list)
    """Of one CPU, while traffic flows."""
    rss_bytes: int = 0
    idle_cpu_percent: float | None = None
    direct: dict[str, Direct] = field(default_factory=dict)


class Bench:
    """Two pods, the sender, and what was measured so far."""

    def __init__(self, directory: Path, milliseconds: int) -> None:
        """Compile the sender. The pods must exist."""
        self.directory, self.milliseconds = directory, milliseconds
        self.program = compile_blast(directory)
        self.samples: dict[str, Samples] = {}

    def speed(self, mode: str) -> float:
        """Best of a few short bursts: what else runs on the machine only ever slows one down."""
        moved = [blast(self.program, mode, self.milliseconds) for _ in range(BURSTS)]
        return max(b.bytes_per_s if mode == "tcp" else b.packets_per_s for b in moved)

    def visit(self, tool: Tool | None) -> None:
        """One tool's part of a round."""
        samples = self.samples.setdefault(tool.name if tool else OFF, Samples())
        with running(tool, self.directory) if tool else contextlib.nullcontext() as active:
            cpu_ns, start_ns = active.cpu_ns() if active else 0, time.monotonic_ns()
            for mode in MODES:
                samples.speeds[mode].append(self.speed(mode))
            if active:
                used = (active.cpu_ns() - cpu_ns) / (time.monotonic_ns() - start_ns)
                samples.cpu_percent.append(100 * used)
                samples.rss_bytes = max(samples.rss_bytes, active.rss_bytes())

    def idle(self, tool: Tool) -> None:
        """CPU of a tool that has nothing to do; the median, for other things happen on the node."""
        used_percent = []
        with running(tool, self.directory) as active:
            time.sleep(1)  # what follows the start is not idleness
            for _ in range(IDLE_LOOKS):
                before = active.cpu_ns()
                time.sleep(IDLE_S)
                used_percent.append((active.cpu_ns() - before) / IDLE_S / 1e7)
        self.samples[tool.name].idle_cpu_percent = statistics.median(used_percent)

    def direct(self, tool: Tool, empty_ns: float) -> None:
        """Program time per packet of a tool that uses BPF programs."""
        with running(tool, self.directory) as active:
            for mode in ("udp", "udp-rr"):
                before = active.programs()
                packets = blast(self.program, mode, DIRECT_MILLISECONDS).units
                after = active.programs()
                ns = sum(after[one][0] - before[one][0] for one in before)
                runs = sum(after[one][1] - before[one][1] for one in before)
                net_ns = (ns - runs * empty_ns) / packets
                self.samples[tool.name].direct[mode] = Direct(runs / packets, net_ns)

    def empty_ns(self) -> float:
        """What the kernel's statistics show for a run of a program that does nothing."""
        with contextlib.ExitStack() as opened:
            for target in EMPTY_ON:
                program = libbpf.load_typed("empty", libbpf.EMPTY_PROGRAM, target)
                opened.callback(os.close, program)
                opened.callback(os.close, libbpf.attach_tracepoint(program, TYPED, target))
            before = held_programs("self")
            blast(self.program, "udp", DIRECT_MILLISECONDS)
            after = held_programs("self")
        ns = sum(after[one][0] - before[one][0] for one in before)
        return ns / sum(after[one][1] - before[one][1] for one in before)


def measure(arguments: argparse.Namespace, directory: Path) -> tuple[dict[str, Samples], float]:
    """Everything: rounds, idleness, direct cost. Returns (samples by tool, empty ns)."""
    bench = Bench(directory, arguments.milliseconds)
    chosen = [tool for tool in tools(directory) if tool.name in arguments.tools]
    order: list[Tool | None] = [None, *chosen]
    for number in range(arguments.rounds):
        progress(f"round {number + 1} of {arguments.rounds}")
        # Every tool gets every place in the round.
        shift = number % len(order)
        for tool in order[shift:] + order[:shift]:
            bench.visit(tool)
    for tool in chosen:
        progress(f"idle: {tool.name}")
        bench.idle(tool)
    with bpf_stats():
        empty_ns = bench.empty_ns()
        for tool in chosen:
            if tool.name != "tcpdump":  # its program is a socket filter, and it has none
                progress(f"direct cost: {tool.name}")
                bench.direct(tool, empty_ns)
    return bench.samples, empty_ns


def progress(text: str) -> None:
    """One line on stderr: stdout holds the result."""
    print(f"overhead: {text}", file=sys.stderr, flush=True)


def slower_percent(tool: Samples, off: Samples, mode: str) -> Estimate:
    """How much slower the traffic is, round by round."""
    pairs = zip(tool.speeds[mode], off.speeds[mode], strict=True)
    return estimate([100 * (1 - with_tool / without) for with_tool, without in pairs])


def report(samples: dict[str, Samples], empty_ns: float) -> dict[str, Any]:
    """The figures as JSON values."""
    off = samples[OFF]
    baseline_ns = {mode: 1e9 / statistics.median(off.speeds[mode]) for mode in MODES[:2]}
    result: dict[str, Any] = {
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "rounds": len(off.speeds["udp"]),
        "empty_program_ns": empty_ns,
        "baseline_ns_per_packet": baseline_ns,
        "baseline_tcp_bytes_per_s": statistics.median(off.speeds["tcp"]),
        "tools": {},
    }
    for name, tool in samples.items():
        if name == OFF:
            continue
        result["tools"][name] = {
            "slower_percent": {mode: asdict(slower_percent(tool, off, mode)) for mode in MODES},
            "direct": {
                mode: {
                    **asdict(direct),
                    "percent_of_baseline": 100 * direct.ns_per_packet / baseline_ns[mode],
                }
                for mode, direct in tool.direct.items()
            },
            "cpu_percent": statistics.median(tool.cpu_percent),
            "idle_cpu_percent": tool.idle_cpu_percent,
            "rss_mb": tool.rss_bytes / 1e6,
        }
    return result


def judge(result: dict[str, Any]) -> list[str]:
    """The bars that are missed, one line each; a tool that did not run has none."""
    missed = []
    for (name, figure), most in BARS.items():
        if name not in result["tools"]:
            continue
        tool = result["tools"][name]
        value = {
            "slower_percent": tool["slower_percent"]["udp"]["median"],
            "direct_percent": tool["direct"]["udp"]["percent_of_baseline"],
        }.get(figure, tool.get(figure))
        if value > most:
            missed.append(f"{name}: {figure} {value:.2f} is over {most:g}")
    return missed


def table(result: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    base = result["baseline_ns_per_packet"]
    where = (
        f"kernel {result['kernel']}, {result['cpus']} CPUs, {result['rounds']} rounds; without a "
        f"tool {base['udp']:.0f} ns a packet (udp), {base['udp-rr']:.0f} ns (udp-rr), "
        f"{result['baseline_tcp_bytes_per_s'] / 1e9:.2f} GB/s (tcp); "
        f"empty program {result['empty_program_ns']:.0f} ns"
    )
    lines = [where, "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, tool in result["tools"].items():
        slower = [
            "{median:.1f} [{low:.1f}, {high:.1f}]".format(**tool["slower_percent"][mode])
            for mode in MODES
        ]
        direct = tool["direct"].get("udp")
        cost = (
            "{ns_per_packet:.0f} | {percent_of_baseline:.2f} | {runs_per_packet:.2f}".format(
                **direct
            )
            if direct
            else "– | – | –"
        )
        lines.append(
            f"| {name} | {' | '.join(slower)} | {cost} | {tool['cpu_percent']:.1f} "
            f"| {tool['idle_cpu_percent']:.2f} | {tool['rss_mb']:.0f} |"
        )
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [tool.name for tool in tools(Path())]
    parser = argparse.ArgumentParser(
        prog="benchmarks/overhead", description=__doc__, epilog="exit code: 1 if a bar is missed"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--milliseconds", type=int, default=80, help="of one burst of traffic")
    parser.add_argument("--tools", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser.parse_args()


def main() -> int:
    """Measure, print, judge."""
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as directory, two_pods():
        result = report(*measure(arguments, Path(directory)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = judge(result)
    print(table(result), *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
