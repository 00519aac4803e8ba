"""How long `tracer report` takes over many records, and how much memory: made-up nodes' Parquet.

    benchmarks/report.py make DIRECTORY --records 10M --nodes 20     write the records
    benchmarks/report.py time DIRECTORY                              run every question, measured

Needs no root. The records are drawn at random (seeded): pods with a few busy ones, Services'
addresses, drops of six reasons; they are of the columns and types that `tracer flows` writes.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tracer.flow_table import SCHEMA_VERSION
from tracer.report.inputs import find_inputs
from tracer.report.store import SCHEMA_KEY, Period, Store
from tracer.report.summaries import SUMMARIES

BEGIN_NS = 1_767_225_600 * 10**9  # 2026-01-01
FILE_RECORDS = 500_000
PODS_PER_NODE, PEERS = 40, 30
NAMESPACES = ("shop", "data", "ml", "kube-system", "monitoring")
DROPS = (
    ("NO_SOCKET", "tcp_v4_rcv+0x99"),
    ("NETFILTER_DROP", "nf_hook_slow+0x6a"),
    ("IP_RPFILTER", "ip_rcv_finish_core+0x25b"),
    ("TCP_ZEROWINDOW", "tcp_data_queue+0x1f1"),
    ("QDISC_DROP", "pfifo_enqueue+0x3c"),
    ("TTL_EXPIRED", "ip_forward+0x9a"),
)
DROPPED_OF_ALL, SENT_OF_ALL, TCP_OF_ALL = 0.02, 0.5, 0.8
MULTIPLES = {"k": 10**3, "M": 10**6, "": 1}


def number(text: str) -> int:
    """`10M` → 10,000,000."""
    digits = text.rstrip("kM")
    return int(digits) * MULTIPLES[text[len(digits) :]]


class Cluster:
    """Pods, with their addresses and nodes."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.count = nodes * PODS_PER_NODE
        pods = range(self.count)
        self.namespace = [NAMESPACES[pod % len(NAMESPACES)] for pod in pods]
        self.owner = [f"app-{pod // 4}" for pod in pods]
        self.name = [f"app-{pod // 4}-5d8f9c7b4-{pod:05x}" for pod in pods]
        self.address = [f"10.{64 + pod // 65536}.{pod // 256 % 256}.{pod % 256}" for pod in pods]
        weights = 1 / np.arange(1, self.count + 1) ** 0.8
        draw = np.random.default_rng(7)
        self.peers = draw.choice(self.count, (self.count, PEERS), p=weights / weights.sum())


def _dictionary(codes: np.ndarray, words: list[str], absent: np.ndarray) -> pa.Array:
    codes = pa.array(codes.astype(np.int32), mask=absent)
    return pa.DictionaryArray.from_arrays(codes, pa.array(words, pa.string())).cast(pa.string())


