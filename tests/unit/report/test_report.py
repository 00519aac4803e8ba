"""`tracer report`: what is read, what is not, and that the sums are right."""

import gzip
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
import zstandard

from tracer import cli
from tracer.errors import TracerError
from tracer.flow_table import SCHEMA_VERSION
from tracer.report.columns import COLUMNS
from tracer.report.inputs import find_inputs
from tracer.report.store import SCHEMA_KEY, Period, Store, quoted
from tracer.report.summaries import SUMMARIES, step_s

EVIL = "<script>alert('1')</script>&\""


def record(second=0, /, **changes):
    """A flow record of shop/web-0, which sent 2 packets to data/pg-0."""
    time = f"2026-01-31T12:00:{second:02}.123456789Z"
    base = {
        "type": "flow",
        "time": time,
        "end_time": time,
        "direction": "egress",
        "verdict": "forwarded",
        "k8s.node.name": "n1",
        "k8s.pod.namespace": "shop",
        "k8s.pod.name": "web-0",
        "k8s.src.namespace": "shop",
        "k8s.src.pod.name": "web-0",
        "src.address": "10.0.0.1",
        "dst.address": "10.0.1.1",
        "transport": "tcp",
        "packets": 2,
        "bytes": 200,
    }
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in (base | changed).items() if value is not None}


RECEIVED = {
    "direction": "ingress",
    "k8s__node__name": "n2",
    "k8s__pod__namespace": "data",
    "k8s__pod__name": "pg-0",
    "k8s__src__namespace": None,
    "k8s__src__pod__name": None,
    "k8s__dst__namespace": "data",
    "k8s__dst__pod__name": "pg-0",
}
"""The same packets as the other end's node tells them."""


def lines(*records):
    return "".join(json.dumps(one) + "\n" for one in records).encode()


def parquet(path, *records, version=SCHEMA_VERSION):
    """Records as a Parquet file with the columns that they have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = path.parent / "raw.tmp"
    raw.write_bytes(lines(*records))
    names = dict.fromkeys(name for one in records for name in one)
    types = ", ".join(f"'{name}': '{COLUMNS[name]}'" for name in names)
    told = f", KV_METADATA {{'{SCHEMA_KEY}': '{version}'}}" if version else ""
    source = f"read_json({quoted(str(raw))}, format = 'newline_delimited', columns = {{{types}}})"
    with duckdb.connect() as db:
        db.execute(f"COPY (FROM {source}) TO {quoted(str(path))} (FORMAT parquet{told})").fetchall()
    raw.unlink()


def store(*paths, since=None, until=None):
    return Store(find_inputs(paths), Period(since, until))


def answers(opened, name):
    """Rows of one summary, each by column."""
    summary = next(one for one in SUMMARIES if one.name == name)
    answer = opened.ask(summary.sql(20))
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of `tracer report`."""
    with pytest.raises(SystemExit) as end:
        cli.main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


# Which files


def test_files_of_every_kind_are_found_once(tmp_path):
    names = (
        "a.jsonl",
        "b.jsonl.gz",
        "c.ndjson.zst",
        "flows.jsonl.3",
        "d-20260131T120000.000.jsonl",
    )
    for name in names:
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(name[name.rindex(".") :])
        (tmp_path / name).write_bytes(packed(b"x") if packed else b"x")
    (tmp_path / ".half.jsonl").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / "nothing.jsonl").write_bytes(b"")
    parquet(tmp_path / "date=2026-01-31" / "n.parquet", record())
    found = find_inputs([tmp_path, tmp_path / "a.jsonl"])
    assert {os.path.basename(path) for path in found.json_lines} == set(names)  # noqa: PTH119
    assert len(found.parquet) == found.empty == 1


@pytest.mark.parametrize("name", ["absent.jsonl", "notes.txt", "."])
def test_what_cannot_be_a_report_is_an_error(tmp_path, name):
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(TracerError) as error:
        find_inputs([tmp_path / name])
    assert error.value.hint


