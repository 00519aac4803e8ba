"""Writers that get killed: forks of one process, so that a hundred of them cost seconds.

    flow_writer.py FORMAT PATH KILLS [POLICY…]

FORMAT is one of those of flows, or pcapng. Each fork opens the files, writes batches of numbered
records as fast as it can and tells, after each, how many the sink has taken; after a moment it is
killed. One line of JSON for each: the number that names its records, and how many it had written
for sure.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tracer.flow_table import Column, coded, constant, table
from tracer.model import Frame
from tracer.sinks.flow_files import Request, open_flows, usual
from tracer.sinks.pcapng import CAPTURE, Pcapng

ROWS = 120
EACH = 1_000_000
"""Numbers of one fork's records begin at a multiple of this."""
MOMENTS_S = (0.0, 0.04)


def numbered(first, rows=ROWS):
    """Records whose `packets` are `first`, `first` + 1, …, of very different lengths."""
    numbers = np.arange(first, first + rows)
    times = Column(1_795_000_000_000_000_000 + numbers)
    return table(
        rows,
        {
            "type": constant("flow", rows),
            "time": times,
            "end_time": times,
            "verdict": constant("forwarded", rows),
            "k8s.node.name": constant("n1", rows),
            "k8s.pod.name": coded(f"p{'x' * (number * 7 % 60)}" for number in numbers.tolist()),
            "tcp.flags": constant("SYN,ACK", rows),
            "packets": Column(numbers.astype(np.uint64)),
        },
    )


def policy_of(form, words):
    """`max_bytes=1000 compress=gzip` → a Policy."""
    pairs = dict(word.split("=") for word in words)
    given = {name: int(value) if value.isdigit() else value for name, value in pairs.items()}
    usually = CAPTURE if form == "pcapng" else usual(form)
    return replace(usually, max_backups=None, **given)


def frames(first, rows=ROWS):
    """Packets of very different lengths, at `first` ns, `first` + 1 ns, …."""
    return [
        Frame((1, 2), "eth0", "pod", number, bytes(number * 7 % 300), 1500, f"packet {number}")
        for number in range(first, first + rows)
    ]


def opened(request, first):
    if request.format != "pcapng":
        return open_flows(request, lambda _: None)
    # A capture that does not rotate cannot be gone on with: each writer has its own.
    own = request.path.with_name(f"{first}.pcapng")
    path = request.path if request.policy.rotates else own
    return Pcapng(path, request.policy)


def write_forever(request, first, told):
    sink = opened(request, first)
    made = frames if request.format == "pcapng" else numbered
    written = 0
    while True:
        sink.write(made(first + written))
        written += ROWS
        os.write(told, b"%d\n" % written)


def killed(request, first, moment_s):
    """How many records a writer had written for sure when it was killed."""
    read, write = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(read)
        try:
            write_forever(request, first, write)
        finally:
            os._exit(1)
    os.close(write)
    head = os.read(read, 1 << 16)  # its first batch
    time.sleep(moment_s)
    os.kill(writer, signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    assert os.WIFSIGNALED(status), "the writer ended by itself"
    while part := os.read(read, 1 << 16):
        head = head[-40:] + part
    os.close(read)
    return int(head.split()[-1])


def main():
    form, path, kills, *words = sys.argv[1:]
    request = Request(form, Path(path), (), policy_of(form, words), "n1")
    if form == "parquet":
        import tracer.sinks.parquet  # noqa: F401, PLC0415 - once, not in each fork
    random.seed(form)
    for index in range(int(kills)):
        written = killed(request, index * EACH, random.uniform(*MOMENTS_S))  # noqa: S311 - no secret
        print(json.dumps([index, written]), flush=True)
        sys.stdin.readline()  # whoever reads the files meanwhile says when to go on
    if request.policy.rotates:
        opened(request, 0).close()


if __name__ == "__main__":
    main()
