"""`--metrics` of flows and of drops: what Prometheus reads is what was sent, by its eyes too."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import namespaces, runner
from lab.rules import counted, nft
from lab.shell import run, until
from lab.traffic import new_port, send_udp, udp_listener
from prometheus_client.parser import text_string_to_metric_families

SENT, SIZE = 317, 100
CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@contextmanager
def with_metrics(*arguments, env):
    """Run tracer with metrics on a free port; yields the live run and its URL."""
    with runner.running(*arguments, "--metrics", "127.0.0.1:0", env=env) as live:
        live.wait_for_line(lambda line: line.startswith("metrics: "))
        line = next(line for line in live.errors if line.startswith("metrics: "))
        yield live, line.split()[1]


@pytest.fixture
def flows(cri_env):
    return lambda *options: with_metrics("flows", "--interval", "300ms", *options, env=cri_env)


@pytest.fixture
def drops(cri_env):
    return lambda *options: with_metrics("drops", "-o", "json", *options, env=cri_env)


@pytest.fixture
def measured():
    """Have the kernel measure programs, as an administrator may."""
    before = STATS.read_text()
    STATS.write_text("1")
    yield
    STATS.write_text(before)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own servers
        return answer.read().decode()


def samples(url):
    """(name, labels) of everything that is served, with its value."""
    families = text_string_to_metric_families(get(url))
    return [(one.name, one.labels, one.value) for family in families for one in family.samples]


def value(found, name, **labels):
    """Sum of the samples of that name with these labels; None without any."""
    values = [
        number
        for one, having, number in found
        if one == name and all(having.get(label) == text for label, text in labels.items())
    ]
    return sum(values) if values else None


def promtool(text):
    """What `promtool check metrics` says of it: nothing, where it is installed and content."""
    if not shutil.which("promtool"):
        return ""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    said = checked.stdout + checked.stderr
    return said or f"exit {checked.returncode}" * (checked.returncode != 0)


def send(cluster, port):
    send_udp(cluster.client.where, (cluster.web.ip4, port), SENT, bytes(SIZE))


def written(live, pod):
    """Packets that the records say `pod` sent: neighbours are asked for now and then, too."""
    wanted = {"k8s.pod.name": pod, "direction": "egress", "verdict": "forwarded"}
    return sum(one["packets"] for one in live.records() if runner.matches(one, wanted))


@pytest.mark.usefixtures("measured")
def test_packets_and_what_they_cost(cluster, flows):
    """Every packet in its pod's series, drops by reason, programs timed by the kernel."""
    open_port, closed_port = new_port(), new_port()
    client = {"namespace": "shop", "workload": "client-0"}
    with flows() as (live, url), udp_listener(cluster.web.where, open_port):
        send(cluster, open_port)
        send(cluster, closed_port)
        sent = {"direction": "egress", **client}
        until(
            lambda: (
                (value(samples(url), "tracer_flow_packets_total", **sent) or 0)
                == written(live, "client-0")
                >= 2 * SENT
            ),
            "both transfers are counted, and as in the records",
            10,
        )
        found = samples(url)
        done = live.stop()
    assert done.code == 0, done.err
    dead = {"namespace": "shop", "workload": "web-0", "reason": "NO_SOCKET"}
    assert value(found, "tracer_drop_packets_total", **dead) == SENT
    sent_bytes = value(found, "tracer_flow_bytes_total", **sent)
    assert sent_bytes >= 2 * SENT * (SIZE + 28)
    assert value(found, "tracer_program_runs_total") >= 2 * SENT
    assert value(found, "tracer_program_seconds_total") > 0
    assert value(found, "process_resident_memory_bytes") > 1 << 20
    assert value(found, "tracer_intervals_total") >= 1
    if CONNTRACK_MAX.exists():
        limit = value(found, "tracer_conntrack_entries_limit", netns="node")
        assert limit == int(CONNTRACK_MAX.read_text())


def by_connection(records, pod):
    """(sent, received) packets of `pod`, by records that tell both directions at one end."""
    sums = [0, 0]
    for one in records:
        if one.get("verdict") != "forwarded":
            continue
        there, back = one["packets"], one.get("flow.reverse.packets", 0)
        if one.get("k8s.pod.name") == pod:
            told = (there, back) if one["direction"] == "egress" else (back, there)
        elif "flow.both_here" in one and one.get("k8s.dst.pod.name") == pod:
            told = back, there
        else:
            continue
        sums = [sums[0] + told[0], sums[1] + told[1]]
    return tuple(sums)


