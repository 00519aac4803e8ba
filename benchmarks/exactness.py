"""Does every flow's record hold what was sent? A million packets of ten thousand flows, compared.

A pod sends to two Services; the node translates the destination, of one of them the source too; a
rule in the backend drops a tenth of the packets; it answers half of the rest. The sender knows of
each flow what it sent, what was dropped and what came back (it ends if one packet is missing). All
files that `tracer flows` wrote are read back by DuckDB: every flow at both pods, in both
directions, before and after NAT, must have exactly these packets and bytes, and there must be no
other. Needs root: run `sudo benchmarks/exactness`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from many_flows import (
    NODE_ADDRESS,
    SERVER,
    SERVER_PORT,
    SERVICE_PORT,
    SERVICES,
    Sender,
    Tally,
    add_services,
    routed_pods,
)
from tools import TRACER, Tool, running
from two_pods import PODS, on_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from many_flows import Sent

Key = tuple[str, str | None, str, str, int, str, int]
"""Namespace, direction, verdict, source, port, destination, port."""
PACKETS, PORTS = 1_000_000, 5_000
DOOMED_PERCENT, ANSWERED_PERCENT = 10, 50
INTERVAL = "500ms"
READERS = {
    "parquet": "read_parquet('{}/**/*.parquet', hive_partitioning = false)",
    "flat": "read_json('{}*.jsonl', format = 'newline_delimited', map_inference_threshold = -1)",
}
QUERY = """
select "netns.name", direction, verdict, "src.address", "src.port", "dst.address", "dst.port",
    sum(packets)::bigint, sum(bytes)::bigint, count(*)
from {} where transport = 'udp' and "netns.name" in ('{}', '{}') group by all
"""


def expected(sent: Sequence[Sent]) -> dict[Key, Tally]:
    """What the records must sum up to."""
    client, server = PODS.values()
    sums: dict[Key, Tally] = defaultdict(lambda: Tally(0, 0))

    def add(place: str, words: tuple[str | None, str], source: tuple[str, int], to: tuple[str, int],
            tally: Tally) -> None:  # fmt: skip
        if tally.packets:
            sums[(place, *words, *source, *to)] += tally

    for one in sent:
        ours, backend = (client, one.port), (server, SERVER_PORT)
        service = SERVICES[one.address], SERVICE_PORT
        seen = (NODE_ADDRESS, one.port) if one.address else ours
        sender, receiver = PODS
        add(sender, ("egress", "forwarded"), ours, service, one.sent)
        add(receiver, ("ingress", "forwarded"), seen, backend, one.sent)
        add(receiver, ("egress", "forwarded"), backend, seen, one.answered)
        add(sender, ("ingress", "forwarded"), service, ours, one.answered)
        add(receiver, (None, "dropped"), seen, backend, one.doomed)
    return dict(sums)


def found(form: str, path: Path) -> tuple[dict[Key, Tally], int]:
    """What the records sum up to, and how many they are."""
    rows = duckdb.execute(QUERY.format(READERS[form].format(path), *PODS)).fetchall()
    return {row[:7]: Tally(*row[7:9]) for row in rows}, sum(row[9] for row in rows)


def measure(form: str, packets: int, directory: Path) -> tuple[dict[str, int], list[str]]:
    """Send, stop, compare: the figures, and what is wrong."""
    path = directory / form
    words = ("--interval", INTERVAL, "--format", form, "--write")
    if form == "flat":
        path = path.with_suffix(".jsonl")
        words = ("--file-max-backups", "0", *words)
    argv = on_node(*TRACER, "flows", "--concurrent", *words, str(path))
    sender = Sender(
        directory, SERVER, SERVICES[0], SERVICE_PORT,
        PORTS, len(SERVICES), DOOMED_PERCENT, ANSWERED_PERCENT,
    )  # fmt: skip
    try:
        with running(Tool(f"flows-{form}", argv, "\ntracing"), directory):
            sender.send(packets)
        sent = sender.finish()
    finally:
        sender.kill()
    right = expected(sent)
    seen, records = found(form, path.with_suffix(""))
    wrong = [
        f"{form}: {key}: sent {right.get(key)}, in the files {seen.get(key)}"
        for key in sorted(right.keys() | seen.keys(), key=str)
        if right.get(key) != seen.get(key)
    ]
    figures = {
        "flows": len(sent),
        "sent": sum(one.sent.packets for one in sent),
        "dropped": sum(one.doomed.packets for one in sent),
        "answered": sum(one.answered.packets for one in sent),
        "sums_compared": len(right),
        "records": records,
        "wrong": len(wrong),
    }
    return figures, wrong


def main() -> int:
    """Measure, print; 1 when a sum is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packets", type=int, default=PACKETS, help=f"send so many ({PACKETS})")
    parser.add_argument("--format", choices=READERS, action="append", help="default: all")
    arguments = parser.parse_args()
    figures, wrong = {}, []
    for form in arguments.format or READERS:
        with tempfile.TemporaryDirectory() as directory, routed_pods():
            add_services()
            figures[form], more = measure(form, arguments.packets, Path(directory))
        wrong += more
    print(json.dumps(figures, indent=2))
    print("\n".join(wrong[:20]), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