def test_odd_names_of_directories_are_read(tmp_path):
    odd = tmp_path / 'it\'s [a] *"dir"'
    parquet(odd / "n.parquet", record())
    (odd / "n.jsonl").write_bytes(lines(record()))
    with store(odd) as opened:
        assert opened.ask("SELECT sum(packets) FROM flows").rows == ((4,),)


# Records


def test_every_form_and_every_node_is_one_view(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(record()))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(record())))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines(record())))
    parquet(tmp_path / "date=2026-01-31" / "hour=12" / "n1.parquet", record())
    parquet(tmp_path / "date=2026-01-31" / "hour=12" / "n2.parquet", record(tcp__rtt_ns=7))
    parquet(tmp_path / "flat.parquet", record(), version=None)
    with store(tmp_path) as opened:
        count, packets, rtt, hours = opened.ask(
            'SELECT count(*), sum(packets), max("tcp.rtt_ns"), count(hour) FROM flows'
        ).rows[0]
    assert (count, packets, rtt, hours) == (6, 12, 7, 2)


def test_times_keep_their_nanoseconds(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(record()))
    parquet(tmp_path / "b.parquet", record())
    with store(tmp_path) as opened:
        assert opened.ask("SELECT DISTINCT time FROM flows").rows == (
            ("2026-01-31T12:00:00.123456789Z",),
        )


def test_only_the_period_that_was_asked_for(tmp_path):
    records = [record(second, packets=10**second) for second in range(4)]
    (tmp_path / "a.jsonl").write_bytes(lines(*records))
    parquet(tmp_path / "b.parquet", *records)
    with store(tmp_path, since="2026-01-31 12:00:01", until="2026-01-31 12:00:03") as opened:
        assert opened.ask("SELECT sum(packets) FROM flows").rows == ((2 * 110,),)


def test_a_column_that_no_file_has_is_null(tmp_path):
    parquet(
        tmp_path / "old.parquet", {"type": "flow", "time": "2026-01-31T12:00:00Z", "packets": 1}
    )
    with store(tmp_path) as opened:
        for summary in SUMMARIES:
            opened.ask(summary.sql(5))
        assert opened.ask('SELECT "drop.reason", packets FROM flows').rows == ((None, 1),)


def test_torn_files_and_lines_are_counted(tmp_path):
    whole = lines(record(), record(1))
    (tmp_path / "cut.jsonl").write_bytes(whole + b'{"type":"flow","pack')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(whole)[:-9])
    packed = zstandard.compress(whole * 50)
    (tmp_path / "cut.jsonl.zst").write_bytes(packed[:-9])
    (tmp_path / "two.jsonl.zst").write_bytes(zstandard.compress(whole) * 2)
    (tmp_path / "no.jsonl.gz").write_bytes(whole)
    (tmp_path / "hubble.jsonl").write_bytes(b'{"flow":{},"time":"x"}\n')
    parquet(tmp_path / "good.parquet", record())
    good = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(good[:-10])
    (tmp_path / "broken.parquet").write_bytes(good[:4] + bytes(len(good) - 8) + good[-4:])
    with store(tmp_path) as opened:
        assert opened.ask("SELECT count(*) FROM flows").rows == ((2 + 4 + 1,),)
        assert opened.loaded.torn_lines == 1
        skipped = {os.path.basename(one.path): one.why for one in opened.loaded.skipped}  # noqa: PTH119
    assert skipped.keys() == {
        *("cut.jsonl.gz", "cut.jsonl.zst", "no.jsonl.gz", "hubble.jsonl"),
        *("cut.parquet", "broken.parquet"),
    }
    assert all(skipped.values())


def test_another_schema_is_refused(tmp_path):
    parquet(tmp_path / "a.parquet", record(), version=SCHEMA_VERSION + 1)
    with pytest.raises(TracerError, match=f"schema version {SCHEMA_VERSION + 1}"):
        store(tmp_path)


