"""Hop records a second to a recording and back, on one core, and what else they could be packed by.

    benchmarks/recording.py [RECORDING]

Without a recording (of `tracer trace --record`), hops are made up: packets of 24 hops with
their own headers, signatures and times. Figures are of CPU time, the disk's writes included,
and medians of ROUNDS; the bar is 1 M/s, and bcc's callback path brings 0.6 M/s to Python at best.
"""

from __future__ import annotations

import json
import lzma
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from tracer.layout import layout
from tracer.model import Node
from tracer.recording import Batch, Recorder, Recording
from tracer.recording.columns import pack

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 7
BATCHES = (50, 500, 4096, 50_000)
"""Hops a batch: an idle node's, …, a full ring's."""
BAR = 1_000_000
CALLBACK = 600_000
"""Records a second by bcc's callback with an empty handler, measured."""
HOPS = 24
KERNEL = np.uint64(0xFFFF888000000000)


def made_up(packets: int = 6000) -> np.ndarray:
    """UDP packets, each seen HOPS times: what differs by packet, by hop and always does so here."""
    rng = np.random.default_rng(1)
    rows = np.zeros(packets * HOPS, layout().structs["hop_event"])
    each = np.repeat(np.arange(packets), HOPS)
    hop = np.tile(np.arange(HOPS), packets)
    rows["time_ns"] = np.cumsum(rng.integers(100, 4000, len(rows)))
    rows["packet_id"] = (each + 1) << 12
    rows["skb"] = KERNEL + rng.integers(0, 64, packets, np.uint64)[each] * 256
    rows["head"] = KERNEL + rng.integers(0, 512, packets, np.uint64)[each] * 1024
    rows["netns"] = 4026531833 + hop // 8
    rows["ifindex"] = 2 + hop // 4
    rows["bytes"] = rng.integers(28, 1500, packets)[each]
    rows["signature"] = rng.integers(0, 2**32, packets)[each]
    rows["hop"] = 1 + hop % 12
    rows["nf_family"], rows["nf_hook"] = 2 * (hop % 2), hop % 5
    rows["captured_bytes"] = rows["packet"].shape[1]
    rows["tuple"]["sport"] = rng.integers(30000, 60000, packets)[each]
    rows["tuple"]["saddr"][:, 10:] = (255, 255, 10, 244, 0, 5)
    rows["packet"] = rng.integers(0, 256, (packets, 16), np.uint8)[each].repeat(8, axis=1)[
        :, : rows["packet"].shape[1]
    ]
    return rows


def recorded(path: Path) -> np.ndarray:
    """All hops of a recording."""
    batches = [one.events for one in Recording(path) if isinstance(one, Batch)]
    hops = [events for events in batches if "hop" in (events.dtype.names or ())]
    return np.concatenate(hops)


def per_second(work: Callable[[], object], count: int) -> float:
    """Median of ROUNDS: `count` by the CPU time that `work` takes."""
    speeds = []
    for _ in range(ROUNDS):
        start_s = time.process_time()
        work()
        speeds.append(count / (time.process_time() - start_s))
    return float(np.median(speeds))


def write(hops: np.ndarray, path: Path, batch: int) -> None:
    """Record `hops` in batches."""
    recorder = Recorder(path, {"command": "trace"})
    recorder.context(Node("n1", 1), {}, {}, 0)
    for at in range(0, len(hops), batch):
        recorder.write("hops", hops[at : at + batch])
    recorder.close()


def compare_codecs(hops: np.ndarray, batch: int = 4096) -> dict[str, dict[str, float]]:
    """Bytes a record and records a second of each way to pack the same batches."""
    shapes: dict[str, Callable[[np.ndarray], bytes]] = {"rows": np.ndarray.tobytes, "xor": pack}
    codecs: dict[str, Callable[[bytes], bytes]] = {
        "zstd 1": zstandard.ZstdCompressor(level=1).compress,
        "zstd 3": zstandard.ZstdCompressor(level=3).compress,
        "zlib 1": lambda raw: zlib.compress(raw, 1),
        "lzma 0": lambda raw: lzma.compress(raw, preset=0),
    }
    some = hops[: 4 * batch]
    parts = [some[at : at + batch] for at in range(0, len(some), batch)]
    table = {}
    for shape, shaped in shapes.items():
        for codec, packed in codecs.items():
            start_s = time.process_time()
            size = sum(len(packed(shaped(part))) for part in parts)
            took_s = time.process_time() - start_s
            table[f"{shape}, {codec}"] = {"bytes": size / len(some), "per_s": len(some) / took_s}
    return table


def main() -> int:
    """Print a JSON object; 1 when a batch size of 500 or more misses the bar."""
    hops = recorded(Path(sys.argv[1])) if sys.argv[1:] else made_up()
    result: dict[str, object] = {"hops": len(hops), "bytes_each": hops.dtype.itemsize}
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in BATCHES:
            path = Path(folder) / "recording"
            speed = per_second(lambda b=batch, p=path: write(hops, p, b), len(hops))
            result[f"batches of {batch}"] = {
                "written_per_s": round(speed),
                "times_callback": round(speed / CALLBACK, 1),
                "read_per_s": round(per_second(lambda p=path: list(Recording(p)), len(hops))),
                "file_bytes_each": round(path.stat().st_size / len(hops), 2),
            }
            if batch >= 500 and speed < BAR:  # noqa: PLR2004 - smaller ones come when idle
                missed.append(f"batches of {batch}: {speed:.0f}/s is under {BAR}")
    result["codecs"] = {
        name: {key: round(value, 2) for key, value in row.items()}
        for name, row in compare_codecs(hops).items()
    }
    print(json.dumps(result, indent=2))
    print("\n".join(missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
