"""Count every pod's flows in the kernel, and write them every interval.

A record is one flow in one direction at one pod's device: packets and bytes (from the network
header on, as netfilter counts), first and last time, TCP flags. Packets of pods that died
anywhere on the node come as records of their own, with verdict `dropped` and the reason.

examples:
  tracer flows                                  every 10 s to the terminal
  tracer flows --write flows.jsonl              into a file, until Ctrl-C
  tracer flows --interval 1s --format hubble    for tools that read Hubble's JSON
  tracer flows --namespace shop --duration 1m   one minute of one namespace
  tracer flows --format parquet --write flows/  for DuckDB, Spark, pandas, tracer report
  tracer flows --config /etc/tracer/flows.toml  as a service (docs/flows.md)
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.connections import Details, added, no_details, wanted_by
from tracer.analysis.flow_aggregate import aggregate, grouping
from tracer.analysis.flow_both_ways import connection_tables
from tracer.analysis.flow_cache import FlowCache, Timeouts
from tracer.analysis.flow_columns import drop_table, flow_tables, other_table
from tracer.analysis.flow_filter import Lists, parse_lists
from tracer.analysis.flow_pairs import here
from tracer.analysis.flow_tunnels import Ways
from tracer.analysis.flows import NODE_ONLY, UNKNOWN, at_pods, joined, unpaired_places
from tracer.commands import flow_options, options
from tracer.commands.flow_budget import Budget, add_budget
from tracer.commands.metrics import Metrics, add_metrics, health, open_metrics
from tracer.errors import ExitCode
from tracer.flow_table import concat, take
from tracer.inventory.routes import Routes
from tracer.kernel.flow_maps import FlowCounts, Generations
from tracer.kernel.hooks import hooks_of
from tracer.kernel.maps import possible_cpus
from tracer.kernel.program import Program
from tracer.notify import Notifier
from tracer.session import Session, say
from tracer.sinks.flow_files import open_flows

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from tracer.analysis.drops import Context
    from tracer.commands.flow_dns import DnsAnswers
    from tracer.flow_table import FlowTable
    from tracer.metrics.exporter import Health
    from tracer.model import Node
    from tracer.sinks.flow_files import FlowSink

UNHEARD_KINDS = ("macvlan", "ipvlan")
"""Devices that take their packets from another one's receive handler (RX_HANDLER_ANOTHER)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer flows`."""
    options.add_pod_selection(parser)
    flow_options.add_counting(parser)
    flow_options.add_output(parser)
    add_metrics(parser)
    add_budget(parser)
    options.add_run_options(parser)


def _program(args: argparse.Namespace) -> Program:
    sizes = {"MAX_FLOWS": str(args.max_flows), "CPUS": str(possible_cpus())}
    defines = {"WITH_FLOWS": "", **sizes}
    if args.pod or args.namespace or args.selector:
        defines["SELECT_PODS"] = ""
    if args.dns:
        defines["WITH_DNS"] = ""
    if args.max_cpu:
        defines["SAMPLE_FLOWS"] = ""
    hooks = tuple(hook.name for hook in hooks_of("flows"))
    return Program(hooks, defines, deferred=("dev-rx",), attach=options.attach_ways(args))


HELD_INTERVALS = 4
"""Flows that wait for their timeouts, as a multiple of those of one interval."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What becomes of flows before they are written."""

    lists: Lists
    aggregate: tuple[str, ...]
    timeouts: Timeouts
    most_held: int
    bidirectional: bool = False

    def chosen(self, table: FlowTable, node: Node) -> FlowTable:
        """The records that are written."""
        if self.lists != Lists():
            table = take(table, self.lists.keep(table, node))
        return aggregate(table, self.aggregate) if self.aggregate else table


def _wanted(args: argparse.Namespace) -> Wanted:
    return Wanted(
        parse_lists(args.allow, args.deny),
        grouping(args.aggregate) if args.aggregate else (),
        Timeouts(args.active_timeout, args.inactive_timeout),
        HELD_INTERVALS * args.max_flows,
        args.bidirectional,
    )