def test_parquet_of_others_is_skipped_and_what_they_rewrote_is_read(tmp_path):
    """Spark and DuckDB keep neither metadata nor unsigned types when they compact files."""
    rewritten = "'flow' AS type, 3::BIGINT AS packets, now()::TIMESTAMP AS time, '10.0.0.1' AS dns"
    for name, columns in (
        ("alien", "1 AS packets"),
        ("text", "'flow' AS type, 'many' AS packets"),
        ("time", "'flow' AS type, 5::BIGINT AS time"),
        ("rewritten", rewritten),
    ):
        with duckdb.connect() as db:
            db.execute(f"COPY (SELECT {columns}) TO '{tmp_path}/{name}.parquet' (FORMAT parquet)")
    with store(tmp_path) as opened:
        assert opened.ask("SELECT type, sum(packets) FROM flows GROUP BY 1").rows == (("flow", 3),)
        skipped = {os.path.basename(one.path): one.why for one in opened.loaded.skipped}  # noqa: PTH119
    assert skipped == {
        "alien.parquet": "holds no records of tracer (flows --format parquet)",
        "text.parquet": "its column packets is VARCHAR, not UBIGINT",
        "time.parquet": "its column time is BIGINT, not TIMESTAMP_NS",
    }


@pytest.mark.parametrize("question", [(), ("--sql", "SELECT sum(packets) FROM flows")])
def test_a_file_that_is_damaged_inside_is_named(tmp_path, capsys, question):
    """Its footer is whole: only who reads its pages finds out."""
    for name in ("good", "bad"):
        parquet(tmp_path / f"{name}.parquet", *(record(second) for second in range(50)))
    bad = bytearray((tmp_path / "bad.parquet").read_bytes())
    pages = len(bad) - 8 - int.from_bytes(bad[-8:-4], "little")
    bad[4:pages] = bytes(255 - byte for byte in bad[4:pages])
    (tmp_path / "bad.parquet").write_bytes(bad)
    code, out, err = run(capsys, tmp_path, *question)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}/bad.parquet: torn: ")


def test_a_file_that_goes_away_meanwhile_is_named(tmp_path):
    for name in ("stays", "goes"):
        parquet(tmp_path / f"{name}.parquet", record())
    with store(tmp_path) as opened:
        (tmp_path / "goes.parquet").unlink()
        with pytest.raises(TracerError, match=r"goes\.parquet"):
            opened.ask("SELECT sum(packets) FROM flows")


