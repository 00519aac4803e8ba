"""Are packets put together rightly under load? By the serial number that each of them carries.

Every packet of a sender at full speed is selected; hop records hold the packet's first bytes, so
the serial tells which records belong together, whatever ids and addresses say. Counted are the
packets of which every record arrived (the ring holds some thousands: at full speed most records
are lost, and counted), how many of them `tracer trace` puts together exactly, and paths joined of
two packets. Bars: 99.99 % exact, no wrong join. Needs root: run `sudo benchmarks/accuracy`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tools import Tool, running, tools
from two_pods import blast, compile_blast, two_pods

from tracer.analysis.paths import Assembler
from tracer.layout import layout
from tracer.recording import Batch, Loss, Recording

PACKETS = 100_000
BLAST_MILLISECONDS = 100
SERIAL_AT = 14 + 20 + 8
SETTLE_S = 2.0
EXACT_BAR = 0.9999


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What became of the packets that were sent."""

    sent: int
    hops_arrived: int
    hops_lost: int
    whole: int
    """Packets of which every record arrived."""
    exact: int
    """Of these, told as one path that holds all of its records and no other."""
    wrong_joins: int
    """Paths that hold records of two packets."""

    @property
    def exact_ratio(self) -> float:
        """Of the whole ones."""
        return self.exact / self.whole if self.whole else 0.0


def serials(hops: np.ndarray) -> np.ndarray:
    """Of each hop record the number with which its packet's payload begins."""
    data = hops["packet"][:, SERIAL_AT : SERIAL_AT + 4]
    return np.ascontiguousarray(data).view(">u4").ravel()


def seen(hops: np.ndarray) -> np.ndarray:
    """Those that hold bytes of the packet: a routing decision only tells whom it was about."""
    return hops[hops["hop"] != layout().enums["hop"].HOP_ROUTE]


def record(directory: Path, packets: int) -> tuple[Path, int]:
    """Trace `packets` or more at full speed; returns the recording and how many were sent."""
    path, program, sent = directory / "recording", compile_blast(directory), 0
    found = next(tool for tool in tools(directory) if tool.name == "trace-all")
    words = ("--summary", "--record", str(path), "udp", "and", "dst", "port", "9")
    with running(Tool(found.name, (*found.argv, *words), found.ready), directory):
        while sent < packets:
            sent += blast(program, "udp", BLAST_MILLISECONDS).units + 1
            time.sleep(SETTLE_S)  # serials begin anew: let the ones before be told
    return path, sent


def judge(path: Path, sent: int) -> Accuracy:
    """Put the recorded hops together as `tracer show` would, blast by blast."""
    parts = list(Recording(path))
    batches = [part.events for part in parts if isinstance(part, Batch) and part.kind == "hops"]
    lost = sum(part.count for part in parts if isinstance(part, Loss))
    hops = np.concatenate(batches)
    pause_ns = np.diff(hops["time_ns"].astype(np.int64)) > SETTLE_S / 2 * 1e9
    whole = exact = wrong = 0
    for blasted in np.split(hops, np.flatnonzero(pause_ns) + 1):
        figures = _judge_one(blasted)
        whole, exact, wrong = (a + b for a, b in zip((whole, exact, wrong), figures, strict=True))
    return Accuracy(sent, len(hops), lost, whole, exact, wrong)


def _judge_one(hops: np.ndarray) -> tuple[int, int, int]:
    """Packets that are whole, those of them told exactly, paths of more than one packet."""
    assembler = Assembler()
    assembler.add(hops, np.empty(0, layout().structs["drop_event"]))
    paths = assembler.take(int(hops["time_ns"].max()), everything=True)
    numbers, counts = np.unique(serials(seen(hops)), return_counts=True)
    full = np.bincount(counts).argmax()  # what most packets have: nothing of it was lost
    whole = {int(number) for number in numbers[counts == full]}
    exact = wrong = 0
    for path in paths:
        found = serials(seen(path.rows))
        wrong += len(np.unique(found)) > 1
        exact += len(found) == full and (found == found[0]).all() and int(found[0]) in whole
    return len(whole), exact, wrong


def main() -> int:
    """Measure, print, and compare with the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packets", type=int, default=PACKETS, help=f"send so many ({PACKETS})")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, two_pods():
        found = judge(*record(Path(directory), arguments.packets))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(found)))
    print(
        f"{found.sent} packets sent; hop records: {found.hops_arrived} arrived, "
        f"{found.hops_lost} lost\n"
        f"packets whose records all arrived: {found.whole}\n"
        f"of these put together exactly: {found.exact} ({found.exact_ratio:.4%})\n"
        f"paths of more than one packet: {found.wrong_joins}"
    )
    missed = found.exact_ratio < EXACT_BAR or found.wrong_joins > 0
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
