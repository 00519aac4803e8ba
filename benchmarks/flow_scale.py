"""What an interval of many live flows costs `tracer flows`: CPU to read, name and write, memory.

    sudo benchmarks/flow_scale [--flows N ...] [--format parquet|flat ...]

One pod sends to addresses of its node, in each interval a packet of each of N flows (ports times
addresses, all IPv4 UDP). tracer runs as a user runs it and writes files; its CPU is what the
scheduler counted, system calls included, over INTERVALS intervals; memory the most that was
resident meanwhile. All packets must be in the files. Bars, for 100,000 flows: 0.5 s of one core an
interval, 150 MB. From 200,000 flows on the node does not track connections: its table is smaller.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
from exactness import READERS
from many_flows import SERVER_PORT, Sender, routed_pods
from tools import TRACER, Running, Tool, running
from two_pods import NODE, PODS, on_node, run

FLOWS = (100_000, 1_000_000)
INTERVALS, INTERVAL_S = 3, 10.0
STEP_S, WRITING_SHARE, IDLE_SHARE = 0.5, 0.2, 0.1
FIRST_ADDRESS, PREFIX = "198.19.0.0", "198.19.0.0/16"
MOST_TRACKED = 200_000
ADDRESSES = 1000
BAR_FLOWS, BAR_CPU_S, BAR_RSS_MB = 100_000, 0.5, 150


def receive_everything(flows: int) -> None:
    """Have the node take what is sent to any of the addresses."""
    on = ("ip", "netns", "exec", NODE)
    run(*on, "ip", "route", "add", "local", PREFIX, "dev", "lo")
    if flows > MOST_TRACKED:
        run(*on, "iptables", "-t", "raw", "-I", "PREROUTING", "-j", "CT", "--notrack")


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


def rounds(sender: Sender, active: Running, flows: int) -> tuple[float, float]:
    """CPU seconds of an interval, and peak memory in MB."""
    sender.send(flows)
    await_written(active)  # what a first interval makes is made once
    peak_rss_mb(active, anew=True)
    before_ns, begin_s = active.cpu_ns(), time.monotonic()
    for number in range(INTERVALS):
        sender.send(flows)
        time.sleep(max(0.0, begin_s + (number + 1) * INTERVAL_S - time.monotonic()))
    return (active.cpu_ns() - before_ns) / 1e9 / INTERVALS, peak_rss_mb(active)


def measure(flows: int, form: str, directory: Path) -> dict[str, Any]:
    """The figures of one run."""
    path = directory / ("flows" if form == "parquet" else "flows.jsonl")
    words = ("--interval", f"{INTERVAL_S}s", "--max-flows", str(flows * 5 // 4), "--format", form)
    files = ("--file-max-size", "64M", "--file-max-backups", "0", "--write", str(path))
    argv = on_node(*TRACER, "flows", "--concurrent", *words, *files)
    sender = Sender(
        directory, NODE, FIRST_ADDRESS, SERVER_PORT, flows // ADDRESSES, ADDRESSES, 0, 0
    )
    try:
        with running(Tool(f"flows-{form}", argv, "\ntracing"), directory) as active:
            cpu_s, rss_mb = rounds(sender, active, flows)
        sent = sum(one.sent.packets for one in sender.finish())
    finally:
        sender.kill()
    reader = READERS[form].format(path.with_suffix(""))
    query = f"""select sum(packets), count(transport) from {reader} where direction = 'egress'
        and "netns.name" = '{next(iter(PODS))}' and coalesce(transport, 'udp') = 'udp'
        and coalesce("network.type", 'ipv4') = 'ipv4'"""  # noqa: S608 - our own words
    packets, records = duckdb.execute(query).fetchone() or (0, 0)
    return {
        "format": form,
        "flows": flows,
        "records_an_interval": round(records / (INTERVALS + 1)),
        "cpu_s_an_interval": round(cpu_s, 3),
        "peak_rss_mb": round(rss_mb, 1),
        "packets_sent": sent,
        "packets_in_files": int(packets),
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
    parser.add_argument("--flows", type=int, nargs="*", default=FLOWS, help="thousands of flows")
    parser.add_argument("--format", choices=READERS, nargs="*", default=tuple(READERS))
    arguments = parser.parse_args()
    missed = []
    for flows in arguments.flows:
        for form in arguments.format:
            with tempfile.TemporaryDirectory() as directory, routed_pods():
                receive_everything(flows)
                figures = measure(flows, form, Path(directory))
            print(json.dumps(figures), flush=True)
            missed += judge(figures)
    print("\n".join(missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
