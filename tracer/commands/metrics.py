"""`--metrics`: what Prometheus is shown, joined from the session, the kernel and the node."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from tracer.commands import options
from tracer.inventory.sysctl import read_sysctls
from tracer.kernel.stats import run_stats
from tracer.metrics.server import Server, address
from tracer.session import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

    from tracer.flow_table import FlowTable
    from tracer.metrics.exporter import Health
    from tracer.model import Node
    from tracer.session import Session

DEFAULT_MAX_SERIES = 2000
CONNTRACK = ("net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """--metrics, --metrics-max-series."""
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--metrics",
        type=address,
        metavar="ADDRESS",
        help="serve Prometheus: :9100 on loopback only, 0.0.0.0:9100, [::1]:9100",
    )
    group.add_argument(
        "--metrics-max-series",
        type=options.positive("--metrics-max-series"),
        default=DEFAULT_MAX_SERIES,
        metavar="N",
        help="workloads, each by direction or reason, that are told apart; the rest is _other"
        f" (default: {DEFAULT_MAX_SERIES})",
    )


class Metrics:
    """The exporter and its server; what they show of the node only while `following` it."""

    def __init__(self, where: tuple[str, int], most_series: int) -> None:
        """Listen; TracerError when the address cannot be had, or the library is missing."""
        from tracer.metrics.exporter import Exporter  # noqa: PLC0415 - optional

        self._exporter = Exporter(os.uname().nodename, most_series)
        self._server = Server(where, self._exporter.registry)

    def add(self, table: FlowTable) -> None:
        """The same as Exporter.add."""
        self._exporter.add(table)

    def turned(self, work_s: float, records: int) -> None:
        """The same as Exporter.turned."""
        self._exporter.turned(work_s, records)

    @contextlib.contextmanager
    def following(self, look: Callable[[], Health]) -> Iterator[None]:
        """Show how it goes by `look`, from the server's thread; then stop to listen."""
        self._exporter.look = look
        say(f"metrics: {self._server.url}")
        try:
            yield
        finally:
            self._server.close()


def open_metrics(args: argparse.Namespace) -> Metrics | None:
    """What the options ask for; None: no metrics."""
    return Metrics(args.metrics, args.metrics_max_series) if args.metrics else None


def health(
    session: Session,
    waiting: Mapping[str, int],
    flows_live: int | None = None,
    thrown_away: int | None = None,
    sample_rate: int | None = None,
) -> Health:
    """How a run is; while it lasts, from any thread."""
    from tracer.metrics.exporter import Health  # noqa: PLC0415 - optional

    stats = {name: run_stats(fd) for name, fd in session.loaded.programs.items()}
    return Health(
        lost=session.lost,
        programs={name: found for name, found in stats.items() if found},
        conntrack=conntrack_use(session.inventory.node),
        waiting=waiting,
        flows_live=flows_live,
        thrown_away=thrown_away,
        sample_rate=sample_rate,
    )


def conntrack_use(node: Node) -> dict[str, tuple[int, int]]:
    """(entries, limit) of the node, and of each pod whose namespace has entries of its own."""
    pods = ((node.pods[uid].key, netns) for netns, uid in node.pod_by_netns.items())
    used = {}
    for name, netns in (("node", node.netns), *pods):
        found = read_sysctls(node, netns, CONNTRACK)
        count, limit = (int(found.get(sysctl, 0)) for sysctl in CONNTRACK)
        if count or (name == "node" and limit):
            used[name] = count, limit
    return used