def test_a_file_that_may_not_be_read_is_skipped(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(lines(record()))
    parquet(tmp_path / "b.parquet", record())
    opened = Path.open

    def refused(path, *args, **kwargs):
        if path.name == "b.parquet":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    found = find_inputs([tmp_path])
    assert [one.why for one in found.skipped] == ["permission denied"]
    assert len(found.json_lines) == 1


def test_too_little_memory_is_no_torn_file(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines(record()))
    code, _, err = run(capsys, tmp_path, "--memory", "10MB")
    assert code == 2
    assert err.startswith("error: --memory: too little")


# Summaries


def test_packets_seen_at_both_ends_are_one_conversation(tmp_path):
    (tmp_path / "n1.jsonl").write_bytes(lines(record(packets=5, bytes=500)))
    (tmp_path / "n2.jsonl").write_bytes(lines(record(packets=4, bytes=400, **RECEIVED)))
    with store(tmp_path) as opened:
        (pair,) = answers(opened, "conversations")
        talkers = {row["pod"]: row for row in answers(opened, "top_talkers")}
    assert (pair["source"], pair["destination"]) == ("shop/web-0", "data/pg-0")
    assert (pair["packets"], pair["bytes"]) == (5, 500)
    assert talkers["shop/web-0"]["sent_packets"] == 5
    assert talkers["data/pg-0"]["received_packets"] == 4


SERVER = {
    "k8s__pod__namespace": "data",
    "k8s__pod__name": "pg-0",
    "k8s__dst__namespace": "data",
    "k8s__dst__pod__name": "pg-0",
}


def test_both_directions_in_one_record_sum_up_as_one_by_one(tmp_path):
    """Once to a pod of the same node, once to the world."""
    back = {"packets": 3, "bytes": 30, "tcp.rtt_ns": 7}
    whole = record(flow__both_here=True, k8s__dst__namespace="data", k8s__dst__pod__name="pg-0")
    away = record(dst__address="192.0.2.1")
    (tmp_path / "both").mkdir()
    reverse = {f"flow.reverse.{name}": value for name, value in back.items()}
    (tmp_path / "both" / "a.jsonl").write_bytes(lines(whole | reverse, away | reverse))
    turned = {"src__address": "10.0.1.1", "dst__address": "10.0.0.1", "packets": 3, "bytes": 30}
    turned |= {"k8s__dst__namespace": "shop", "k8s__dst__pod__name": "web-0"}
    named = {"k8s__src__namespace": "data", "k8s__src__pod__name": "pg-0"}
    unnamed = dict.fromkeys(("k8s__src__namespace", "k8s__src__pod__name"))
    one_by_one = [
        record(k8s__dst__namespace="data", k8s__dst__pod__name="pg-0"),
        record(direction="ingress", **SERVER),
        record(**turned, **named, k8s__pod__namespace="data", k8s__pod__name="pg-0"),
        record(**turned, **named, direction="ingress", tcp__rtt_ns=7),
        away,
        record(**{**turned, "src__address": "192.0.2.1"}, **unnamed, direction="ingress",
               tcp__rtt_ns=7),
    ]  # fmt: skip
    (tmp_path / "each").mkdir()
    (tmp_path / "each" / "a.jsonl").write_bytes(lines(*one_by_one))
    parquet(tmp_path / "parquet" / "a.parquet", whole | reverse, away | reverse)
    names = ("top_talkers", "conversations", "slowest_paths")
    with store(tmp_path / "each") as opened:
        expected = {name: answers(opened, name) for name in names}
        (node,) = answers(opened, "nodes")
    for form in ("both", "parquet"):
        with store(tmp_path / form) as opened:
            assert {name: answers(opened, name) for name in names} == expected
            (told,) = answers(opened, "nodes")
            assert opened.ask("SELECT count(*) FROM flows").rows == ((2,),)
        assert told == node | {"records": 2}


def test_an_address_that_two_pods_had_stays_an_address(tmp_path):
    again = RECEIVED | {"k8s__dst__pod__name": "pg-1", "k8s__pod__name": "pg-1"}
    (tmp_path / "a.jsonl").write_bytes(lines(record(), record(1, **RECEIVED), record(2, **again)))
    with store(tmp_path) as opened:
        pairs = {row["destination"] for row in answers(opened, "conversations")}
    assert pairs == {"10.0.1.1", "data/pg-0", "data/pg-1"}


def test_drops_are_summed_by_pod_reason_and_rule(tmp_path):
    died = {"verdict": "dropped", "drop__reason": "NETFILTER_DROP", "drop__location": "f+0x1"}
    rule = {
        "netfilter__chain": "KUBE-SERVICES",
        "netfilter__rule": "reject /* shop/cart:http has no endpoints */",
    }
    (tmp_path / "a.jsonl").write_bytes(
        lines(
            record(),
            record(1, **died, **rule),
            record(2, **died, **rule),
            record(3, **(died | {"type": "drop", "verdict": None, "packets": 1})),
        )
    )
    with store(tmp_path) as opened:
        drops = answers(opened, "drops")
        services = answers(opened, "services_without_endpoints")
        talker = answers(opened, "top_talkers")[0]
    assert [(row["packets"], row["rule"]) for row in drops] == [
        (4, "KUBE-SERVICES reject /* shop/cart:http has no endpoints */"),
        (1, None),
    ]
    assert [(row["service"], row["packets"], row["clients"]) for row in services] == [
        ("shop/cart:http", 4, 1)
    ]
    assert (talker["sent_packets"], talker["dropped_packets"]) == (2, 5)


def test_records_of_sampled_packets_stand_for_all(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(record(sample__rate=100)))
    with store(tmp_path) as opened:
        assert answers(opened, "top_talkers")[0]["sent_packets"] == 2
        assert answers(opened, "nodes")[0]["sample_rate"] == 100


def test_slow_paths_are_those_with_the_worst_median(tmp_path):
    fast = [record(second, tcp__rtt_ns=1000, dst__address="10.0.2.1") for second in range(5)]
    slow = [record(second, tcp__rtt_ns=9000 + second) for second in range(5)]
    (tmp_path / "a.jsonl").write_bytes(lines(*fast, *slow))
    with store(tmp_path) as opened:
        first, second = answers(opened, "slowest_paths")
    assert (first["destination"], first["rtt_p50_ns"], first["rtt_max_ns"]) == (
        "10.0.1.1",
        9002,
        9004,
    )
    assert second["rtt_p50_ns"] == 1000


def test_slow_paths_by_transit_of_the_node(tmp_path):
    timed = {"transit__count": 3, "transit__sum_ns": 9000, "transit__max_ns": 5000}
    more = {"transit__count": 1, "transit__sum_ns": 7000, "transit__max_ns": 7000}
    (tmp_path / "a.jsonl").write_bytes(lines(record(1, **timed), record(2, **more)))
    with store(tmp_path) as opened:
        (found,) = answers(opened, "slowest_paths")
    assert (found["transit_mean_ns"], found["transit_max_ns"]) == (4000, 7000)


def test_the_chart_of_slow_paths_has_those_that_its_bars_are_about(tmp_path, capsys):
    crossed = record(
        1, transit__count=1, transit__sum_ns=10**9, src__port=1, dst__address="10.9.9.9"
    )
    (tmp_path / "a.jsonl").write_bytes(lines(record(tcp__rtt_ns=9000), crossed))
    _, out, _ = run(capsys, tmp_path, "-o", "html")
    chart = out.partition('id="slowest_paths"')[2].partition("<details>")[0]
    assert "10.0.1.1" in chart
    assert "10.9.9.9" not in chart
    assert "10.9.9.9" in out


def test_losses_are_told(tmp_path, capsys):
    lost = {"type": "lost", "source": "ring_full", "count": 17}
    (tmp_path / "a.jsonl").write_bytes(lines(record(), lost, lost))
    code, out, err = run(capsys, tmp_path, "--only", "lost", "-o", "json")
    assert code == 1
    assert "34 events of ring_full" in err
    assert json.loads(out) == {"summary": "lost", "source": "ring_full", "count": 34, "files": 1}


@pytest.mark.parametrize("span_s", [0, 1, 60, 3600, 86400, 40 * 86400])
def test_a_timeline_has_not_too_many_steps(span_s):
    assert span_s / step_s(span_s) < 100


# One's own questions


@pytest.mark.parametrize(
    "sql",
    [
        "COPY flows TO '{path}'",
        "COPY (SELECT 1) TO '{data}'",
        "CREATE TABLE t AS FROM flows",
        "INSTALL httpfs",
        "LOAD spatial",
        "ATTACH '{path}'",
        "SET memory_limit = '1GB'",
        "SET enable_external_access = true",
        "SELECT 1; SELECT 2",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT src.address FROM flows",
        "SELECT",
        "",
    ],
)
def test_a_question_can_neither_write_nor_read_elsewhere(tmp_path, sql):
    secret, path, data = (tmp_path / name for name in ("secret.csv", "new", "a.parquet"))
    secret.write_text("a\n1\n")
    parquet(data, record())
    before = data.read_bytes()
    with store(data) as opened, pytest.raises(TracerError) as error:
        opened.ask_freely(sql.format(secret=secret, path=path, data=data))
    assert error.value.message.startswith("--sql: ")
    assert error.value.hint
    assert not path.exists()
    assert data.read_bytes() == before


def test_questions_are_answered(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines(record(), record(1, dst__address='1"2,3')))
    question = 'SELECT "dst.address", sum(packets) AS n, NULL AS x FROM flows GROUP BY 1 ORDER BY 1'
    code, out, _ = run(capsys, tmp_path, "--sql", question, "-o", "json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"dst.address": '1"2,3', "n": 2},
        {"dst.address": "10.0.1.1", "n": 2},
    ]
    _, out, _ = run(capsys, tmp_path, "--sql", question, "-o", "csv")
    assert out == 'dst.address,n,x\n"1""2,3",2,\n10.0.1.1,2,\n'
    _, out, _ = run(capsys, tmp_path, "--sql", "DESCRIBE flows")
    assert "TIMESTAMP_NS" in out


def test_an_answer_that_is_too_wide_for_a_table_is_told_line_by_line(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines(record(), record(1)))
    _, out, _ = run(capsys, tmp_path, "--sql", "SELECT * FROM flows")
    first, second = out.split("\n\n")
    told = dict(line.split(maxsplit=1) for line in first.splitlines())
    assert {name: told[name] for name in ("src.address", "packets", "type")} == {
        "src.address": "10.0.0.1",
        "packets": "2",
        "type": "flow",
    }
    assert len(told) == len(record()) + 1  # and the file
    assert len(second.splitlines()) == len(told)
    _, out, _ = run(capsys, tmp_path, "--sql", 'SELECT "src.address", packets AS n_n FROM flows')
    assert out.splitlines()[0].split() == ["src.address", "n_n"]


# The command


def test_text_has_every_summary(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines(record()))
    code, out, err = run(capsys, tmp_path)
    assert (code, err) == (0, "")
    for summary in SUMMARIES:
        assert summary.title in out
    assert "1 record of 1 file" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "csv"),
        ("-o", "csv", "--only", "drops,lost"),
        ("-o", "html", "--sql", "FROM flows"),
        ("--only", "dropz"),
        ("--since", "yesterdayish"),
        ("--memory", "much"),
        ("--top", "0"),
        ("--sql", ""),
    ],
)
def test_wrong_use_is_one_line_and_a_hint(tmp_path, capsys, arguments):
    (tmp_path / "a.jsonl").write_bytes(lines(record()))
    code, out, err = run(capsys, tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "hint"]


