"""Flow tables in every format, read back by other readers; rotation, budgets, full disks."""

import csv
import gzip
import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import flow_writer
import hubble_schema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from disks import small_disk
from flow_tables import table_of
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import TracerError
from tracer.flow_table import (
    BOOL,
    COLUMNS,
    FIELDS,
    TEXT,
    TIME,
    Column,
    coded,
    concat,
    records,
    table,
    take,
)
from tracer.sinks import flow_json, hubble, line_file, parquet
from tracer.sinks.backlog import Backlog, Piece
from tracer.sinks.flow_files import FORMATS, Request, open_flows, usual
from tracer.sinks.json_lines import encoded
from tracer.sinks.rotation import Policy, backups

BEGIN_NS = 1_795_385_378_123_456_789
"""2026-11-22T21:16:18, just before an hour ends for some of the rows below."""
ROWS = 1001


def everything(rows=ROWS):
    """A table with every column, in which each field is known in some rows only."""
    rng = np.random.default_rng(3)
    columns = {}
    for field in COLUMNS:
        held = rng.random(rows) < 0.7
        if field.kind == TEXT:
            words = rng.integers(0, 50, rows)
            texts = [f'w{word},"{word}"' if known else None
                     for word, known in zip(words, held, strict=True)]  # fmt: skip
            columns[field.name] = coded(texts)
        elif field.kind == TIME:
            columns[field.name] = Column(BEGIN_NS + np.arange(rows) * 5_000_000_000)
        elif field.kind == BOOL:
            columns[field.name] = Column(held, None, held)
        else:
            most = np.iinfo(field.kind).max
            values = rng.integers(0, most, rows, np.uint64, endpoint=True).astype(field.kind)
            columns[field.name] = Column(values, None, held)
    columns["type"] = coded(["flow"] * rows)
    columns["verdict"] = coded(["forwarded", "dropped"] * (rows // 2) + ["dropped"])
    columns["tcp.flags"] = coded(["SYN,ACK"] * rows)
    return table(rows, columns)


def written(tmp_path, form, whole, **request):
    """The path of what a sink has written of `whole`."""
    path = tmp_path / form
    sink = open_flows(Request(form, path, node="n1", **request), print)
    sink.write(whole)
    sink.lost("drop_events", 3)
    sink.close()
    return path


def parquet_files(path):
    return sorted(path.glob("date=*/hour=*/*.parquet"))


def test_rows_of_tables_cut_and_joined_stay_the_same():
    whole = everything()
    rows = records(whole)
    parts = [take(whole, slice(0, 7)), take(whole, np.arange(ROWS) >= 7)]
    assert records(concat(parts)) == rows
    assert records(take(whole, slice(0, 0))) == []
    assert any(len(row) < len(FIELDS) for row in rows)
    assert all(None not in row.values() and "" not in row.values() for row in rows)


def test_flat(tmp_path):
    whole = everything()
    *told, lost = map(json.loads, written(tmp_path, "flat", whole).read_text().splitlines())
    assert told == records(whole)
    assert list(told[0]) == [name for name in FIELDS if name in told[0]]
    assert (lost["type"], lost["source"], lost["count"]) == ("lost", "drop_events", 3)
    assert lost["k8s.node.name"] == "n1"


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_flat_is_what_jq_reads(tmp_path):
    path = written(tmp_path, "flat", everything())
    sums = subprocess.run(
        ["jq", "-s", "map(.packets // 0 | . % 1000) | length", str(path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(sums.stdout) == ROWS + 1


def test_csv_by_a_strict_reader(tmp_path):
    whole = everything()
    raw = written(tmp_path, "csv", whole).read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n") == ROWS + 2
    head, *rows = csv.reader(raw.decode().splitlines(keepends=True), strict=True)
    assert head == list(FIELDS)
    assert {len(row) for row in rows} == {len(FIELDS)}
    for row, record in zip(rows, records(whole), strict=False):
        told = {name: text for name, text in zip(head, row, strict=True) if text}
        assert told == {name: str(v).replace("True", "true") for name, v in record.items()}


def test_parquet_by_pyarrow(tmp_path):
    whole = everything()
    path = written(tmp_path, "parquet", whole)
    files = parquet_files(path)
    assert len(files) > 1, "the rows span several hours"
    told = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    kinds = {TIME: pa.timestamp("ns", tz="UTC"), BOOL: pa.bool_()}
    for field in COLUMNS:
        kind = told.schema.field(field.name).type
        if field.kind == TEXT:
            assert pa.types.is_dictionary(kind)
        else:
            wanted = kinds.get(field.kind) or pa.from_numpy_dtype(np.dtype(field.kind))
            assert kind == wanted
    assert told.schema.metadata[b"tracer.schema_version"] == b"1"
    assert pq.ParquetFile(files[0]).metadata.row_group(0).column(0).compression == "ZSTD"
    flows = told.filter(pa.compute.equal(told["type"].cast(pa.string()), "flow")).sort_by("time")
    for name in FIELDS:
        values = flows[name].cast(pa.int64()) if FIELDS[name].kind == TIME else flows[name]
        column = whole.columns.get(name)
        if column is None:
            assert values.null_count == ROWS
            continue
        cells = [column.words[v] for v in column.values] if column.words else column.values.tolist()
        held = column.present.tolist()
        assert values.to_pylist() == [
            cell if there else None for cell, there in zip(cells, held, strict=True)
        ], name


def test_parquet_by_duckdb(tmp_path):
    whole = everything()
    path = written(tmp_path, "parquet", whole)
    query = """
        select count(*), sum("dst.port"), min(epoch_ns("time")), max(hour), count("k8s.pod.name")
        from read_parquet(?, hive_partitioning = true, hive_types = {'hour': bigint})
        where type = 'flow'
    """
    found = duckdb.execute(query, [f"{path}/**/*.parquet"]).fetchone()
    rows, ports, first_ns, hour, pods = found
    told = records(whole)
    assert (rows, first_ns) == (ROWS, BEGIN_NS)
    assert ports == sum(row.get("dst.port", 0) for row in told)
    assert pods == sum("k8s.pod.name" in row for row in told)
    assert hour in (22, 23)


def test_csv_by_duckdb(tmp_path):
    path = written(tmp_path, "csv", everything())
    query = "select count(*) from read_csv(?, header = true)"
    (rows,) = duckdb.execute(query, [str(path)]).fetchone()
    assert rows == ROWS + 1


def test_vpc_lines(tmp_path):
    columns = {
        "type": coded(["flow"]),
        "time": Column(np.array([1_700_000_000_900_000_000])),
        "end_time": Column(np.array([1_700_000_003_000_000_000])),
        "verdict": coded(["dropped"]),
        "k8s.pod.namespace": coded(["shop"]),
        "k8s.pod.name": coded(["web-0"]),
        "transport": coded(["tcp"]),
        "network.iana_number": Column(np.array([6], np.uint8)),
        "src.address": coded(["10.1.0.2"]),
        "dst.address": coded(["10.1.0.3"]),
        "src.port": Column(np.array([4000], np.uint16)),
        "dst.port": Column(np.array([80], np.uint16)),
        "packets": Column(np.array([7], np.uint64)),
        "bytes": Column(np.array([700], np.uint64)),
    }
    head, flow, lost = written(tmp_path, "vpc", table(1, columns)).read_text().splitlines()
    assert head.split()[:4] == ["version", "account-id", "interface-id", "srcaddr"]
    assert flow == (
        "2 - shop/web-0 10.1.0.2 10.1.0.3 4000 80 6 7 700 1700000000 1700000003 REJECT OK"
    )
    assert lost.split()[-1] == "SKIPDATA"
    assert len(lost.split()) == len(head.split())


def test_vpc_lines_of_both_directions(tmp_path):
    rows = [
        {
            "type": "flow", "time": 0, "end_time": 0, "verdict": "forwarded", "transport": "udp",
            "network.iana_number": 17, "src.address": "10.1.0.2", "dst.address": "10.1.0.3",
            "src.port": 4000, "dst.port": 53, "packets": there, "bytes": 10 * there,
            "flow.reverse.packets": back, "flow.reverse.bytes": 20 * back,
        }
        for there, back in ((7, 5), (7, 0), (0, 5))
    ]  # fmt: skip
    lines = written(tmp_path, "vpc", table_of(*rows)).read_text().splitlines()[1:-1]
    asked, answered = (
        "2 - - 10.1.0.2 10.1.0.3 4000 53 17 7 70 0 0 ACCEPT OK",
        "2 - - 10.1.0.3 10.1.0.2 53 4000 17 5 100 0 0 ACCEPT OK",
    )
    assert lines == [asked, answered, asked, answered]


def test_hubble_by_a_strict_reader_of_its_schema(tmp_path):
    whole = everything()
    lines = written(tmp_path, "hubble", whole).read_text().splitlines()
    events = [hubble_schema.read(line) for line in lines]
    assert events[-1].lost_events.num_events_lost == 3
    for event, record in zip(events[:-1], records(whole), strict=True):
        assert event.flow.source.pod_name == record.get("k8s.src.pod.name", "")
        assert event.flow.time.ToNanoseconds() == event.time.ToNanoseconds() > BEGIN_NS - 1
        told = json_format.MessageToDict(event.flow.extensions)["value"]
        assert told.get("packets") == pytest.approx(record.get("packets"))


def test_the_strict_reader_is_strict():
    for line in ('{"flow":{"verdict":"LOST"}}', '{"flow":{"bytes":1}}', '{"flow":{"uuid":5}}'):
        with pytest.raises(json_format.ParseError):
            hubble_schema.read(line)


def test_hubble_lines_and_field_mask(tmp_path):
    mask = ("time", "verdict", "l4.TCP.flags", "extensions")
    lines = written(tmp_path, "hubble", everything(), fields=mask).read_text().splitlines()
    assert len(lines) == ROWS + 1
    for line in lines[:-1]:
        flow = json.loads(line)["flow"]
        assert flow.keys() <= {"time", "verdict", "l4", "extensions"}
        assert flow.get("l4", {}).keys() <= {"TCP"}
    assert json.loads(lines[-1])["lost_events"]["num_events_lost"] == "3"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("source.podname", "did you mean source.pod_name?"),
        ("packets", "known: "),
        ("l4.TCP.flags.SIN", "l4.TCP.flags.SYN"),
        # What is in a repeated field or an Any cannot be masked.
        ("source.workloads.name", "source.workloads"),
        ("extensions.value", "extensions"),
    ],
)
def test_what_hubble_has_no_field_for_is_told(tmp_path, name, hint):
    with pytest.raises(TracerError, match="no field of Hubble's flow") as caught:
        written(tmp_path / "x", "hubble", everything(1), fields=("time", name))
    assert hint in caught.value.hint


def test_a_mask_of_every_field_masks_nothing(tmp_path):
    """The names that are known are all of those that are filled."""
    finest = tuple(
        name
        for name in hubble.FIELDS
        if not any(one.startswith(f"{name}.") for one in hubble.FIELDS)
    )
    rows = everything()
    likely = {
        "network.type": coded([("ipv4", "ipv6")[row % 2] for row in range(ROWS)]),
        "transport": coded([("tcp", "icmp", "icmpv6")[row % 3] for row in range(ROWS)]),
    }
    whole = replace(rows, columns={**rows.columns, **likely})
    (tmp_path / "masked").mkdir()
    paths = (
        written(tmp_path, "hubble", whole),
        written(tmp_path / "masked", "hubble", whole, fields=finest),
    )
    plain, masked = ([*map(json.loads, path.read_text().splitlines()[:-1])] for path in paths)
    assert masked == plain


def test_hubble_of_sums_that_know_one_end_only(tmp_path):
    """--aggregate leaves ports without the other one, types without a code, lone addresses."""
    rows = [
        {"transport": "udp", "network.type": "ipv4", "src.address": "10.0.0.1", "dst.port": 53},
        {"transport": "icmp", "network.type": "ipv4", "icmp.type": 8},
        {"transport": "tcp", "network.type": "ipv6", "dst.address": "fd00::1", "src.port": 5},
    ]
    usual = {"type": "flow", "verdict": "forwarded", "direction": "egress", "packets": 1}
    times = {"time": BEGIN_NS, "end_time": BEGIN_NS}
    path = written(tmp_path, "hubble", table_of(*({**usual, **times, **row} for row in rows)))
    flows = [hubble_schema.read(line).flow for line in path.read_text().splitlines()[:-1]]
    assert (flows[0].IP.source, flows[0].IP.destination) == ("10.0.0.1", "")
    assert (flows[0].l4.UDP.source_port, flows[0].l4.UDP.destination_port) == (0, 53)
    assert (flows[1].l4.ICMPv4.type, flows[1].l4.ICMPv4.code) == (8, 0)
    assert (flows[2].IP.destination, flows[2].l4.TCP.source_port) == ("fd00::1", 5)


@pytest.mark.parametrize("form", ["flat", "csv", "parquet"])
def test_field_mask(tmp_path, form):
    path = written(tmp_path, form, everything(), fields=("k8s.src", "packets"))
    if form == "flat":
        names = {name for line in path.read_text().splitlines() for name in json.loads(line)}
    elif form == "csv":
        names = set(path.read_text().splitlines()[0].split(","))
    else:
        names = set(pq.read_schema(parquet_files(path)[0]).names)
    assert {"packets", "k8s.src.namespace", "k8s.src.pod.name", "type"} <= names
    assert not names & {"bytes", "k8s.dst.pod.name", "k8s.pod.name"}


def test_an_unknown_field_is_told(tmp_path):
    with pytest.raises(TracerError, match="--fields 'packet': no such field"):
        written(tmp_path, "csv", everything(1), fields=("packet",))
    with pytest.raises(TracerError, match="fixed"):
        written(tmp_path, "vpc", everything(1), fields=("packets",))


def ends_of(chunks, at):
    """Where in the file each line ends."""
    data = np.frombuffer(b"".join(bytes(chunk.data) for chunk in chunks), np.uint8)
    return (at + 1 + np.flatnonzero(data == ord("\n"))).tolist()


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.integers(2, line_file.PAGE_BYTES), max_size=60),
    st.integers(0, 3 * line_file.PAGE_BYTES),
    st.sampled_from((1, line_file.PAGE_BYTES, 3 * line_file.PAGE_BYTES)),
)
def test_no_line_crosses_the_end_of_a_page(lengths, at, most_bytes):
    lines = [b"{" + b"x" * (length - 2) + b"\n" for length in lengths]
    chunks = list(line_file.paged(lines, at, most_bytes))
    ends = ends_of(chunks, at)
    for begin, end in list(zip([at, *ends], ends, strict=False))[1:]:
        # Only the first line may have found a page with less room than it needs.
        assert begin // line_file.PAGE_BYTES == (end - 1) // line_file.PAGE_BYTES
    assert all(chunk.data.endswith(b"\n") for chunk in chunks)
    for chunk in chunks[:-1]:
        at += len(chunk.data)
        assert at % line_file.PAGE_BYTES == 0
        assert len(chunk.data) < most_bytes + 2 * line_file.PAGE_BYTES
    joined = b"".join(bytes(chunk.data) for chunk in chunks)
    assert [line.rstrip(b" ") for line in joined.split(b"\n")[:-1]] == [one[:-1] for one in lines]
    assert sum(chunk.lines for chunk in chunks) == len(lines)
    room = -ends[-1] % line_file.PAGE_BYTES if lines else 0
    assert room == 0 or room >= line_file.ROOM_BYTES


@pytest.mark.parametrize("rows", [1, 7, ROWS])
def test_lines_made_by_columns_are_those_made_by_rows(rows):
    odd = ["flow", *('wö"rd', "a,b", "\\", "\n")[: rows - 1]]
    told = everything(rows)
    columns = {
        **told.columns,
        "type": coded(["flow"] * rows),
        "dst.dns.name": coded([odd[at % len(odd)] for at in range(rows)]),
        "flow.id": Column(np.arange(rows, dtype=np.uint64) + np.uint64(2**64 - rows)),
    }
    told = table(rows, columns)
    assert flow_json.FlowLines().lines(told) == encoded(records(told))
    assert flow_json.FlowLines().lines(take(told, slice(0, 0))) == []


@pytest.mark.parametrize(("compress", "suffix"), [("gzip", ".gz"), ("zstd", ".zst"), ("none", "")])
def test_rotation_keeps_backups_and_compresses_them_one_generation_later(
    tmp_path, compress, suffix
):
    policy = Policy(max_bytes=20_000, max_backups=3, compress=compress)
    said = []
    sink = open_flows(Request("flat", tmp_path / "flows.jsonl", policy=policy), said.append)
    for index in range(20):
        sink.write(flow_writer.numbered(index * 100, 100))
    sink.close()
    kept = backups(tmp_path / "flows.jsonl")
    assert len(kept) == 3
    assert kept[-1].suffix == ".jsonl"
    openers = {".gz": gzip.open, ".zst": zstandard.open, "": open}
    assert all(one.name.endswith(f".jsonl{suffix}") for one in kept[:-1])
    numbers = []
    for one in [*kept, tmp_path / "flows.jsonl"]:
        assert one.suffix != ".jsonl" or one.stat().st_size <= 20_000
        opener = openers[suffix] if one.suffix == suffix else open
        with opener(one, "rb") as file:
            numbers += [json.loads(line)["packets"] for line in file.read().splitlines()]
    assert numbers == list(range(numbers[0], 2000))
    assert said == [f"{tmp_path}/flows.jsonl: old backups are removed from now on"]


@pytest.mark.parametrize("rows", [90, 100, 120])
@pytest.mark.parametrize("form", ["flat", "csv", "parquet"])
def test_the_disk_budget_holds(tmp_path, form, rows):
    policy = replace(usual(form), max_bytes=30_000, max_backups=None, budget_bytes=90_000)
    sink = open_flows(Request(form, tmp_path / "flows", policy=policy), lambda _: None)
    most = 0
    for index in range(60):
        sink.write(flow_writer.numbered(index * rows, rows))
        found = [one.stat().st_size for one in tmp_path.rglob("*") if one.is_file()]
        most = max(most, sum(found))
    sink.close()
    assert 30_000 < most <= 90_000 + 30_000 * (form == "parquet")


HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize("name", ["flows.jsonl", "flows"])
@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_a_clock_that_was_set_back_does_not_cost_the_newest_backups(
    tmp_path, monkeypatch, name, compress
):
    """Nor one that goes an hour forward first; each record that is left is newer than the rest."""
    path, now_ns = tmp_path / name, BEGIN_NS
    monkeypatch.setattr(line_file.time, "time_ns", lambda: now_ns)
    policy = Policy(max_bytes=20_000, max_backups=4, compress=compress)
    for run in range(3):  # what an earlier run left has been named in another time, too
        sink = open_flows(Request("flat", path, policy=policy), lambda _: None)
        for index in range(10):
            now_ns += (HOUR_NS, -5 * HOUR_NS, 0)[index % 3]
            sink.write(flow_writer.numbered((10 * run + index) * 100, 100))
        sink.close()
    kept = backups(path)
    assert len(kept) == 4
    assert len(list(tmp_path.iterdir())) == 5
    openers = {".gz": gzip.open, ".zst": zstandard.open}
    numbers = []
    for one in [*kept, path]:
        with openers.get(one.suffix, open)(one, "rb") as file:
            numbers += [json.loads(line)["packets"] for line in file.read().splitlines()]
    assert numbers == list(range(numbers[0], 3000))
    packed = [one.suffix in openers for one in kept]
    assert packed == [compress != "none"] * 3 + [False]


def test_parquet_of_a_clock_that_was_set_back(tmp_path, monkeypatch):
    """Its hours are those of before, but its files are the newest."""

    class Clock(datetime):
        hours = 0

        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(BEGIN_NS / 1e9, tz) + timedelta(hours=cls.hours)

    monkeypatch.setattr(parquet, "datetime", Clock)
    policy = replace(usual("parquet"), max_backups=3)
    for number, hours in enumerate((0, 2, -30, -29, 1, 1)):
        Clock.hours = hours
        sink = open_flows(Request("parquet", tmp_path, policy=policy, node="n1"), lambda _: None)
        times = Column(np.array([BEGIN_NS + hours * HOUR_NS]))
        packets = Column(np.array([number], np.uint64))
        sink.write(table(1, {"type": coded(["flow"]), "time": times, "packets": packets}))
        sink.close()
    kept = [pq.read_table(one, partitioning=None)["packets"][0].as_py()
            for one in parquet_files(tmp_path)]  # fmt: skip
    assert sorted(kept) == [3, 4, 5]


def test_what_only_looks_like_a_backup_is_left_alone(tmp_path):
    """Files of others beside it: another stem, another suffix, other names."""
    stamp = "2026-11-22T21-40-00.123456"
    theirs = {f"flows-{stamp}.csv", f"flows-{stamp}.gz", "flows-2026-11-22Today.jsonl", "flows-a"}
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    policy = Policy(max_bytes=20_000, max_backups=1, compress="gzip")
    sink = open_flows(Request("flat", tmp_path / "flows.jsonl", policy=policy), lambda _: None)
    for index in range(10):
        sink.write(flow_writer.numbered(index * 100, 100))
    sink.close()
    assert {one.name for one in tmp_path.iterdir() if one.read_bytes() == b"theirs"} == theirs


def test_rotation_by_age_and_on_request(tmp_path):
    policy = Policy(max_age_s=0.001)
    path = tmp_path / "flows.csv"
    sink = open_flows(Request("csv", path, policy=policy), print)
    sink.write(flow_writer.numbered(0))
    assert not path.exists(), "it is seen when it is whole"
    time.sleep(0.01)
    sink.tick()
    assert path.exists()
    sink.write(flow_writer.numbered(1000))
    sink.reopen()
    assert len(backups(path)) == 1
    sink.close()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("fsync", ["never", "rotate", "batch"])
def test_the_disk_is_waited_for_as_asked(tmp_path, monkeypatch, form, fsync):
    """Whatever way the path is written, and with a rotation between two batches."""
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "whole" / form, Path("part") / form):
        path.parent.mkdir()
        waited.clear()
        sink = open_flows(Request(form, path, policy=Policy(fsync=fsync)), print)
        sink.lost("drop_events", 3)
        after_a_batch = len(waited)
        sink.reopen()
        after_a_file = len(waited)
        sink.close()
        assert (after_a_batch > 0) == (fsync == "batch")
        assert (after_a_file > after_a_batch) == (fsync != "never")


