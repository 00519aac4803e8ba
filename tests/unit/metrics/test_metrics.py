"""What Prometheus is told: sums, their bounds, and an address to ask."""

import shutil
import socket
import subprocess
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tracer.errors import TracerError
from tracer.flow_table import Column, FlowTable, coded, concat, lost_table, table
from tracer.metrics.exporter import Exporter, Health
from tracer.metrics.series import OTHER, Bounded, Histogram, sums
from tracer.metrics.server import Server, address


def flows(*rows):
    """A flow table; a row is (namespace, pod, owner, direction, reason, packets)."""
    columns = list(zip(*rows, strict=True))
    return table(
        len(rows),
        {
            "type": coded(["flow"] * len(rows)),
            "k8s.pod.namespace": coded(columns[0]),
            "k8s.pod.name": coded(columns[1]),
            "k8s.owner.kind": coded(["Deployment" if owner else None for owner in columns[2]]),
            "k8s.owner.name": coded(columns[2]),
            "direction": coded(columns[3]),
            "verdict": coded(["dropped" if reason else "forwarded" for reason in columns[4]]),
            "drop.reason": coded(columns[4]),
            "netns.name": coded([None if pod else "blue" for pod in columns[1]]),
            "packets": Column(np.array(columns[5], np.uint64)),
            "bytes": Column(np.array(columns[5], np.uint64) * np.uint64(100)),
        },
    )


WEB = ("shop", "web-1", "web", "egress", None, 5)
WEB2 = ("shop", "web-2", "web", "egress", None, 7)
DEAD = ("shop", "web-1", "web", "ingress", "NO_SOCKET", 3)


