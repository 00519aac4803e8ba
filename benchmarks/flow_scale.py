"""What an interval of many live flows costs `tracer flows`: CPU to read, name and write, memory.

    sudo benchmarks/flow_scale [--flows N ...] [--format parquet|flat ...] [--between-pods]
                               [--options=WORDS]

One pod sends to addresses of its node, in each interval a packet of each of N flows (ports times
addresses, all IPv4 UDP). With --between-pods the node routes them to another pod, and tracks them:
half as many packets, each counted at both pods, and every record has its conntrack entry.

tracer runs as a user runs it and writes files; its CPU is what the scheduler counted, system calls
included, over INTERVALS intervals; memory the most that was resident meanwhile. All packets must
be in the files. Bars, for 100,000 flows: 0.5 s of one core an interval, 150 MB. From 200,000
packets an interval on the node does not track connections: its table is smaller.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from exactness import READERS
from many_flows import SERVER_PORT, Sender, routed_pods
from tools import TRACER, Running, Tool, running
from two_pods import BRIDGE, NODE, PODS, on_node, run

FLOWS = (100_000, 1_000_000)
INTERVALS, INTERVAL_S = 3, 10.0
STEP_S, WRITING_SHARE, IDLE_SHARE = 0.5, 0.2, 0.1
FIRST_ADDRESS, PREFIX = "198.19.0.0", "198.19.0.0/16"
MOST_TRACKED = 200_000
ADDRESSES = 1000
BAR_FLOWS, BAR_CPU_S, BAR_RSS_MB = 100_000, 0.5, 150


SENDER, SERVER = PODS


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured once."""

    flows: int
    """Records of one interval."""
    format: str
    between_pods: bool
    options: tuple[str, ...]
    """More of `tracer flows`."""

    @property
    def packets(self) -> int:
        """Sent in one interval; between pods each is in two records."""
        return self.flows // 2 if self.between_pods else self.flows


def receive_everything(case: Case) -> None:
    """Have the node, or the other pod, take what is sent to any of the addresses."""
    receiver = SERVER if case.between_pods else NODE
    run("ip", "-n", receiver, "route", "add", "local", PREFIX, "dev", "lo")
    if case.between_pods:
        run("ip", "-n", NODE, "route", "add", PREFIX, "via", PODS[SERVER])
        for device in ("all", BRIDGE):
            setting = f"net.ipv4.conf.{device}.send_redirects=0"
            run("ip", "netns", "exec", NODE, "sysctl", "-qw", setting)
    if case.packets > MOST_TRACKED:
        untracked = ("-t", "raw", "-I", "PREROUTING", "-j", "CT", "--notrack")
        run("ip", "netns", "exec", NODE, "iptables", *untracked)


