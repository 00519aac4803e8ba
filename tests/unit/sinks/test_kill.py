"""Writers killed at any moment: no reader ever sees half a line or file, and nothing is lost."""

import collections
import csv
import gzip
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import flow_writer
import pyarrow.parquet as pq
import pytest
import zstandard

from tracer.sinks.pcapng import MAGIC

HERE = Path(__file__).parent
KILLS = 25
"""For each of five formats, one of them twice: more than a hundred."""
PACKET_BLOCK = 6
_OPENERS = {".gz": gzip.open, ".zst": zstandard.open}


def text_of(path):
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        return file.read().decode()


def whole_lines(text):
    assert text == "" or text.endswith("\n"), f"half a line: {text[-200:]!r}"
    return text.split("\n")[:-1]


def read_flat(path):
    return [json.loads(line)["packets"] for line in whole_lines(text_of(path))]


def read_hubble(path):
    flows = [json.loads(line)["flow"] for line in whole_lines(text_of(path))]
    return [flow["extensions"]["value"]["packets"] for flow in flows]


def read_csv(path):
    text = text_of(path)
    assert text.endswith("\r\n"), f"half a line: {text[-200:]!r}"
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert all(None not in row and None not in row.values() for row in rows)
    return [int(row["packets"]) for row in rows]


def read_vpc(path):
    head, *lines = whole_lines(text_of(path))
    assert head.startswith("version account-id")
    assert all(len(line.split(" ")) == 14 for line in lines)
    return [int(line.split(" ")[8]) for line in lines]


def read_parquet(path):
    return pq.read_table(path, partitioning=None).column("packets").to_pylist()


def read_pcapng(path):
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        content, at, found = file.read(), 0, []
    assert content.startswith(MAGIC), "no section header"
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        assert content[at + size - 4 : at + size] == struct.pack("<I", size), "half a block"
        if kind == PACKET_BLOCK:
            high, low = struct.unpack_from("<II", content, at + 12)
            found.append(high << 32 | low)
        at += size
    return found


def files_of(form, path):
    """What a reader of `path` finds."""
    if form == "parquet":
        return sorted(path.glob("date=*/hour=*/*.parquet"))
    return [one for one in path.parent.iterdir() if not one.name.startswith(".")]


def numbers(form, path, known):
    """Of every record, by the writer that wrote it; `known` has those of files as they were."""
    found = collections.defaultdict(list)
    for file in files_of(form, path):
        state = file, file.stat().st_size, file.stat().st_mtime_ns
        if state not in known:
            known[state] = globals()[f"read_{form}"](file)
        for number in known[state]:
            writer, record = divmod(number, flow_writer.EACH)
            found[writer].append(record)
    return found


@pytest.mark.parametrize(
    ("form", "policy"),
    [
        ("flat", ["max_bytes=300000", "compress=zstd"]),
        ("csv", ["max_bytes=100000", "compress=gzip"]),
        ("parquet", ["max_bytes=200000"]),
        ("hubble", ["max_bytes=400000"]),
        ("pcapng", []),
        ("pcapng", ["max_bytes=300000", "compress=gzip"]),
    ],
)
def test_killed_under_load(tmp_path, form, policy):
    """After each kill what a reader sees is whole; at the end all that was taken is there, once."""
    path = tmp_path / "out" / "flows"
    path.parent.mkdir()
    written, known = {}, {}
    command = [sys.executable, str(HERE / "flow_writer.py"), form, str(path), str(KILLS), *policy]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zygote:
        for line in zygote.stdout:
            writer, count = json.loads(line)
            written[writer] = count
            numbers(form, path, known)
            zygote.stdin.write(b"\n")
            zygote.stdin.flush()
    assert zygote.returncode == 0
    assert len(written) == KILLS
    found = numbers(form, path, known)
    assert len(files_of(form, path)) > 1
    for writer, count in written.items():
        records = sorted(found[writer])
        assert records == list(range(len(records))), f"writer {writer}: lost or told twice"
        assert len(records) >= count
    assert not list(path.parent.glob("**/.*")), "something is left"
