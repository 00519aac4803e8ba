"""`tracer flows` for months: files that rotate while it runs, config, SIGHUP, systemd, sums."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import duckdb
import pytest
from lab import runner
from lab.expect import owner
from lab.shell import until
from lab.traffic import new_port, send_udp, udp_listener

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"


@pytest.fixture
def flows(cri_env):
    def around(*options, env=()):
        return runner.running("flows", *options, env={**cri_env, **dict(env)})

    return around


def sent(cluster, port, count):
    with udp_listener(cluster.web.where, port):
        send_udp(cluster.client.where, (cluster.web.ip4, port), count)


def packets_in(folder, port, client):
    """What DuckDB finds that the client sent to the port."""
    if not list(folder.glob("date=*/hour=*/*.parquet")):
        return 0
    query = """
        select coalesce(sum(packets), 0)::bigint from read_parquet(?, hive_partitioning = true)
        where "dst.port" = ? and direction = 'egress' and "k8s.pod.name" = ?
        and "k8s.pod.namespace" = ? and epoch_ns("time") <= epoch_ns(end_time)
        and verdict = 'forwarded'
    """
    namespace, name = client.key.split("/")
    found = duckdb.execute(query, [f"{folder}/**/*.parquet", port, name, namespace]).fetchone()
    return found[0]


def test_parquet_files_appear_while_it_runs(cluster, flows, tmp_path):
    port, folder = new_port(), tmp_path / "flows"
    options = ("--interval", "200ms", "--file-max-age", "300ms")
    with flows(*options, "--format", "parquet", "--write", str(folder)) as live:
        sent(cluster, port, 7)
        until(lambda: packets_in(folder, port, cluster.client) >= 7, "a first file")
        sent(cluster, port, 5)
        done = live.stop(signal.SIGTERM)
    assert done.code == 0, done.err
    assert packets_in(folder, port, cluster.client) == 12
    assert not list(folder.glob(".*")), "a journal is left"


def test_a_service(cluster, flows, tmp_path):
    """Config file, readiness, watchdog, files reopened on SIGHUP, and what SIGTERM flushes."""
    port, written = new_port(), tmp_path / "flows.jsonl"
    config = tmp_path / "flows.toml"
    config.write_text(f"[flows]\ninterval = '1h'\nwrite = '{written}'\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(15)
        env = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "400000",
            "TRACER_INTERVAL": "200ms",
        }
        with flows("--config", str(config), env=env) as live:
            assert manager.recv(4096).startswith(b"READY=1")
            assert manager.recv(4096) == b"WATCHDOG=1"
            sent(cluster, port, 7)
            until(lambda: f'"dst.port":{port}' in written.read_text(), "a first interval")
            written.rename(tmp_path / "moved.jsonl")
            live.process.send_signal(signal.SIGHUP)
            heard = b""
            while not heard.startswith(b"RELOADING=1"):
                heard = manager.recv(4096)
            until(written.exists, "a new file")
            sent(cluster, port, 5)
            done = live.stop(signal.SIGTERM)
        heard = []
        while b"STOPPING=1" not in heard:
            heard.append(manager.recv(4096))
    assert done.code == 0, done.err
    assert any(message.startswith(b"READY=1") for message in heard)
    lines = (tmp_path / "moved.jsonl").read_text() + written.read_text()
    records = runner.Done(0, lines, "").records
    wanted = {"dst.port": port, "verdict": "forwarded", **owner(cluster.client, "egress")}
    assert sum(r["packets"] for r in records if runner.matches(r, wanted)) == 12


def test_chosen_and_summed_by_pod(cluster, flows):
    """Two flows of one pod to another are one record; others are not there at all."""
    first, second, client = new_port(), new_port(), cluster.client
    namespace, name = cluster.web.key.split("/")
    allow = json.dumps({"destination_pod": [cluster.web.key], "traffic_direction": ["EGRESS"]})
    deny = json.dumps({"verdict": ["DROPPED"]})
    options = ("--allow", allow, "--deny", deny, "--aggregate", "pod", "--interval", "1m")
    with flows(*options) as live:
        sent(cluster, first, 7)
        sent(cluster, second, 5)
        send_udp(client.where, (cluster.outside_ip4, first), 3)
        done = live.stop()
    records = [r for r in done.records if runner.matches(r, owner(client, "egress"))]
    (udp,) = [r for r in records if r["transport"] == "udp"]
    assert udp["packets"] == 12
    assert (udp["k8s.dst.namespace"], udp["k8s.dst.pod.name"]) == (namespace, name)
    assert "dst.port" not in udp
    assert all(r["k8s.dst.pod.name"] == name for r in done.records if r["type"] == "flow")


def test_a_flow_that_goes_on_is_one_record(cluster, flows):
    """Two bursts in different intervals: told together, when it ends."""
    port, client = new_port(), cluster.client
    options = ("--interval", "200ms", "--active-timeout", "1h", "--inactive-timeout", "1h")
    with (
        flows(*options) as live,
        udp_listener(cluster.web.where, port),
        client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for count in (7, 5):
            for _ in range(count):
                sender.sendto(b"x", (cluster.web.ip4, port))
            live.process.poll()
            runner.until_quiet(live, quiet_s=0.5)
        done = live.stop()
    wanted = {"dst.port": port, "verdict": "forwarded", **owner(client, "egress")}
    (record,) = [r for r in done.records if runner.matches(r, wanted)]
    assert record["packets"] == 12
    assert record["end_time"] > record["time"]


def test_the_unit_says_what_tracer_does():
    """Every option of the shipped configuration is one, and the unit is what systemd reads."""
    unit = (DEPLOY / "tracer-flows.service").read_text()
    assert "Type=notify\n" in unit
    done = runner.finish("flows", "--config", str(DEPLOY / "flows.toml"), "--write", "/dev/null/x")
    assert done.code == 2
    assert "/dev/null/x" in done.err