class Flows:
    """Reads the generations of each interval and writes them as records."""

    def __init__(
        self,
        session: Session,
        sink: FlowSink,
        wanted: Wanted,
        metrics: Metrics | None = None,
        dns: DnsAnswers | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Start counting; DNS names come from `dns`, and how many packets count from `budget`."""
        self._dns, self.tick_s = dns, dns.tick_s if dns else float("inf")
        self._metrics, self._budget, self.live = metrics, budget, 0
        self._session, self._sink, self._wanted = session, sink, wanted
        self._waiting = FlowCache(wanted.timeouts, wanted.most_held, both_ways=wanted.bidirectional)
        # First of all: it takes what comes before the others have begun.
        self._other = Generations(session.loaded, "flow_other", "flow_other_key", "drop_count")
        self._routes = Routes()
        self._flows = FlowCounts(session.loaded)
        self._drops = Generations(session.loaded, "flow_drops", "flow_drop_key", "drop_count")
        self._held = list(self._flows.pieces())
        """Of places that nobody has named yet."""
        self._details = no_details()
        self._begin_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._unpaired: frozenset[tuple[int, int]] = frozenset()
        self.follow_devices()
        self.flows = self.packets = 0

    def write(self, *, last: bool = False) -> None:
        """Write everything counted since the last call.

        Flows of a namespace that nobody has named yet wait for the next call, unless it is the
        `last`: a pod's first packets are often faster than word of the pod.
        """
        start_s, sample_rate = time.monotonic(), self._flows.sample_rate
        if self._budget:
            self._flows.sample_rate = self._budget.next()
        flows = self._named(last=last)
        other = self._other.turn()
        new = Details(*self._flows.turn_details())
        details = added(self._details, new)
        drops, died = self._died(details)
        self.read_dns(last=last)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        flows = self._waiting.due(*flows, now_ns, everything=last)
        context = self._context()
        interval_ns = context.wall_ns(self._begin_ns), context.wall_ns(now_ns)
        self._begin_ns = now_ns
        self.packets += int(flows[1]["packets"].sum() + other[1]["packets"].sum())
        other = at_pods(other[0], context.node)[0], other[1]
        rest = (
            drop_table(*drops, context, interval_ns, died),
            other_table(*other, context, interval_ns[1], sample_rate),
        )
        details = self._placed(details)
        tables = chain(self._flow_tables(flows, context, details), rest)
        counted: Iterable[FlowTable] = ()
        if self._metrics and self._wanted.bidirectional:  # They tell what each pod sent and got.
            counted = chain(flow_tables(*flows, context, details), rest)
        del flows  # a million of them are 120 MB: only who makes tables of them needs them now
        self._write_tables(tables, context.node)
        if self._metrics:
            for table in counted:
                self._metrics.add(table)
            self._metrics.turned(time.monotonic() - start_s, self.live)
        self._keep(details, new)
        own = self._dns.losses() if self._dns else {}
        for source, count in self._session.new_losses(own).items():
            self._sink.lost(source, count)

    def _context(self) -> Context:
        context = self._session.context()
        routes = self._routes.of(context.node)
        names = self._dns.names if self._dns else None
        return replace(context, dns=names, ways=Ways(routes) if routes else None)

    def read_dns(self, *, last: bool = False) -> None:
        """Learn the names that pods have been told since the last call."""
        if self._dns:
            self._dns.read(last=last)

    def _died(self, details: Details) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """(keys, counts) of what died since the last call, and the entries to be looked through."""
        drops = self._drops.turn()
        if not len(drops[0]):
            return drops, details.entries[:0]
        # The kernel tells an entry before it counts the drop, but maybe after `details` were taken.
        return drops, np.concatenate((details.entries, self._flows.connections_so_far()))

    def _placed(self, details: Details) -> Details:
        """With keys at the pods' ends of pairs, as those of the flows."""
        keys, _ = at_pods(details.transit_keys, self._session.inventory.node)
        return replace(details, transit_keys=keys)

    def _flow_tables(
        self, flows: tuple[np.ndarray, np.ndarray], context: Context, details: Details
    ) -> Iterator[FlowTable]:
        """Flows of one direction, or connections."""
        if not self._wanted.bidirectional:
            return flow_tables(*flows, context, details)
        own = here(context.node, self._session.selection, self._unnamed())
        return connection_tables(*flows, context, details, own)

    def _keep(self, details: Details, new: Details) -> None:
        """Remember what those flows will need that are counted and not told."""
        keys = np.concatenate((self._unnamed(), self._waiting.keys))
        self._details = wanted_by(details, keys)
        if self._wanted.bidirectional:
            # One end may count a packet now, and the other one in the next interval.
            self._details = added(self._details, replace(no_details(), entries=new.entries))

    def _unnamed(self) -> np.ndarray:
        """(n,) flow_key: at places that nobody has named yet."""
        none = no_details().transit_keys
        return np.concatenate((none, *(keys for keys, _ in self._held)))

    def _write_tables(self, tables: Iterable[FlowTable], node: Node) -> None:
        """Write what is wanted of one interval, table by table: all at once would be large."""
        summed = []
        live = 0
        for table in tables:
            live += table.rows
            chosen = self._wanted.chosen(table, node)
            if self._wanted.aggregate:
                summed.append(chosen)
            else:
                self._tell(chosen)
            if self._metrics and not self._wanted.bidirectional:
                self._metrics.add(table)
        self.live = live
        if summed:
            self._tell(aggregate(concat(summed), self._wanted.aggregate))

    def _tell(self, table: FlowTable) -> None:
        self.flows += table.rows
        self._sink.write(table)

    def health(self) -> Health:
        """How the run is; from any thread."""
        waiting = {"name": sum(len(keys) for keys, _ in self._held), "timeout": len(self._waiting)}
        told = self.live, self._sink.thrown_away, self._flows.sample_rate
        return health(self._session, waiting, *told)

    def _named(self, *, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """What was counted and is told now: all that was held, and of the new what has a name."""
        inventory, unseen = self._session.inventory, last
        held, self._held = self._held, []
        told_keys, told_counts = [], []
        for index, (keys, counts) in enumerate(chain(held, self._flows.pieces())):
            moved, known = at_pods(keys, inventory.node)
            if unseen and (known == UNKNOWN).any():
                unseen = False
                inventory.scan()
                moved, known = at_pods(keys, inventory.node)
            hold = (known == UNKNOWN) & (index >= len(held)) & (not last)
            if hold.any():
                self._held.append((keys[hold], counts[hold]))
            told = ~hold & (known != NODE_ONLY)
            told_keys.append(moved[told])
            told_counts.append(counts[told])
        if self._held:
            inventory.poke()
        return joined(told_keys), joined(told_counts)

    def follow_devices(self) -> None:
        """Have packets counted on receipt at devices that are not one end of a pair."""
        places = unpaired_places(self._session.inventory.node)
        if places == self._unpaired:
            return
        self._session.fill("unpaired_places", "<u8", dict.fromkeys(places, 1))
        if places and not self._unpaired:
            self._session.loaded.attach("dev-rx")
        for device in self._session.inventory.node.devices.values():
            if device.key in places - self._unpaired and device.kind in UNHEARD_KINDS:
                say(
                    f"warning: netns {device.netns}: what {device.name} ({device.kind}) receives"
                    " passes no tracepoint: only what it sends is counted"
                )
        self._unpaired = places


class Reload:
    """SIGHUP asks for new files."""

    def __init__(self) -> None:
        self._asked = False
        self._before = signal.signal(signal.SIGHUP, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def taken(self) -> bool:
        """Whether it was asked since the last call."""
        asked, self._asked = self._asked, False
        return asked

    def close(self) -> None:
        """Let SIGHUP do what it did before."""
        signal.signal(signal.SIGHUP, self._before)


def _follow(session: Session, flows: Flows, sink: FlowSink, interval_s: float) -> None:
    """Write every interval, and between them look after files and systemd, until it ends."""
    notifier, reload = Notifier(), Reload()
    notifier.ready(f"counting flows on {session.inventory.node.name}")
    due_s = time.monotonic() + interval_s
    while session.running:
        tick_s = min(sink.tick_s, flows.tick_s, notifier.watchdog_s)
        session.wait(min(due_s - time.monotonic(), tick_s))
        flows.follow_devices()
        flows.read_dns()
        if time.monotonic() >= due_s:
            flows.write()
            due_s += interval_s
        if reload.taken():
            notifier.reloading()
            sink.reopen()
            notifier.ready("files reopened")
        sink.tick()
        notifier.alive()
    notifier.stopping()
    reload.close()


def _dns_answers(args: argparse.Namespace) -> Callable[[Session], DnsAnswers] | None:
    if not args.dns:
        return None
    from tracer.commands.flow_dns import DnsAnswers  # noqa: PLC0415 - its library is optional

    return DnsAnswers


def run(args: argparse.Namespace) -> ExitCode:
    """Run `tracer flows`."""
    wanted = _wanted(args)
    dns_answers = _dns_answers(args)
    metrics = open_metrics(args)
    sink = open_flows(flow_options.request(args, os.uname().nodename), say)
    with Session(
        "flows",
        _program(args),
        options.pod_selection(args),
        options.limits(args),
        concurrent=args.concurrent,
        cluster=options.cluster(args) or options.rule_services(args),
    ) as session:
        dns = dns_answers(session) if dns_answers else None
        budget = Budget(args.max_cpu, session.loaded.programs) if args.max_cpu else None
        flows = Flows(session, sink, wanted, metrics, dns, budget)
        with (
            closing(budget) if budget else nullcontext(),
            metrics.following(flows.health) if metrics else nullcontext(),
        ):
            session.announce(args.ready_file)
            _follow(session, flows, sink, args.interval)
            session.loaded.detach()
            flows.write(last=True)
        if dns:
            dns.close()
    sink.close()
    say(f"{flows.flows} flow records, {flows.packets} packets")
    incomplete = session.lost or session.loaded.degraded or sink.thrown_away
    return ExitCode.PARTIAL if incomplete else ExitCode.DONE