def test_reopened_after_somebody_moved_it(tmp_path):
    path = tmp_path / "flows.jsonl"
    sink = open_flows(Request("flat", path), print)
    sink.write(flow_writer.numbered(0))
    path.rename(tmp_path / "moved")
    sink.write(flow_writer.numbered(1000))
    sink.reopen()
    sink.write(flow_writer.numbered(2000))
    sink.close()
    assert len((tmp_path / "moved").read_text().splitlines()) == 2 * flow_writer.ROWS
    assert len(path.read_text().splitlines()) == flow_writer.ROWS


@pytest.mark.parametrize(
    "left", ["", "type,packets", "type,packets\r\n", "type,packets\r\nflow,7\r\n"]
)
def test_a_killed_run_of_other_fields_left_its_header(tmp_path, left):
    (tmp_path / ".flows.csv.part").write_text(left, newline="")
    sink = open_flows(Request("csv", tmp_path / "flows.csv"), print)
    sink.write(everything(5))
    sink.close()
    read = {}
    for path in tmp_path.iterdir():
        with path.open(newline="") as file:
            read[path.name == "flows.csv"] = list(csv.DictReader(file))
    assert len(read.pop(True)) == 5
    assert list(read.values()) == [[{"type": "flow", "packets": "7"}]] * left.endswith("7\r\n")
    for path in tmp_path.glob("flows.csv"):
        assert path.read_text().splitlines()[0] == ",".join(FIELDS)