def test_both_directions_in_one_record_count_as_if_they_were_two(cluster, flows):
    """What each pod sent and got, though the records tell a connection at one end only."""
    port, closed, client, web = new_port(), new_port(), cluster.client, cluster.web
    with (
        flows("--bidirectional") as (live, url),
        udp_listener(web.where, port) as server,
        client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for _ in range(SENT):
            sender.sendto(bytes(SIZE), (web.ip4, port))
            _, asker = server.recvfrom(SIZE)
        for _ in range(77):
            server.sendto(b"answer", asker)
            sender.recv(SIZE)
        send(cluster, closed)

        def counted_at(pod, direction):
            found = {"workload": pod, "direction": direction}
            return value(samples(url), "tracer_flow_packets_total", **found) or 0

        def agree():
            pods = {pod: by_connection(live.records(), pod) for pod in ("client-0", "web-0")}
            sent, got = pods["web-0"]
            return (
                all(
                    (counted_at(pod, "egress"), counted_at(pod, "ingress")) == sums
                    for pod, sums in pods.items()
                )
                and sent >= 77
                and got >= 2 * SENT
            )

        until(agree, "metrics are what the records say of both ends", 20)
        found = samples(url)
        done = live.stop()
    assert done.code == 0, done.err
    dead = {"workload": "web-0", "reason": "NO_SOCKET"}
    assert value(found, "tracer_drop_packets_total", **dead) == SENT
    assert any("flow.both_here" in one for one in done.records)
    written_here = value(found, "tracer_records_total")
    assert 0 < written_here <= len(done.records)


def test_too_many_series_are_one(cluster, flows):
    """With room for one workload, nobody's packets are missing."""
    port = new_port()
    with flows("--metrics-max-series", "1") as (live, url), udp_listener(cluster.web.where, port):
        send(cluster, port)
        until(
            lambda: (value(samples(url), "tracer_flow_packets_total") or 0) >= 2 * SENT,
            "both ends are counted",
            10,
        )
        found = samples(url)
        live.stop()
    names = [labels["workload"] for name, labels, _ in found if name == "tracer_flow_packets_total"]
    assert len(names) == 2
    assert "_other" in names
    assert value(found, "tracer_metrics_series_diverted_total") >= 1


@pytest.mark.usefixtures("measured")
def test_drops_shown_or_not(cluster, drops):
    """Every one counts, by whose it was and why; that few were shown is told, too."""
    closed, client, web = new_port(), cluster.client, cluster.web
    dead = {"namespace": "shop", "workload_kind": "Pod", "workload": "web-0"}
    refused = {"namespace": "shop", "workload": "client-0", "reason": "NETFILTER_DROP"}
    rule = f"udp dport {closed} counter drop"
    with drops("--rate-limit", "3") as (live, url):
        send(cluster, closed)
        with nft(client.where, "inet", "output", rule):
            send_udp(client.where, (web.ip4, closed), 31)
            assert counted(client.where, "inet") == 31
        until(
            lambda: (
                value(samples(url), "tracer_drop_packets_total", **dead, reason="NO_SOCKET") == SENT
                and value(samples(url), "tracer_drop_packets_total", **refused) == 31
            ),
            "all are counted",
            20,
        )
        until(
            lambda: value(samples(url), "tracer_records_waiting") == 0, "rules have been read", 20
        )
        found, complaints = samples(url), promtool(get(url))
        done = live.stop()
    assert done.code == 0, done.err
    assert complaints == ""
    shown = [one for one in done.records if one["type"] == "drop"]
    assert 0 < len(shown) < SENT
    assert 0 < value(found, "tracer_records_total") <= len(shown)
    assert value(found, "tracer_program_runs_total", program="skb_drop") >= SENT + 31
    assert value(found, "tracer_program_seconds_total", program="skb_drop") > 0
    assert value(found, "process_resident_memory_bytes") > 1 << 20
    names = {name for name, _, _ in found}
    assert not {name for name in names if "flow" in name or "thrown_away" in name}, names


def test_too_many_series_of_drops_are_one(cluster, drops):
    port = new_port()
    with drops("--metrics-max-series", "1", "--pod", cluster.web.key) as (live, url):
        send(cluster, port)
        with nft(cluster.web.where, "inet", "input", f"udp dport {port} counter drop"):
            send(cluster, port)
        until(
            lambda: (value(samples(url), "tracer_drop_packets_total") or 0) >= 2 * SENT,
            "both reasons are counted",
            20,
        )
        found = samples(url)
        live.stop()
    reasons = {one["reason"] for name, one, _ in found if name == "tracer_drop_packets_total"}
    assert len(reasons) == 2
    assert "_other" in reasons
    assert value(found, "tracer_metrics_series_diverted_total") >= 1


def keys_held(pid, name):
    """The keys in those maps of process `pid` whose names begin with `name`."""
    infos = (one.read_text().split() for one in Path(f"/proc/{pid}/fdinfo").iterdir())
    ids = {info[info.index("map_id:") + 1] for info in infos if "map_id:" in info}
    maps = [json.loads(run("bpftool", "-j", "map", "show", "id", one)) for one in ids]
    named = [str(one["id"]) for one in maps if re.fullmatch(rf"{name}_\d", one.get("name", ""))]
    assert named, (name, maps)
    dumps = [json.loads(run("bpftool", "-j", "map", "dump", "id", one)) for one in named]
    return [bytes(int(byte, 16) for byte in one["key"]) for dump in dumps for one in dump]


def test_namespaces_come_and_go(cluster, drops):  # noqa: ARG001 - it sweeps away what was left
    """What died in each stays counted; the kernel keeps nothing of those that are gone."""
    before, after, inodes = 7, 4, []
    names = [f"gone{number}" for number in range(3)]
    with drops("--rate-limit", "2") as (live, url):

        def counted_in(name):
            found = {"workload": f"{namespaces.PREFIX}{name}", "reason": "NO_SOCKET"}
            return value(samples(url), "tracer_drop_packets_total", **found) or 0

        for name in names:
            where = namespaces.create(name)
            inodes.append(where.inode)
            with where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(before):
                    sender.sendto(b"x", ("127.0.0.1", 9))
                until(lambda name=name: counted_in(name) == before, f"{name} is counted", 30)
                namespaces.delete(name)
                # The socket keeps it alive, though nothing names it any more.
                for _ in range(after):
                    sender.sendto(b"x", ("127.0.0.1", 9))
                until(lambda name=name: counted_in(name) == before + after, f"{name}, late", 30)
        for name in names:
            until(lambda name=name: counted_in(name) == before + after, f"{name} stays", 30)
        numbers = {inode.to_bytes(4, sys.byteorder) for inode in inodes}
        held = keys_held(live.process.pid, "drop_counts")
        assert not [key for key in held if key[20:24] in numbers]
        done = live.stop()
    assert done.code == 0, done.err
    died = [one for one in done.records if one.get("drop.reason") == "NO_SOCKET"]
    sums = dict.fromkeys(names, 0)
    for one in died:
        name = one.get("netns.name", "").removeprefix(namespaces.PREFIX)
        if one["type"] == "summary" and name in sums:
            sums[name] += one["packets"]
    assert sums == dict.fromkeys(names, before + after)


def test_losses_of_drops_are_counted(cluster, drops):
    """While tracer stands still the ring buffer fills up."""
    port = new_port()
    with drops("--rate-limit", "0") as (live, url):
        os.kill(live.process.pid, signal.SIGSTOP)
        try:
            send_udp(cluster.client.where, (cluster.web.ip4, port), 12_001, b"x")
        finally:
            os.kill(live.process.pid, signal.SIGCONT)
        dead = {"workload": "web-0", "reason": "NO_SOCKET"}
        until(
            lambda: value(samples(url), "tracer_drop_packets_total", **dead) == 12_001,
            "all are counted",
            30,
        )
        until(
            lambda: (value(samples(url), "tracer_lost_events_total", source="drop_events") or 0)
            + (value(samples(url), "tracer_records_total") or 0) >= 12_001,
            "what was not shown is told",
            30,
        )  # fmt: skip
        assert value(samples(url), "tracer_lost_events_total", source="drop_events") > 0
        live.stop()


@pytest.mark.parametrize("command", ["drops", "flows"])
def test_an_address_in_use_ends_at_once(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f":{taken.getsockname()[1]}"
        done = runner.finish(command, "--concurrent", "--metrics", where)
    assert (done.code, done.out) == (2, "")
    assert f"--metrics 127.0.0.1{where}: address already in use" in done.err


@contextmanager
def prometheus(tmp_path, url):
    """A Prometheus that scrapes `url` every second; the address of its own API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = f"127.0.0.1:{free.getsockname()[1]}"
    config = tmp_path / "prometheus.yml"
    target = url.removeprefix("http://").removesuffix("/metrics")
    config.write_text(
        "scrape_configs:\n- job_name: tracer\n  scrape_interval: 1s\n"
        f"  static_configs:\n  - targets: ['{target}']\n"
    )
    command = [
        "prometheus", f"--config.file={config}", f"--web.listen-address={own}",
        f"--storage.tsdb.path={tmp_path / 'data'}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{own}/api/v1/query?query="
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_prometheus_reads_it(cluster, flows, tmp_path):
    if not shutil.which("prometheus"):
        pytest.skip("prometheus (Debian: prometheus) is not installed")
    port = new_port()
    query = (
        'sum(tracer_flow_packets_total{namespace="shop",workload="client-0",direction="egress"})'
    ).translate({ord(one): f"%{ord(one):02X}" for one in '{}", ='})

    def answer(api):
        try:
            result = json.loads(get(api + query))["data"]["result"]
        except OSError:  # it has not begun to listen, or to answer
            return None
        return float(result[0]["value"][1]) if result else None

    with (
        flows() as (live, url),
        udp_listener(cluster.web.where, port),
        prometheus(tmp_path, url) as api,
    ):
        send(cluster, port)
        until(
            lambda: (answer(api) or 0) == written(live, "client-0") >= SENT,
            "Prometheus has every packet",
            40,
        )
        complaints = promtool(get(url))
        live.stop()
    assert complaints == ""
