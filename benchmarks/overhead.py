"""What tracing costs: traffic with and without, the programs' own time, CPU and memory.

Rounds alternate between no tool, tracer and others, for machines vary between minutes more
than tools do; a round's ratios are formed within the round. The direct cost, nanoseconds of
BPF program per packet, is steady: the kernel counts it (kernel.bpf_stats_enabled), and what
the count itself adds is measured with an empty program and taken off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import traffic
from bpf_stats import bpf_stats
from overhead_report import judge, report, tables
from tools import MAIN_TOOLS, Tool, running, tools
from two_pods import Blast, blast, compile_blast, run, two_pods

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OFF = "off"
DIRECT_MODES = ("udp", "udp-rr")
DIRECT_MILLISECONDS = 600
NO_PROGRAM = "tcpdump"
"""Its program is a socket filter, and it has none."""
IDLE_S, IDLE_LOOKS = 2.0, 5


@dataclass(slots=True)
class Direct:
    """Time that a tool's programs take per UDP packet, net of what counting it adds."""

    runs_per_packet: float
    ns_per_packet: float


@dataclass(slots=True)
class Samples:
    """What the rounds measured of one tool."""

    readings: dict[str, list[traffic.Reading]] = field(default_factory=dict)
    """Kind of traffic → one look a round."""
    cpu_percent: list[float] = field(default_factory=list)
    """Of one CPU, while traffic flows."""
    rss_bytes: int = 0
    idle_cpu_percent: float | None = None
    direct: dict[str, Direct] = field(default_factory=dict)


class Bench:
    """Two pods, the traffic that is ready, and what was measured so far."""

    def __init__(
        self, directory: Path, lanes: Sequence[tuple[traffic.Kind, Callable[[], list[Blast]]]]
    ) -> None:
        """`lanes`: kinds of traffic, and what sends each."""
        self.directory, self.lanes = directory, lanes
        self.samples: dict[str, Samples] = {}

    def visit(self, tool: Tool | None) -> None:
        """One tool's part of a round."""
        samples = self.samples.setdefault(tool.name if tool else OFF, Samples())
        with running(tool, self.directory) if tool else contextlib.nullcontext() as active:
            cpu_ns, start_ns = active.cpu_ns() if active else 0, time.monotonic_ns()
            for kind, send in self.lanes:
                samples.readings.setdefault(kind.name, []).append(traffic.read(kind, send))
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
        for mode, (packets, ns, runs) in self.programs(tool).items():
            net_ns = (ns - runs * empty_ns) / packets
            self.samples[tool.name].direct[mode] = Direct(runs / packets, net_ns)

    def programs(self, tool: Tool) -> dict[str, tuple[int, int, int]]:
        """Mode of blast.c → packets, ns and runs of the tool's programs meanwhile."""
        program, found = compile_blast(self.directory), {}
        with running(tool, self.directory) as active:
            for mode in DIRECT_MODES:
                before = active.programs()
                packets = blast(program, mode, DIRECT_MILLISECONDS).units
                after = active.programs()
                ns = sum(after[one][0] - before[one][0] for one in before)
                runs = sum(after[one][1] - before[one][1] for one in before)
                found[mode] = packets, ns, runs
        return found

    def empty_ns(self) -> float:
        """What the kernel's statistics show for a run of a program that does nothing."""
        empty = next(tool for tool in tools(self.directory) if tool.name == "empty")
        _packets, ns, runs = self.programs(empty)["udp"]
        return ns / runs


def rounds(bench: Bench, chosen: Sequence[Tool], count: int) -> None:
    """Visit every tool in every round, and in every place of it."""
    order: list[Tool | None] = [None, *chosen]
    for number in range(count):
        progress(f"round {number + 1} of {count}")
        shift = number % len(order)
        for tool in order[shift:] + order[:shift]:
            bench.visit(tool)


def own_cost(bench: Bench, chosen: Sequence[Tool]) -> float:
    """Idleness and direct cost of each; returns what an empty program shows, in ns."""
    for tool in chosen:
        progress(f"idle: {tool.name}")
        bench.idle(tool)
    with bpf_stats():
        empty_ns = bench.empty_ns()
        for tool in chosen:
            if tool.name != NO_PROGRAM:
                progress(f"direct cost: {tool.name}")
                bench.direct(tool, empty_ns)
    return empty_ns


def measure(
    arguments: argparse.Namespace, directory: Path
) -> tuple[dict[str, Samples], float | None]:
    """Everything: (samples by tool, empty ns)."""
    chosen = [tool for tool in tools(directory) if tool.name in arguments.tools]
    with contextlib.ExitStack() as ready:
        lanes = [
            (kind, ready.enter_context(kind.ready(directory)))
            for kind in traffic.present()
            if kind.name in arguments.traffic
        ]
        bench = Bench(directory, lanes)
        warn_of_others()
        rounds(bench, chosen, arguments.rounds)
    empty_ns = None if arguments.rounds_only else own_cost(bench, chosen)
    return bench.samples, empty_ns


def warn_of_others() -> None:
    """Another tracer at the same tracepoints is in every figure, those without a tool too."""
    listed = json.loads(run("bpftool", "--json", "prog", "show"))
    tracing = [one for one in listed if one["type"] in ("tracing", "raw_tracepoint", "tracepoint")]
    if tracing:
        names = ", ".join(sorted({one.get("name", "unnamed") for one in tracing}))
        progress(f"this machine is traced already ({names}): the figures are not those of a node")


def progress(text: str) -> None:
    """One line on stderr: stdout holds the result."""
    print(f"overhead: {text}", file=sys.stderr, flush=True)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [tool.name for tool in tools(Path())]
    kinds = [kind.name for kind in traffic.present()]
    parser = argparse.ArgumentParser(
        prog="benchmarks/overhead",
        description=__doc__,
        epilog="traffic:\n"
        + "\n".join(f"  {kind.name:11} {kind.tells}" for kind in traffic.KINDS)
        + "\n\nexit code: 1 if a bar is missed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--traffic", nargs="+", choices=kinds, default=traffic.MAIN)
    parser.add_argument("--tools", nargs="+", choices=names, default=MAIN_TOOLS)
    parser.add_argument("--all", action="store_true", help="all traffic, all tools: half an hour")
    parser.add_argument(
        "--rounds-only", action="store_true", help="neither idleness nor the programs' own time"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    arguments = parser.parse_args()
    if arguments.all:
        arguments.traffic, arguments.tools = kinds, names
    return arguments


def main() -> int:
    """Measure, print, judge."""
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as directory, two_pods():
        result = report(*measure(arguments, Path(directory)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = judge(result)
    print(tables(result), *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