@pytest.mark.parametrize("form", FORMATS)
def test_two_writers_of_one_file_are_refused_or_apart(tmp_path, form):
    first = open_flows(Request(form, tmp_path / "flows"), print)
    first.write(flow_writer.numbered(0))
    if form == "parquet":  # each has its own journal
        other = open_flows(Request(form, tmp_path / "flows"), print)
        other.write(flow_writer.numbered(0))
        other.close()
        first.close()
        assert len(parquet_files(tmp_path / "flows")) == 2
        return
    with pytest.raises(TracerError, match="another tracer writes it"):
        open_flows(Request(form, tmp_path / "flows"), print)
    first.close()


def numbers_of(form, path):
    """`packets` of all flows, and `count` of all losses."""
    if form == "parquet":
        names = ["type", "packets", "count"]
        rows = [
            row
            for one in parquet_files(path)
            for row in pq.read_table(one, columns=names).to_pylist()
        ]
    elif form == "csv":
        rows = []
        for one in [*backups(path), path]:
            with one.open(newline="") as file:
                rows += csv.DictReader(file, strict=True)
    else:
        rows = [json.loads(line) for one in [*backups(path), path]
                for line in one.read_text().splitlines()]  # fmt: skip
    flows = sorted(int(row["packets"]) for row in rows if row["type"] == "flow")
    return flows, [int(row["count"]) for row in rows if row["type"] == "lost"]


