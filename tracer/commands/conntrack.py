"""Conntrack's whole story: entries that come, change and go, why, and what it fails at.

Follows the connection tracking events of the node's network namespace and of every pod's, each
with the pods on both sides of NAT and the Service address before it. Counters of failures (table
full, insert failed, clash, early drop, invalid) are watched meanwhile.

A FILTER is made of terms: tcp udp icmp icmpv6 sctp ip ip6, host|src|dst ADDRESS, net CIDR,
port|sport|dport N, zone N, mark N, state NAME, status NAME; joined by `and`, `not` before one.

examples:
  tracer conntrack                              every event, until Ctrl-C
  tracer conntrack -n shop --event destroy      what ended in a namespace, and why
  tracer conntrack tcp port 443 and not state TIME_WAIT
  tracer conntrack --list udp status unreplied  entries that are there now
  tracer conntrack --top                        who fills the tables
  tracer conntrack --stats                      counters and limits
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.ct_failures import failure_records
from tracer.analysis.ct_filter import any_address, parse_filter
from tracer.analysis.ct_invalid import invalid_packets
from tracer.analysis.ct_records import EVENTS, FOUND, Describer, space_fields
from tracer.analysis.ct_stats import SYSCTLS, stats_records
from tracer.analysis.ct_top import Census, top_records
from tracer.analysis.selection import addresses_of
from tracer.commands import options
from tracer.ct_layout import Event
from tracer.ct_tracking import Tracker
from tracer.errors import ExitCode, TracerError
from tracer.inventory.namespaces import run_in
from tracer.inventory.sysctl import find_netns, netns_path, read_sysctls
from tracer.netfilter.ct_follow import Follower
from tracer.netfilter.ct_log import KernelLog
from tracer.session import Run, say
from tracer.sinks import open_sink
from tracer.wall_time import time_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    from tracer.analysis.selection import PodSelection
    from tracer.model import Node, Record
    from tracer.sinks import Sink

TICK_S = 1.0
"""How often losses and failures are looked at."""
PACE_S = 0.05
"""Least time between two reads: under load, batches instead of wake-ups."""
BUFFER_BYTES = 16 << 20
"""Of each namespace's socket: room for some 20,000 events; memory is used only while they wait."""
TOP = 20
EVENT_WORDS = ("new", "update", "destroy", "expect")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer conntrack`."""
    parser.add_argument("filter", nargs="*", metavar="FILTER", help="see above")
    options.add_pod_selection(parser)
    group = parser.add_argument_group("what")
    group.add_argument("--netns", metavar="NAME|INODE", help="the table of this netns only")
    group.add_argument(
        "--event", action="append", default=[], choices=EVENT_WORDS, help="repeatable; all"
    )
    group.add_argument("-c", "--count", type=options.positive("--count"), metavar="N",
                       help="stop after N events")  # fmt: skip
    group.add_argument(
        "--buffer", type=options.positive("--buffer"), default=BUFFER_BYTES, metavar="BYTES",
        help="receive buffer of each namespace's socket (default: %(default)s)",
    )  # fmt: skip
    shown = parser.add_argument_group("once, instead of following").add_mutually_exclusive_group()
    shown.add_argument("--list", action="store_true", help="the entries that are there now")
    shown.add_argument(
        "--top", type=options.positive("--top"), nargs="?", const=TOP, metavar="N",
        help="who fills the tables: the N greatest (default: 20)",
    )  # fmt: skip
    shown.add_argument("--stats", action="store_true", help="counters, limits and timeouts")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="format")
    options.add_run_options(parser, hooks=False)


class Chosen:
    """Which namespaces are looked into, and which of their entries are shown."""

    def __init__(self, args: argparse.Namespace, selection: PodSelection) -> None:
        """Read filter and namespace; TracerError where they are not understood."""
        self._matches = parse_filter(" ".join(args.filter))
        self._selection = selection
        self._netns = find_netns(args.netns) if args.netns else None
        self._addresses: frozenset[bytes] = frozenset()
        self._spaces: frozenset[int] = frozenset()

    def update(self, node: Node) -> dict[int, str]:
        """Look at the node; returns the namespaces to look into, inode → path."""
        pods = [pod for pod in node.pods.values() if self._selection.matches(pod)]
        self._addresses = addresses_of(pods)
        self._spaces = frozenset(pod.netns for pod in pods if pod.netns and not pod.host_network)
        if self._netns is not None:
            wanted = {self._netns}
        elif self._selection.everything:
            wanted = {netns for netns, space in node.namespaces.items() if not space.gone}
        else:
            wanted = {node.netns, *self._spaces}
        paths = {netns: netns_path(node.namespaces.get(netns), netns) for netns in wanted}
        return {netns: path for netns, path in paths.items() if path}

    def mask(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which of (n,) ENTRY are shown; all of one namespace."""
        shown = self._matches(rows)
        if self._selection.everything or not len(rows) or int(rows["netns"][0]) in self._spaces:
            return shown
        return shown & any_address(rows, self._addresses)


class Conntrack:
    """Follows, and writes what it sees."""

    def __init__(self, run: Run, args: argparse.Namespace, sink: Sink, chosen: Chosen) -> None:
        """Follow every chosen namespace from now on."""
        self._run, self._sink, self._chosen = run, sink, chosen
        wanted = args.event or EVENT_WORDS
        self._events = [EVENTS.index(name) for name in EVENTS if name.split("-")[0] in wanted]
        groups = {"new", "destroy", *wanted} | ({"expect-destroy"} if "expect" in wanted else set())
        self.tracker = Tracker(groups, args.buffer)
        self._log = KernelLog()
        self._describer = Describer(run.node)
        self._version = -1
        self.shown = 0
        self.failures = 0

    def follow(self) -> None:
        """Follow the namespaces that there are now."""
        node = self._run.node
        if node.version == self._version:
            return
        is_first, self._version = self._version < 0, node.version
        self._describer.update(node)
        problems = self.tracker.follow(self._chosen.update(node))
        _tell_problems(problems, self.tracker.follower, fatal=is_first)

    def read(self, *, last: bool = False) -> bool:
        """Write what waits, the `last` time all, up to the count limit; whether there was any."""
        have = False
        for batch in self.tracker.read(last=last):
            mask = self._chosen.mask(batch.rows) & np.isin(batch.rows["event"], self._events)
            rows = np.flatnonzero(mask)
            deaths = {
                index: batch.deaths[row]
                for index, row in enumerate(rows.tolist())
                if row in batch.deaths
            }
            self._write(self._describer.records(batch.rows[rows], batch.born_ns[rows], deaths))
            have = have or bool(len(batch.rows))
        return have

    def _write(self, records: list[Record]) -> None:
        limit = self._run.limits.count
        if limit is not None:
            records = records[: limit - self.shown]
        if records:
            self._sink.write(records)
        self.shown += len(records)
        if limit is not None and self.shown >= limit:
            self._run.stop()

    def look(self, *, last: bool = False) -> None:
        """Tell losses, read the tables again where there were some, and tell failures."""
        if lost := self.tracker.new_losses():
            self._sink.lost("conntrack events", lost)
        node, now = self._run.node, time.time_ns()
        for netns, count, correction in self.tracker.resynchronise(last=last):
            record: Record = {
                "type": "resync",
                "time": time_text(now),
                **space_fields(node, netns),
                "lost": count,
                "entries": correction.alive,
                "births_lost": len(correction.found),
                "deaths_lost": correction.gone,
            }
            self._sink.write([record])
            found = correction.found[self._chosen.mask(correction.found)]
            if Event.NEW in self._events:
                self._write(self._describer.records(found, event=FOUND))
        invalid = invalid_packets(self._log.read(), node, now)
        chosen = np.flatnonzero(self._chosen.mask(invalid.rows)).tolist()
        self._sink.write([invalid.records[index] for index in chosen])
        for netns, grown in self.tracker.failures(last=last):
            fill = self.tracker.follower.count(netns)
            records = failure_records(node, netns, grown, fill, now)
            self.failures += len(records)
            self._sink.write(records)

    def end(self) -> dict[str, int]:
        """Write what is left and the end record; returns what was lost, by source."""
        self.look(last=True)
        self.read(last=True)
        totals = self.tracker.totals
        lost = {
            "conntrack events": self.tracker.lost,
            "births": totals.pop("births_lost", 0),
            "deaths": totals.pop("deaths_lost", 0),
        }
        if self._log.lost:
            lost["reads of the kernel's log"] = self._log.lost
        lost = {source: count for source, count in lost.items() if count}
        counts = {name: totals.get(name, 0) for name in ("births", "deaths", "alive")}
        self._sink.write([{"type": "end", **counts, "shown": self.shown, "lost": lost}])
        self.tracker.close()
        self._log.close()
        return lost


def _follow(run: Run, args: argparse.Namespace, chosen: Chosen, sink: Sink) -> ExitCode:
    conntrack = Conntrack(run, args, sink, chosen)
    conntrack.follow()
    run.begin()
    _warn(run.node, conntrack.tracker.follower.followed)
    run.tell_warnings()
    count = len(conntrack.tracker.follower.followed)
    run.ready(f"ctnetlink events of {count} network namespaces", args.ready_file)
    tick_s = time.monotonic()
    while run.running:
        run.wait(TICK_S, conntrack.tracker.follower.fileno())
        conntrack.follow()
        if conntrack.read() and not conntrack.tracker.follower.has_more:
            run.wait(PACE_S)
        if time.monotonic() - tick_s >= TICK_S:
            conntrack.look()
            tick_s = time.monotonic()
    return ExitCode.PARTIAL if conntrack.end() else ExitCode.DONE


def _tell_problems(problems: list[str], follower: Follower, *, fatal: bool) -> None:
    """Say which namespaces cannot be looked into; TracerError where that is all, if `fatal`."""
    if fatal and not follower.followed:
        raise TracerError(
            f"conntrack: {problems[0] if problems else 'no such network namespace'}",
            "it takes root (CAP_NET_ADMIN in the namespace) and a kernel with ctnetlink",
        )
    for problem in problems:
        say(f"warning: conntrack of {problem}: its entries are not shown")


def _warn(node: Node, followed: Collection[int]) -> None:
    """Say what the kernel keeps from us by its settings, on the node if that is followed."""
    netns = node.netns if node.netns in followed else next(iter(followed))
    settings = read_sysctls(node, netns, SYSCTLS)
    prefix = "net.netfilter.nf_conntrack_"
    for name, missing in (
        ("acct", "packets and bytes are not counted"),
        ("timestamp", "times are those of reading"),
    ):
        if settings.get(f"{prefix}{name}") == "0":
            say(f"note: {prefix}{name} is 0: {missing}")
    if settings.get(f"{prefix}events") == "0":
        say(f"warning: {prefix}events is 0: the kernel makes no conntrack events")


def _once(
    run: Run, args: argparse.Namespace, chosen: Chosen, show: Callable[..., Iterator[list[Record]]],
    sink: Sink,
) -> ExitCode:  # fmt: skip
    """Show what there is now."""
    node = run.node
    follower = Follower(run_in, (), args.buffer)
    _, problems = follower.update(chosen.update(node))
    _tell_problems(problems, follower, fatal=True)
    run.tell_warnings()
    for records in show(args, node, follower, chosen):
        sink.write(records)
    follower.close()
    return ExitCode.PARTIAL if problems else ExitCode.DONE


def _list(
    args: argparse.Namespace, node: Node, follower: Follower, chosen: Chosen
) -> Iterator[list[Record]]:
    describer, left = Describer(node), args.count
    for netns in follower.followed:
        for rows in follower.dump(netns):
            some = rows[chosen.mask(rows)][:left]
            left = None if left is None else left - len(some)
            yield describer.records(some)


def _top(
    args: argparse.Namespace, node: Node, follower: Follower, chosen: Chosen
) -> Iterator[list[Record]]:
    counts = []
    for netns in follower.followed:
        census = Census(netns)
        for rows in follower.dump(netns):
            census.count(rows[chosen.mask(rows)])
        if census.entries or netns == node.netns:
            counts.append(census)
    limits = {one.netns: follower.count(one.netns) for one in counts}
    yield top_records(node, counts, limits, args.top)


def _stats(
    _args: argparse.Namespace, node: Node, follower: Follower, _chosen: Chosen
) -> Iterator[list[Record]]:
    for netns in follower.followed:
        sysctls = read_sysctls(node, netns, SYSCTLS)
        yield stats_records(node, netns, follower.cpus(netns), sysctls)


def run(args: argparse.Namespace) -> ExitCode:
    """Run `tracer conntrack`."""
    selection = options.pod_selection(args)
    chosen = Chosen(args, selection)
    shows = {"list": _list, "top": _top, "stats": _stats}
    show = next((shows[name] for name in shows if getattr(args, name)), None)
    sink = open_sink("conntrack" if args.output == "text" else "json", None)
    concurrent = args.concurrent or show is not None
    with (
        contextlib.closing(sink),
        Run(
            "conntrack",
            selection,
            options.limits(args),
            concurrent=concurrent,
            cluster=options.cluster(args) or options.rule_services(args),
        ) as running,
    ):
        running.scan()
        if show:
            return _once(running, args, chosen, show, sink)
        return _follow(running, args, chosen, sink)
