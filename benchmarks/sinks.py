"""Flow records a second into each format, on one core, from the kernel's columns to the file.

    benchmarks/sinks.py [--tracked SHARE] [FLOWS [FORMAT ...]]

FLOWS (default 100,000) flows of 300 pods are made up: half of them TCP, each with its own ports,
20,000 addresses outside; of SHARE of them the node's conntrack entry is known. Names are looked up,
records are written to files that rotate, Parquet files are finished. Figures are of CPU time and
medians of ROUNDS; bars: Parquet 200,000 a second, JSON lines 50,000, and everything of an interval
of 100,000 flows within 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.connections import Details, no_details
from tracer.analysis.drops import Context
from tracer.analysis.flow_columns import flow_tables
from tracer.layout import layout
from tracer.model import Device, Namespace, Node, Pod
from tracer.sinks.flow_files import FORMATS, Request, open_flows
from tracer.sinks.rotation import Policy

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ROUNDS = 3
BARS = {"parquet": 200_000, "flat": 50_000}
PODS = 300
NETNS = 4026531833
TCP, ESTABLISHED = 6, 3
KEPT = Policy(max_bytes=64_000_000, max_backups=None)


def node() -> Node:
    """A node of PODS pods in three namespaces."""
    pods, devices, namespaces = {}, {}, {}
    for index in range(PODS):
        netns, uid = NETNS + 1 + index, f"uid-{index}"
        name = f"web-{index // 10}-7d4b9c6f5d-{index:05x}"
        labels = {"pod-template-hash": "7d4b9c6f5d", "app": "web"}
        addresses = (f"10.244.{index // 250}.{index % 250}",)
        pods[uid] = Pod(uid, f"shop-{index % 3}", name, netns, addresses=addresses, labels=labels)
        namespaces[netns] = Namespace(netns, f"cni-{index:08x}")
        devices[netns, 2] = Device(netns, 2, "eth0", "veth")
    return Node(
        "node-1",
        NETNS,
        pods,
        namespaces,
        devices,
        pod_by_netns={pod.netns: uid for uid, pod in pods.items() if pod.netns},
        pod_by_address={pod.addresses[0]: uid for uid, pod in pods.items()},
    )


def made_up(flows: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and counts as `kernel.flow_maps` gives them."""
    rng = np.random.default_rng(1)
    structs = layout().structs
    keys, counts = np.zeros(flows, structs["flow_key"]), np.zeros(flows, structs["flow_count"])
    pod = rng.integers(0, PODS, flows)
    keys["netns"], keys["ifindex"] = NETNS + 1 + pod, 2
    keys["direction"] = rng.integers(1, 3, flows)
    flow = keys["tuple"]
    flow["ethertype"] = 0x0800
    flow["protocol"] = rng.choice((6, 17), flows)
    flow["sport"], flow["dport"] = rng.integers(30000, 60000, flows), rng.choice((80, 443), flows)
    own = np.stack((np.full(flows, 10), np.full(flows, 244), pod // 250, pod % 250), axis=1)
    far = rng.integers(0, 20_000, flows)
    other = np.stack((np.full(flows, 198), far >> 8, far & 255, np.full(flows, 7)), axis=1)
    sends = (keys["direction"] == 1)[:, np.newaxis]
    for name, ends in (("saddr", (own, other)), ("daddr", (other, own))):
        flow[name][:, 10:12] = 0xFF
        flow[name][:, 12:] = np.where(sends, *ends)
    counts["packets"], counts["bytes"] = rng.integers(1, 100, flows), rng.integers(60, 9000, flows)
    counts["first_ns"] = rng.integers(1, 10**10, flows)
    counts["last_ns"] = counts["first_ns"] + rng.integers(0, 10**9, flows).astype(np.uint64)
    counts["tcp_flags"] = rng.choice((0x02, 0x12, 0x1B), flows)
    return keys, counts


def entries_of(keys: np.ndarray, share: float) -> Details:
    """Conntrack entries, without NAT, of so many of the flows."""
    flow = keys["tuple"][: int(share * len(keys))]
    nothing = no_details()
    entries = np.zeros(len(flow), nothing.entries.dtype)
    entries["orig"] = entries["reply"] = flow
    for one, other in (("saddr", "daddr"), ("sport", "dport")):
        entries["reply"][one], entries["reply"][other] = flow[other], flow[one]
    entries["present"], entries["mark"] = 1, 7
    entries["status"] = 0b1110  # seen both ways, assured, confirmed
    entries["tcp_state"] = np.where(flow["protocol"] == TCP, ESTABLISHED, 0)
    return Details(entries, nothing.transit_keys, nothing.transits)


def measured(form: str, flows: int, share: float, pipe: Connection) -> None:
    """Send the CPU seconds of a round, bytes of the files, and the most memory it took."""
    keys, counts = made_up(flows)
    details = entries_of(keys, share)
    context = Context(node(), {}, str, time.time_ns())
    taken, size = [], 0
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            begin_s = time.process_time()
            tables = flow_tables(keys, counts, context, details)
            if form == "enrich":
                deque(tables, 0)
            else:
                request = Request(form, Path(folder, "flows"), (), KEPT, "node-1")
                sink = open_flows(request, print)
                for table in tables:
                    sink.write(table)
                sink.close()
            taken.append(time.process_time() - begin_s)
            size = sum(one.stat().st_size for one in Path(folder).rglob("*") if one.is_file())
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    pipe.send((float(np.median(taken)), size, rss_mb))


def main() -> int:
    """Print a JSON object; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tracked", type=float, default=0.0, metavar="SHARE", help="0 to 1")
    parser.add_argument("flows", type=int, nargs="?", default=100_000)
    parser.add_argument("form", nargs="*", metavar="FORMAT", help=", ".join(("enrich", *FORMATS)))
    arguments = parser.parse_args()
    flows, share = arguments.flows, arguments.tracked
    result: dict[str, object] = {"flows": flows, "tracked": share}
    missed = []
    spawn = multiprocessing.get_context("spawn")  # each format has a process of its own
    for form in arguments.form or ("enrich", *FORMATS):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=measured, args=(form, flows, share, theirs))
        process.start()
        theirs.close()
        cpu_s, size, rss_mb = ours.recv()
        process.join()
        speed = flows / cpu_s
        result[form] = {
            "records_per_s": round(speed),
            "cpu_s": round(cpu_s, 3),
            "file_bytes_each": round(size / flows, 1),
            "max_rss_mb": rss_mb,
        }
        if speed < BARS.get(form, 0):
            missed.append(f"{form}: {speed:.0f}/s is under {BARS[form]}")
    print(json.dumps(result, indent=2))
    print("\n".join(missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