@pytest.mark.parametrize("form", ["flat", "csv", "parquet"])
def test_a_full_disk_is_waited_for(tmp_path, form):
    """What is in memory meanwhile comes when there is room; said once at both ends."""
    said, path = [], tmp_path / "flows"
    policy = replace(usual(form), max_bytes=100_000, max_backups=None)
    with small_disk(tmp_path, "6m"):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(6_230_000))
        sink = open_flows(Request(form, path, policy=policy), said.append)
        for index in range(50):
            sink.write(flow_writer.numbered(index * 200, 200))
            sink.tick()
        assert sum("no space left" in text or "no room" in text for text in said) >= 1, said
        ballast.unlink()
        sink.tick()
        sink.write(flow_writer.numbered(10_000, 200))
        sink.close()
        flows, lost = numbers_of(form, path)
    assert flows == list(range(10_200))
    assert lost == []
    assert sink.thrown_away == 0
    assert any(text.startswith("over: ") for text in said) or form == "parquet"


def test_what_finds_no_room_for_long_is_thrown_away_and_counted():
    taken, said, full = [], [], True

    def write(piece):
        if full:
            raise line_file.NoRoomError("file: no space left on device")
        taken.append(piece)

    backlog = Backlog("file", write, lambda lost: Piece((b"lost %d" % lost,), 0), said.append, 1000)
    for index in range(30):
        backlog.put(Piece((b"%100d" % index,), 7))
    assert backlog.thrown_away == 20 * 7
    full = False
    backlog.put(Piece((b"%100d" % 30,), 7))
    told = [int(piece.parts[0].split()[-1]) for piece in taken]
    assert told == [140, *range(20, 31)]
    assert said == [
        "warning: file: no space left on device: records wait in memory, up to 0 MiB",
        "over: file: there is room again; 140 records were lost so far",
    ]


