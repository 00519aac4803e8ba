"""`flows --metrics`: what Prometheus reads is what was sent, through its own eyes too."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import runner
from lab.shell import until
from lab.traffic import new_port, send_udp, udp_listener
from prometheus_client.parser import text_string_to_metric_families

SENT, SIZE = 317, 100
CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@pytest.fixture
def flows(cri_env):
    """Run flows with metrics on a free port; yields the live run and its URL."""

    @contextmanager
    def around(*options):
        arguments = ("flows", "--interval", "300ms", "--metrics", "127.0.0.1:0", *options)
        with runner.running(*arguments, env=cri_env) as live:
            live.wait_for_line(lambda line: line.startswith("metrics: "))
            line = next(line for line in live.errors if line.startswith("metrics: "))
            yield live, line.split()[1]

    return around


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


def test_an_address_in_use_ends_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f":{taken.getsockname()[1]}"
        done = runner.finish("flows", "--concurrent", "--metrics", where)
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
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=get(url), capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        live.stop()
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