def test_nothing_to_tell_is_told(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(b"")
    code, _, err = run(capsys, tmp_path)
    assert code == 1
    assert "no flow or drop records of that time in 1 file, 1 of them empty" in err


class Page(HTMLParser):
    """Tags that stay open, and everything that could be fetched or run."""

    VOID = ("meta", "rect", "line")

    def __init__(self, text):
        super().__init__()
        self.open, self.suspect, self.said = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        names = {name for name, _ in attributes}
        if tag in ("script", "link", "img", "iframe", "object") or names & {"src", "href"}:
            self.suspect.append(tag)
        self.suspect += [name for name in names if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def test_the_page_is_whole_and_harmless(tmp_path, capsys):
    died = {"verdict": "dropped", "drop__reason": EVIL, "netfilter__rule": EVIL}
    names = {"k8s__pod__name": EVIL, "k8s__src__pod__name": EVIL, "dst__address": EVIL}
    (tmp_path / "a.jsonl").write_bytes(
        lines(
            record(tcp__rtt_ns=5, **names),
            record(9, **names, **died),
            {"type": "lost", "source": EVIL, "count": 1},
        )
    )
    code, out, _ = run(capsys, tmp_path, "-o", "html")
    page = Page(out)
    assert code == 1
    assert not page.open
    assert not page.suspect
    assert "default-src 'none'" in out
    assert f"shop/{EVIL}" in page.said
    assert out.count("<svg") == 5  # two of time, talkers, reasons, slow paths


def test_a_page_of_nothing_is_a_page(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(b"")
    code, out, _ = run(capsys, tmp_path, "-o", "html")
    assert code == 1
    assert not Page(out).open