def records(
    cluster: Cluster, node: int, begin_ns: int, count: int, draw: np.random.Generator
) -> pa.Table:
    """One file's table: the flows of pods of `node` with pods anywhere."""
    mine = node * PODS_PER_NODE + draw.integers(0, PODS_PER_NODE, count)
    other = cluster.peers[mine, draw.integers(0, PEERS, count)]
    egress = draw.random(count) < SENT_OF_ALL
    dropped = draw.random(count) < DROPPED_OF_ALL
    source, goal = np.where(egress, mine, other), np.where(egress, other, mine)
    nowhere = np.zeros(count, bool)
    packets = np.maximum(1, draw.lognormal(2.5, 1.8, count)).astype(np.uint64)
    packets[dropped] = np.minimum(packets[dropped], 20)
    first = np.sort(begin_ns + draw.integers(0, 3600 * 10**9, count))
    reason = draw.choice(len(DROPS), count, p=(0.4, 0.3, 0.1, 0.1, 0.05, 0.05))
    tcp = draw.random(count) < TCP_OF_ALL
    port = draw.choice(np.array([80, 443, 5432, 6379, 8080, 53], np.uint16), count)
    high = draw.integers(32768, 60999, count).astype(np.uint16)

    def pods(at: np.ndarray, prefix: str, absent: np.ndarray) -> dict[str, pa.Array]:
        return {
            f"{prefix}.namespace": _dictionary(at, cluster.namespace, absent),
            f"{prefix}.pod.name": _dictionary(at, cluster.name, absent),
            f"{prefix}.owner.kind": _dictionary(at * 0, ["Deployment"], absent),
            f"{prefix}.owner.name": _dictionary(at, cluster.owner, absent),
        }

    charged = {
        "k8s.pod.namespace": _dictionary(mine, cluster.namespace, nowhere),
        "k8s.pod.name": _dictionary(mine, cluster.name, nowhere),
        "k8s.owner.kind": _dictionary(mine * 0, ["Deployment"], nowhere),
        "k8s.owner.name": _dictionary(mine, cluster.owner, nowhere),
    }
    stamp = pa.timestamp("ns", "UTC")
    return pa.table(
        {
            "type": _dictionary(mine * 0, ["flow"], nowhere),
            "time": pa.array(first, stamp),
            "end_time": pa.array(first + 9 * 10**9, stamp),
            "direction": _dictionary(egress * 1, ["ingress", "egress"], nowhere),
            "verdict": _dictionary(dropped * 1, ["forwarded", "dropped"], nowhere),
            "k8s.node.name": _dictionary(mine * 0, [f"node-{node}"], nowhere),
            **charged,
            # A node knows its own pods only.
            **pods(source, "k8s.src", ~egress & (other // PODS_PER_NODE != node)),
            **pods(goal, "k8s.dst", egress & (other // PODS_PER_NODE != node)),
            "network.type": _dictionary(mine * 0, ["ipv4"], nowhere),
            "transport": _dictionary(tcp * 1, ["udp", "tcp"], nowhere),
            "src.address": _dictionary(source, cluster.address, nowhere),
            "src.port": pa.array(np.where(egress, high, port), pa.uint16()),
            "dst.address": _dictionary(goal, cluster.address, nowhere),
            "dst.port": pa.array(np.where(egress, port, high), pa.uint16()),
            "packets": pa.array(packets),
            "bytes": pa.array(packets * draw.integers(60, 1400, count).astype(np.uint64)),
            "tcp.flags": _dictionary(mine * 0, ["SYN,ACK,FIN"], ~tcp),
            "drop.reason": _dictionary(reason, [one for one, _ in DROPS], ~dropped),
            "drop.location": _dictionary(reason, [one for _, one in DROPS], ~dropped),
            "netns": pa.array((4026532000 + mine).astype(np.uint32)),
        }
    )


def make(directory: Path, count: int, nodes: int) -> None:
    """Write `count` records of `nodes` nodes, hours one after another."""
    cluster, draw = Cluster(nodes), np.random.default_rng(5)
    for index, at in enumerate(range(0, count, FILE_RECORDS)):
        node, hour = index % nodes, index // nodes
        begin_ns = BEGIN_NS + hour * 3600 * 10**9
        when = datetime.fromtimestamp(begin_ns // 10**9, timezone.utc)
        table = records(cluster, node, begin_ns, min(FILE_RECORDS, count - at), draw)
        table = table.replace_schema_metadata({SCHEMA_KEY: str(SCHEMA_VERSION)})
        folder = directory / f"date={when:%Y-%m-%d}" / f"hour={when:%H}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"node-{node}.parquet", compression="zstd")


def measure(directory: Path, memory: str) -> None:
    """Ask every question once; seconds, and the most memory the process ever had."""
    begin = time.perf_counter()
    with Store(find_inputs([directory]), Period(), memory) as store:
        count = store.ask("SELECT count(*) FROM flows").rows[0][0]
        size = sum(file.stat().st_size for file in directory.rglob("*.parquet"))
        print(f"{count:,} records, {size / 1e9:.2f} GB of Parquet")
        print(f"  open                {time.perf_counter() - begin:7.2f} s")
        for summary in SUMMARIES:
            start = time.perf_counter()
            store.ask(summary.sql(20))
            print(f"  {summary.name:<20}{time.perf_counter() - start:7.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  all                 {time.perf_counter() - begin:7.2f} s, {peak:,.0f} MiB at most")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "time"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--records", type=number, default=number("10M"))
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--memory", default="", help="bound on DuckDB's memory: 4GB")
    args = parser.parse_args()
    if args.what == "make":
        make(args.directory, args.records, args.nodes)
    else:
        measure(args.directory, args.memory)


if __name__ == "__main__":
    sys.exit(main())
