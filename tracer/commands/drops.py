"""Every packet the kernel drops, live: which pod lost it, why and where.

examples:
  tracer drops                                   everything, until Ctrl-C
  tracer drops --namespace shop --count 20       twenty drops of one namespace's pods
  tracer drops --pod shop/web-1 --stack          with the kernel's stack
  tracer drops 'tcp port 80 and host 10.0.0.7'   a tcpdump expression, run in the kernel
  tracer drops --reason NETFILTER_DROP -o json | jq -r '."k8s.pod.name"'
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.analysis.drops import drop_record
from tracer.analysis.frames import frames
from tracer.analysis.rule_fields import told_by_rules
from tracer.attribution.naming import RuleNaming, rule_naming
from tracer.commands import options
from tracer.commands.drop_counts import DropCounts
from tracer.commands.file_options import add_capture_rotation, open_capture
from tracer.commands.metrics import add_metrics, health, open_metrics
from tracer.commands.services import add_service, with_service
from tracer.errors import ExitCode, TracerError
from tracer.explaining import Explainer
from tracer.inventory.sysctl import find_netns
from tracer.kernel.hooks import hooks_of
from tracer.kernel.pcap import match_function
from tracer.kernel.program import Program
from tracer.kernel.ring import CallbackRing, MappedRing, open_ring
from tracer.layout import layout
from tracer.recording import Recorder
from tracer.session import ONE, Session, say
from tracer.sinks import open_sink

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from tracer.metrics.exporter import Health
    from tracer.model import Record
    from tracer.recording.rules import EventKey
    from tracer.sinks import Sink
    from tracer.sinks.pcapng import Pcapng

TICK_S = 1.0
"""How often losses and counts are looked at."""
PACE_S = 0.02
"""Least time between two reads of the ring: under load, batches instead of wake-ups."""
DEFAULT_RATE = 1000
NETFILTER = "NETFILTER_DROP"
"""The reason of which drops that are not shown are told by rule."""
READERS = {"mmap": MappedRing, "callback": CallbackRing}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer drops`."""
    parser.add_argument(
        "filter", nargs="*", metavar="FILTER", help="tcpdump expression, evaluated in the kernel"
    )
    options.add_pod_selection(parser)
    add_service(parser)
    group = parser.add_argument_group("what")
    group.add_argument("--netns", metavar="NAME|INODE", help="packets that die in this netns")
    group.add_argument("-i", "--interface", metavar="NAME", help="packets that die at this device")
    group.add_argument(
        "--reason", action="append", default=[], metavar="REASON", help="drop reason; repeatable"
    )
    group.add_argument("--stack", action="store_true", help="show the kernel's stack")
    group.add_argument(
        "--rate-limit",
        type=int,
        default=DEFAULT_RATE,
        metavar="N",
        help="show at most N drops a second, reason and netns, counting all; 0: show all"
        " (default: %(default)s)",
    )
    group.add_argument("-c", "--count", type=options.positive("--count"), metavar="N",
                       help="stop after N drops shown")  # fmt: skip
    parser.add_argument(
        "-o", "--output", choices=("text", "json", "hubble"), default="text", help="format"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE.pcapng", help="write the packets for Wireshark, too"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="keep everything, for `tracer show FILE`"
    )
    add_capture_rotation(parser)
    options.add_rules(parser, default="read")
    add_metrics(parser)
    options.add_run_options(parser)
    group.add_argument("--reader", choices=READERS, help="how to read the ring buffer, for tests")


def _program(args: argparse.Namespace) -> Program:
    """The program for these options."""
    defines = {"WITH_DROP_EVENTS": "", "DROP_RATE": str(args.rate_limit)}
    if args.pod or args.namespace or args.selector:
        defines["SELECT_PODS"] = ""
    if args.netns:
        defines["SELECT_NETNS"] = f"{find_netns(args.netns)}U"
    if args.interface:
        defines["SELECT_INTERFACE"] = options.interface_words(args.interface)
    if args.reason:
        defines["SELECT_REASONS"] = ""
    pcap = ""
    if args.filter:
        defines["SELECT_PCAP"] = ""
        pcap = match_function(" ".join(args.filter))
    hooks = tuple(hook.name for hook in hooks_of("drops"))
    return Program(hooks, defines, pcap, attach=options.attach_ways(args))