def scrape(url):
    """Sample name and labels → value."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
        text = answer.read().decode()
    return text, {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def server():
    exporter = Exporter("n1", 100)
    server = Server(("127.0.0.1", 0), exporter.registry)
    yield exporter, server
    server.close()


def test_pods_of_one_workload_are_one_series():
    assert list(sums(flows(WEB, WEB2), dropped=False)) == [
        (("shop", "Deployment", "web", "egress"), 12, 1200)
    ]


def test_who_has_no_owner_goes_by_its_own_name():
    found = sums(
        flows(("shop", "bare", None, "egress", None, 1), (None, None, None, "ingress", None, 2)),
        dropped=False,
    )
    assert {labels: packets for labels, packets, _ in found} == {
        ("shop", "Pod", "bare", "egress"): 1,
        ("", "NetworkNamespace", "blue", "ingress"): 2,
    }


def test_the_dead_are_no_traffic_and_losses_are_no_flows():
    both = concat([flows(WEB, DEAD), lost_table("ring", 9, "n1", 0)])
    assert [packets for _, packets, _ in sums(both, dropped=False)] == [5]
    assert list(sums(both, dropped=True)) == [(("shop", "Deployment", "web", "NO_SOCKET"), 3, 300)]


def test_sampled_packets_stand_for_all_already():
    whole = flows(WEB)
    rate = {"sample.rate": Column(np.array([10], np.uint16))}
    sampled = FlowTable(1, {**whole.columns, **rate})
    assert [packets for _, packets, _ in sums(sampled, dropped=False)] == [5]


def test_an_empty_interval_has_no_sums():
    assert list(sums(FlowTable(0, {}), dropped=False)) == []


def test_labels_are_bounded_and_nothing_is_uncounted():
    bounded = Bounded(1, 2)
    for name in ("a", "b", "c", "a", "d"):
        bounded.add((name,), 1, 10)
    assert dict(bounded.items()) == {("a",): (2, 20), ("b",): (1, 10), (OTHER,): (2, 20)}
    assert bounded.diverted == 2


def test_a_histogram_is_cumulative():
    histogram = Histogram()
    histogram.add(np.array([1, 1024, 1025, 1 << 62], np.uint64))
    buckets = dict(histogram.buckets())
    assert buckets[str(1024 / 1e9)] == 2
    assert buckets[str(2048 / 1e9)] == 3
    assert buckets["+Inf"] == 4


def test_what_is_scraped_is_what_was_counted(server):
    exporter, served = server
    exporter.look = lambda: Health(
        lost={"ring_full": 4},
        programs={"flow_tx": (10, 2_000)},
        conntrack={"node": (7, 65536)},
        waiting={"name": 2},
        flows_live=3,
    )
    exporter.add(flows(WEB))
    exporter.add(flows(DEAD))
    exporter.turned(0.5, 2)
    exporter.add(flows(WEB2))
    exporter.turned(0.25, 1)
    _, found = scrape(served.url)
    web = (("namespace", "shop"), ("workload", "web"), ("workload_kind", "Deployment"))
    assert found[("tracer_flow_packets_total", ("direction", "egress"), *web)] == 12
    assert found[("tracer_flow_bytes_total", ("direction", "egress"), *web)] == 1200
    labels = (web[0], ("reason", "NO_SOCKET"), *web[1:])
    assert found[("tracer_drop_packets_total", *labels)] == 3
    assert found["tracer_lost_events_total", ("source", "ring_full")] == 4
    assert found["tracer_program_runs_total", ("program", "flow_tx")] == 10
    assert found["tracer_program_seconds_total", ("program", "flow_tx")] == pytest.approx(2e-6)
    assert found["tracer_conntrack_entries", ("netns", "node")] == 7
    assert found["tracer_conntrack_entries_limit", ("netns", "node")] == 65536
    assert found["tracer_records_waiting", ("for", "name")] == 2
    assert found["tracer_flows_live",] == 3
    assert found["tracer_records_total",] == 3
    assert found["tracer_intervals_total",] == 2
    assert found["tracer_work_seconds_total",] == 0.75
    assert found["process_resident_memory_bytes",] > 0
    assert found["process_cpu_seconds_total",] > 0


def test_series_are_bounded_in_what_is_scraped(server):
    exporter, served = server
    rows = [("shop", f"p{index}", None, "egress", None, 1) for index in range(250)]
    exporter.add(flows(*rows))
    _, found = scrape(served.url)
    packets = [value for key, value in found.items() if key[0] == "tracer_flow_packets_total"]
    assert len(packets) == 101
    assert sum(packets) == 250
    assert found["tracer_metrics_series_diverted_total",] == 150
    assert found["tracer_metrics_series",] <= found["tracer_metrics_series_limit",] < 210


def test_what_is_only_of_flows_is_not_told_of_drops(server):
    """No sample, no name: an empty family would look like traffic of 0."""
    exporter, where = server
    exporter.look = lambda: Health(lost={"drop_events": 2}, waiting={"rules": 3})
    exporter.add(flows(DEAD))
    exporter.turned(0.5, 2)
    text, found = scrape(where.url)
    assert found["tracer_records_total",] == 2
    assert found["tracer_lost_events_total", ("source", "drop_events")] == 2
    assert found["tracer_records_waiting", ("for", "rules")] == 3
    dead = [labels for labels in found if labels[0] == "tracer_drop_packets_total"]
    assert [found[labels] for labels in dead] == [3]
    assert "flow" not in text
    assert "thrown_away" not in text


def test_promtool_has_nothing_to_say(server):
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    exporter, served = server
    exporter.look = lambda: Health({"a": 1}, {"p": (1, 1)}, {"node": (1, 2)}, {"name": 1})
    whole = flows(WEB, DEAD)
    latencies = {"tcp.rtt_ns": Column(np.array([5000, 9000]))}
    latencies["transit.histogram"] = Column(np.array([-1, 0], np.int32), ("512:1,4096:7",))
    latencies["transit.sum_ns"] = Column(np.array([0, 40_000]), None, np.array([False, True]))
    exporter.add(FlowTable(2, {**whole.columns, **latencies}))
    text, found = scrape(served.url)
    assert found["tracer_tcp_rtt_seconds_count",] == 2
    transit = "tracer_node_transit_seconds"
    assert (found[f"{transit}_count",], found[f"{transit}_sum",]) == (8, 4e-5)
    for bound, below in (("1.024e-06", 1), ("4.096e-06", 1), ("8.192e-06", 8), ("+Inf", 8)):
        assert found[f"{transit}_bucket", ("le", bound)] == below
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (":9100", ("127.0.0.1", 9100)),
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),  # noqa: S104 - asked for
        ("[::1]:9100", ("::1", 9100)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_addresses(text, where):
    assert address(text) == where


@pytest.mark.parametrize("text", ["", "here", "::1:9100", ":70000", "1.2.3.4", "a:b", "[::1]", ":"])
def test_what_is_no_address(text):
    with pytest.raises(TracerError) as error:
        address(text)
    assert error.value.hint


def test_an_address_in_use_is_one_line_and_a_hint():
    registry = Exporter("n1", 1).registry
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(TracerError, match="address already in use") as error:
            Server(taken.getsockname(), registry)
        assert error.value.hint
    with pytest.raises(TracerError):
        Server(("192.0.2.1", 0), registry)


def test_a_closed_server_gives_its_port_back():
    registry = Exporter("n1", 1).registry
    first = Server(("127.0.0.1", 0), registry)
    port = int(first.url.split(":")[2].split("/")[0])
    first.close()
    second = Server(("127.0.0.1", port), registry)
    assert scrape(second.url)[0].count("tracer_info") == 3
    second.close()
