"""The metrics themselves: what Prometheus reads, made anew for each scrape."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracer import __version__
from tracer.errors import TracerError
from tracer.metrics.series import TRANSIT, Bounded, Histogram, sums, transits, values

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise TracerError(
        "--metrics: prometheus-client is not installed", "pip install node-packet-tracer[metrics]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from tracer.flow_table import FlowTable

_WORKLOAD = ("namespace", "workload_kind", "workload")
LATENCIES = {
    "tcp.rtt_ns": ("tracer_tcp_rtt_seconds", "Round trip time of TCP flows, one value a record."),
    "tcp.handshake_ns": ("tracer_tcp_handshake_seconds", "SYN to SYN-ACK, one value a record."),
    TRANSIT: ("tracer_node_transit_seconds", "Packets on their way from pod to pod, some timed."),
}
"""Column of the records → name and help of its histogram."""


@dataclass(frozen=True, slots=True)
class Health:
    """How tracer and its node are, at one moment."""

    lost: Mapping[str, int] = field(default_factory=dict)
    """Events that could not be told so far, by source."""
    programs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Program → (runs, nanoseconds in all); empty unless the kernel measures."""
    conntrack: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Network namespace (`node`, `namespace/pod`) → (entries, limit)."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """What records wait for (`name`, `timeout`, `room`) → how many."""
    flows_live: int | None = None
    """Flows that were told apart in the last interval; None where none are."""
    thrown_away: int | None = None
    """Records that found no room on the disk; None where none are kept for it."""
    sample_rate: int | None = None
    """One packet of so many is counted; None where all are."""


class Exporter(Collector):
    """Sums everything it is shown; `registry` is what a server offers."""

    def __init__(self, node: str, most_series: int) -> None:
        """At most `most_series` label sets of traffic, and as many of drops."""
        self._node, self._most = node, most_series
        self.look: Callable[[], Health] = Health
        # Asked at each scrape, on the server's thread.
        self._lock = threading.Lock()
        self._traffic, self._drops = Bounded(4, most_series), Bounded(4, most_series)
        self._latencies: dict[str, Histogram] = {}
        self._records = self._intervals = 0
        self._work_s = 0.0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def add(self, table: FlowTable) -> None:
        """Count some flows of an interval."""
        arrived, died = list(sums(table, dropped=False)), list(sums(table, dropped=True))
        with self._lock:
            for labels, packets, size_bytes in arrived:
                self._traffic.add(labels, packets, size_bytes)
            for labels, packets, size_bytes in died:
                self._drops.add(labels, packets, size_bytes)
            for name in LATENCIES:
                column = values(table, name)
                if column is not None and name != TRANSIT:
                    self._latencies.setdefault(name, Histogram()).add(column)
            if TRANSIT in table.columns:
                self._latencies.setdefault(TRANSIT, Histogram()).add_powers(*transits(table))

    def turned(self, work_s: float, records: int) -> None:
        """An interval is over, which took `work_s` to make and write, as so many records."""
        with self._lock:
            self._records += records
            self._intervals += 1
            self._work_s += work_s

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering asks nobody how they are."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        health = self.look()
        with self._lock:
            yield from [*self._of_packets(), *self._of_series()]
        yield from _of_conntrack(health)
        yield from _of_tracer(health)
        info = InfoMetricFamily("tracer", "What runs where.")
        info.add_metric((), {"version": __version__, "node": self._node})
        yield info

    def _of_packets(self) -> Iterator[Metric]:
        labels = (*_WORKLOAD, "direction")
        packets = CounterMetricFamily("tracer_flow_packets", "Packets of pods.", labels=labels)
        size = CounterMetricFamily(
            "tracer_flow_bytes", "Bytes of pods, from the network header on.", labels=labels
        )
        for key, (count, size_bytes) in self._traffic.items():
            packets.add_metric(key, count)
            size.add_metric(key, size_bytes)
        labels = (*_WORKLOAD, "reason")
        dropped = CounterMetricFamily(
            "tracer_drop_packets", "Packets of pods that died on the node.", labels=labels
        )
        for key, (count, _) in self._drops.items():
            dropped.add_metric(key, count)
        yield from (metric for metric in (packets, size, dropped) if metric.samples)
        for name, histogram in self._latencies.items():
            metric = HistogramMetricFamily(*LATENCIES[name])
            metric.add_metric((), histogram.buckets(), histogram.sum_ns / 1e9)
            yield metric

    def _of_series(self) -> Iterator[Metric]:
        gauges: dict[str, int] = {
            "tracer_metrics_series": len(self._traffic.items()) + len(self._drops.items()),
            "tracer_metrics_series_limit": 2 * (self._most + 1),  # and `_other`, of each
        }
        for name, count in gauges.items():
            yield GaugeMetricFamily(name, "Label sets of packets and drops.", count)
        counters: dict[str, tuple[str, float]] = {
            "tracer_metrics_series_diverted": (
                "Sums counted as _other, for want of room for their labels.",
                self._traffic.diverted + self._drops.diverted,
            ),
            "tracer_records": ("Records written.", self._records),
            "tracer_intervals": ("Times that the counters were read.", self._intervals),
            "tracer_work_seconds": ("Time it took to read, name and write them.", self._work_s),
        }
        for name, (about, value) in counters.items():
            yield CounterMetricFamily(name, about, value)


def _of_conntrack(health: Health) -> Iterator[Metric]:
    yield _gauge(
        "tracer_conntrack_entries",
        "Connections in the table of a network namespace.",
        "netns",
        ((where, used) for where, (used, _) in health.conntrack.items()),
    )
    yield _gauge(
        "tracer_conntrack_entries_limit",
        "How many it takes (nf_conntrack_max).",
        "netns",
        ((where, limit) for where, (_, limit) in health.conntrack.items()),
    )


def _of_tracer(health: Health) -> Iterator[Metric]:
    lost = CounterMetricFamily(
        "tracer_lost_events", "Events that could not be told.", labels=("source",)
    )
    for source, count in health.lost.items():
        lost.add_metric((source,), count)
    runs = CounterMetricFamily("tracer_program_runs", "Runs of a BPF program.", labels=("program",))
    spent = CounterMetricFamily(
        "tracer_program_seconds", "Time spent in a BPF program.", labels=("program",)
    )
    for program, (count, run_time_ns) in health.programs.items():
        runs.add_metric((program,), count)
        spent.add_metric((program,), run_time_ns / 1e9)
    yield from (lost, runs, spent)
    yield _gauge(
        "tracer_records_waiting", "Records that wait, and for what.", "for", health.waiting.items()
    )
    yield from _of_flows(health)


def _of_flows(health: Health) -> Iterator[Metric]:
    """What only a run that counts flows knows."""
    if health.flows_live is not None:
        live = "Flows of the last interval."
        yield GaugeMetricFamily("tracer_flows_live", live, health.flows_live)
    if health.sample_rate is not None:
        rate = "One packet of so many is counted, for all."
        yield GaugeMetricFamily("tracer_flow_sample_rate", rate, health.sample_rate)
    if health.thrown_away is not None:
        room = "Records without room on the disk."
        yield CounterMetricFamily("tracer_records_thrown_away", room, health.thrown_away)


def _gauge(name: str, about: str, label: str, items: Iterable[tuple[str, int]]) -> Metric:
    metric = GaugeMetricFamily(name, about, labels=(label,))
    for value, count in items:
        metric.add_metric((value,), count)
    return metric