class Drops:
    """Turns ring batches into records, with their explanations, into a sink."""

    def __init__(
        self,
        session: Session,
        sink: Sink,
        capture: Pcapng | None,
        recorder: Recorder | None,
        rules: RuleNaming | None,
        *,
        with_stack: bool,
    ) -> None:
        """Write the drops of `session` to `sink`, their packets to `capture`, all to `recorder`."""
        self._session, self._sink, self._capture = session, sink, capture
        self._recorder, self._rules, self._with_stack = recorder, rules, with_stack
        self.shown = 0
        found = (recorder.evidence,) if recorder else ()
        self._explainer = Explainer(lambda: session.node, *found)
        self._events: dict[int, EventKey] = {}
        """Of records that are not shown yet, for the recorder."""

    def write(self, events: np.ndarray) -> None:
        """Show one batch, up to the count limit."""
        limit = self._session.limits.count
        if limit is not None:
            events = events[: limit - self.shown]
        context = self._session.context()
        known = context.node.namespaces
        if any(netns not in known for netns in set(events["netns"].tolist()) if netns):
            self._session.inventory.poke()
        records = [drop_record(event, context, with_stack=True) for event in events]
        self.shown += len(records)
        if self._recorder:
            self._recorder.record("drops", events, context)
            keys = zip(events["time_ns"].tolist(), events["skb"].tolist(), strict=True)
            self._events.update(zip(map(id, records), keys, strict=True))
        self._show(self._rules.add(records, list(events)) if self._rules else records)
        if self._capture:
            self._capture.write(frames("drops", events, context))
        if limit is not None and self.shown >= limit:
            self._session.stop()

    def show_named(self) -> None:
        """Show the drops whose rules have become known since."""
        if self._rules:
            self._show(self._rules.named())

    def show_last(self) -> None:
        """Show what is left, once there will be no more drops."""
        if self._rules:
            self._show(self._rules.last())

    def _show(self, records: list[Record]) -> None:
        if self._recorder:
            told = [(self._events.pop(id(record)), told_by_rules(record)) for record in records]
            self._recorder.rules([(key, fields) for key, fields in told if fields])
        if records:
            self._sink.write([self._explained(record) for record in records])

    def _explained(self, record: Record) -> Record:
        record = self._explainer.explain(record)
        if not self._with_stack:
            del record["drop.stack"]
        return record

    def tick(self) -> None:
        """To be called now and then: tells losses, and rotates by age."""
        self.tell_losses()
        if self._capture:
            self._capture.tick()

    def tell_losses(self) -> None:
        """Report what was lost since the last look."""
        own = self._rules.losses if self._rules else {}
        for source, count in self._session.new_losses(own).items():
            self._sink.lost(source, count)
            if self._recorder:
                self._recorder.lost(source, count)

    def summarise(self, records: list[Record]) -> None:
        """Write exact totals, `records`, and the end record."""
        hidden = any(
            record["packets"] > record["shown"]
            for record in records
            if record["drop.reason"] == NETFILTER
        )
        rules = self._rules.sums.records() if self._rules and hidden else []
        self.tell_losses()
        end: Record = {
            "type": "end",
            "packets": sum(record["packets"] for record in records),
            "shown": self.shown,
            "lost": self._session.lost,
        }
        self._sink.write([*records, *rules, end])


def _fill_reasons(session: Session, wanted: list[str]) -> None:
    """Put the chosen reasons into the kernel; TracerError names one that does not exist."""
    numbers = {name.upper(): value for value, name in session.loaded.drop_reasons.items()}
    reasons = session.map("selected_reasons", "<u4", "<u4")
    for text in wanted:
        name = text.upper().removeprefix("SKB_DROP_REASON_")
        if name not in numbers:
            raise TracerError(
                f"reason '{text}': this kernel has none of that name"
                if numbers
                else f"reason '{text}': this kernel tells no drop reasons (5.17 and later do)",
                "known: " + ", ".join(sorted(numbers)[:6]) + ", …" if numbers else "",
            )
        reasons.update(numbers[name].to_bytes(4, "little"), ONE)


def _follow(
    session: Session,
    args: argparse.Namespace,
    drops: Drops,
    rules: RuleNaming | None,
    counts: DropCounts,
) -> None:
    """Until the run ends: read batches, tell losses; then whatever is left in the ring."""
    info, fd = session.loaded.maps["drop_events"]
    dtype = layout().structs["drop_event"]
    if args.reader:
        ring = READERS[args.reader](fd, dtype, info.max_entries)
    else:
        ring, warning = open_ring(fd, dtype, info.max_entries)
        if warning:
            say(f"warning: {warning}")
    session.announce(args.ready_file)
    tick_s = time.monotonic()
    while session.running:
        session.wait(TICK_S, ring.fileno(), *(rules.descriptors if rules else ()))
        if rules:
            rules.follow()
            rules.listen()
        events = ring.take()
        if len(events):
            drops.write(events)
            session.wait(PACE_S)
        drops.show_named()
        if time.monotonic() - tick_s >= TICK_S:
            drops.tick()
            counts.take(drops.shown)
            tick_s = time.monotonic()
    session.loaded.detach()
    rest = ring.take()
    if len(rest):
        drops.write(rest)
    drops.show_last()
    ring.close()


def _health(session: Session, rules: RuleNaming | None) -> Health:
    return health(session, {"rules": rules.waiting if rules else 0})


def run(args: argparse.Namespace) -> ExitCode:
    """Run `tracer drops`."""
    if args.rate_limit < 0:
        raise TracerError(f"--rate-limit '{args.rate_limit}': below zero", "0 shows every drop")
    selection = options.pod_selection(args)
    metrics = open_metrics(args)
    sink = open_sink(args.output, None)
    capture = open_capture(args)
    asked = {"command": "drops", "filter": args.filter, "rules": args.rules}
    recorder = Recorder(args.record, asked) if args.record else None
    cluster = options.cluster(args)
    args.filter = with_service(args, cluster)
    with Session(
        "drops",
        _program(args),
        selection,
        options.limits(args),
        concurrent=args.concurrent,
        cluster=cluster or options.rule_services(args),
    ) as session:
        _fill_reasons(session, args.reason)
        with rule_naming(session, args.rules, " ".join(args.filter), say) as rules:
            drops = Drops(session, sink, capture, recorder, rules, with_stack=args.stack)
            look = partial(_health, session, rules)
            with metrics.following(look) if metrics else nullcontext():
                counts = DropCounts(session, metrics)
                _follow(session, args, drops, rules, counts)
            drops.summarise(counts.summary())
    for output in (sink, capture, recorder):
        if output:
            output.close()
    return ExitCode.PARTIAL if session.lost or session.loaded.degraded else ExitCode.DONE
