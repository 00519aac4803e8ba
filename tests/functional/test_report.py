"""`tracer report` over what `tracer flows` has just written, as Parquet and as JSON lines."""

from __future__ import annotations

import json

import pytest
from lab import runner
from lab.traffic import new_port, send_udp, udp_listener

SENT = 317


@pytest.fixture
def written(cluster, cri_env, tmp_path):
    """Directories that hold the same traffic in both forms, and the port it went to."""
    port, folders = new_port(), {"parquet": tmp_path / "parquet", "flat": tmp_path / "flat.jsonl"}
    parquet, flat = (
        runner.running(
            "flows", "--interval", "300ms", "--format", form, "--write", str(path), env=cri_env
        )
        for form, path in folders.items()
    )
    with parquet as first, flat as second:
        with udp_listener(cluster.web.where, port):
            send_udp(cluster.client.where, (cluster.web.ip4, port), SENT)
        # Nobody listens any more.
        send_udp(cluster.client.where, (cluster.web.ip4, port), SENT)
        for live in (first, second):
            done = live.stop()
            assert done.code == 0, done.err
    return folders, port


def rows(*arguments):
    done = runner.finish("report", *map(str, arguments), "-o", "json")
    assert done.code == 0, done.err
    return done.records


def test_both_forms_tell_the_same_and_all(written):
    folders, port = written
    question = (
        "SELECT type, direction, verdict, sum(packets) AS packets,"  # noqa: S608 - a number of ours
        " min(time) > '2020-01-01' AS dated"
        f' FROM flows WHERE "dst.port" = {port}'
        # Datagrams that nobody reads may overflow the listener's buffer, before it is closed.
        " AND coalesce(\"drop.reason\", 'NO_SOCKET') = 'NO_SOCKET' GROUP BY ALL ORDER BY ALL"
    )
    expected = [
        {"direction": "egress", "verdict": "forwarded", "packets": 2 * SENT},
        {"direction": "ingress", "verdict": "dropped", "packets": SENT},
        {"direction": "ingress", "verdict": "forwarded", "packets": 2 * SENT},
    ]
    expected = [{"type": "flow", **one, "dated": True} for one in expected]
    for path in folders.values():
        assert rows(path, "--sql", question) == expected
    both = rows(*folders.values(), "--sql", question)
    assert [one["packets"] for one in both] == [2 * one["packets"] for one in expected]


def test_summaries_name_the_pods(written):
    folders, _ = written
    drops = rows(folders["parquet"], "--only", "drops")
    mine = [one for one in drops if one["pod"] == "shop/web-0" and one["reason"] == "NO_SOCKET"]
    assert [one["packets"] for one in mine] == [SENT]
    pairs = rows(folders["flat"], "--only", "conversations")
    found = [
        one
        for one in pairs
        if (one["source"], one["destination"]) == ("shop/client-0", "shop/web-0")
    ]
    assert len(found) == 1
    assert 2 * SENT <= found[0]["packets"] < 2 * SENT + 50  # neighbours are asked for, too
    page = runner.finish("report", *map(str, folders.values()), "-o", "html")
    assert "shop/web-0" in page.out


def test_a_file_that_is_cut_is_told(written, tmp_path):
    folders, _ = written
    lines = folders["flat"].read_bytes()
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(lines[: lines.rindex(b",")])
    done = runner.finish(
        "report", str(cut), "--sql", "SELECT count(*) AS n FROM flows", "-o", "json"
    )
    assert done.code == 1
    assert json.loads(done.out)["n"] == lines.count(b"\n") - 1
    assert "1 line cut short" in done.err