def resident_mib():
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def test_what_waited_gives_its_memory_back():
    """To the kernel, though small things were made meanwhile, which live on."""
    others, full = [], True

    def write(_piece):
        if full:
            raise line_file.NoRoomError("file: no space left on device")

    backlog = Backlog("file", write, lambda _: Piece((), 0), lambda _: None)
    for index in range(90):
        backlog.put(Piece(tuple(b"%d" % line * 200 for line in range(1000, 2000)), 1000))
        others.append(bytes(200 + index))
    while_full = resident_mib()
    assert backlog.thrown_away > 0
    full = False
    assert backlog.flush()
    assert while_full - resident_mib() > 48


def test_what_finds_no_room_at_the_end_is_lost_and_said_to_be(tmp_path):
    said = []
    with small_disk(tmp_path, "64k"):
        sink = open_flows(Request("flat", tmp_path / "flows"), said.append)
        sink.write(flow_writer.numbered(0, 2000))
        sink.close()
        flows, _ = numbers_of("flat", tmp_path / "flows")
    assert 0 < len(flows) < 2000
    assert sink.thrown_away == 2000 - len(flows)
    assert f"lost: {sink.thrown_away} records found no room" in said[-1]


def test_parquet_needs_a_directory(tmp_path):
    with pytest.raises(TracerError, match="not for stdout"):
        open_flows(Request("parquet"), print)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TracerError, match="not a directory"):
        open_flows(Request("parquet", tmp_path / "file"), print)


def test_a_budget_below_two_files_is_refused():
    with pytest.raises(TracerError, match="--file-max-total"):
        Policy(max_bytes=1000, budget_bytes=1500)