def peak_rss_mb(active: Running, *, anew: bool = False) -> float:
    """The most memory that was resident, from the last call with `anew` on."""
    (process,) = active.processes
    folder = Path(f"/proc/{process.pid}")
    found = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
    if anew:
        (folder / "clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak begins anew
    return int(found[1]) / 1000 if found else 0.0


def await_written(active: Running) -> None:
    """Sleep until an interval has been written, and half of the next has passed.

    What is measured from there on for whole intervals holds as many writings.
    """
    is_writing = False
    while True:
        before_ns = active.cpu_ns()
        time.sleep(STEP_S)
        share = (active.cpu_ns() - before_ns) / 1e9 / STEP_S
        if is_writing and share < IDLE_SHARE:
            break
        is_writing |= share > WRITING_SHARE
    time.sleep(INTERVAL_S / 2)


def rounds(sender: Sender, active: Running, packets: int) -> tuple[float, float]:
    """CPU seconds of an interval, and peak memory in MB."""
    sender.send(packets)
    await_written(active)  # what a first interval makes is made once
    peak_rss_mb(active, anew=True)
    before_ns, begin_s = active.cpu_ns(), time.monotonic()
    for number in range(INTERVALS):
        sender.send(packets)
        time.sleep(max(0.0, begin_s + (number + 1) * INTERVAL_S - time.monotonic()))
    return (active.cpu_ns() - before_ns) / 1e9 / INTERVALS, peak_rss_mb(active)


def measure(case: Case, directory: Path) -> dict[str, Any]:
    """The figures of one run."""
    path = directory / ("flows" if case.format == "parquet" else "flows.jsonl")
    most = ("--interval", f"{INTERVAL_S}s", "--max-flows", str(case.flows * 5 // 4))
    files = ("--file-max-size", "64M", "--file-max-backups", "0", "--write", str(path))
    words = (*most, "--format", case.format, *files, *case.options)
    argv = on_node(*TRACER, "flows", "--concurrent", *words)
    receiver = SERVER if case.between_pods else NODE
    counts = (case.packets // ADDRESSES, ADDRESSES, 0, 0)
    sender = Sender(directory, receiver, FIRST_ADDRESS, SERVER_PORT, *counts)
    try:
        with running(Tool(f"flows-{case.format}", argv, "\ntracing"), directory) as active:
            cpu_s, rss_mb = rounds(sender, active, case.packets)
        sent = sum(one.sent.packets for one in sender.finish())
    finally:
        sender.kill()
    return {
        "format": case.format,
        "between_pods": case.between_pods,
        "flows": case.flows,
        **written(case, READERS[case.format].format(path.with_suffix(""))),
        "cpu_s_an_interval": round(cpu_s, 3),
        "peak_rss_mb": round(rss_mb, 1),
        "packets_sent": sent,
    }


def written(case: Case, reader: str) -> dict[str, int]:
    """What the files hold of our packets, read by `reader`, DuckDB's words."""
    ours = f"""from {reader} where coalesce(transport, 'udp') = 'udp'
        and coalesce("network.type", 'ipv4') = 'ipv4' and "netns.name" in {tuple(PODS)}"""
    one_end = f"""sum(packets) filter ("netns.name" = '{SENDER}' and direction = 'egress')"""
    tracked = 'count("flow.id")' if case.between_pods else "0"
    told = f"select count(transport), {tracked}, {one_end}, count(*) - count(transport) {ours}"
    records, linked, packets, sums = duckdb.execute(told).fetchone() or (0, 0, 0, 0)
    return {
        "records_an_interval": round(records / (INTERVALS + 1)),
        "tracked_an_interval": round(linked / (INTERVALS + 1)),
        "packets_in_files": int(packets or 0),
        "sums_by_device": sums,
    }


def judge(figures: dict[str, Any]) -> list[str]:
    """What is wrong or over a bar, one line each."""
    name = f"{figures['flows']} flows to {figures['format']}"
    wrong = []
    if figures["packets_sent"] != figures["packets_in_files"]:
        wrong.append(f"{name}: packets are missing, or are there twice")
    if figures["flows"] == BAR_FLOWS and figures["cpu_s_an_interval"] > BAR_CPU_S:
        wrong.append(f"{name}: more than {BAR_CPU_S} s of CPU an interval")
    if figures["flows"] == BAR_FLOWS and figures["peak_rss_mb"] > BAR_RSS_MB:
        wrong.append(f"{name}: more than {BAR_RSS_MB} MB")
    return wrong


def main() -> int:
    """Measure, print; 1 when something is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--flows", type=int, nargs="*", default=FLOWS, help="of each run")
    parser.add_argument("--format", choices=READERS, nargs="*", default=tuple(READERS))
    parser.add_argument(
        "--between-pods", action="store_true", help="routed, tracked, counted twice"
    )
    parser.add_argument("--options", default="", help="more words for tracer flows")
    arguments = parser.parse_args()
    missed, more = [], (arguments.between_pods, tuple(arguments.options.split()))
    for flows in arguments.flows:
        for form in arguments.format:
            case = Case(flows, form, *more)
            with tempfile.TemporaryDirectory() as directory, routed_pods():
                receive_everything(case)
                figures = measure(case, Path(directory))
            print(json.dumps(figures), flush=True)
            missed += judge(figures)
    print("\n".join(missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
