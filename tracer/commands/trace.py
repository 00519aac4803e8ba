"""Follow packets from hop to hop: which way they went, what changed, and where the time went.

A packet is chosen at the first hop where the selection holds, and told at every later hop of its
data: devices, netfilter hooks, conntrack, NAT, sockets, or its death.

examples:
  tracer trace --pod shop/web-1 --count 5        five packets of a pod, hop by hop
  tracer trace 'tcp port 80' --brief             one line a packet
  tracer trace --namespace shop --dropped        only those that died, with the way they came
  tracer trace --pod web-1 --slow 2ms            only those that took longer
  tracer trace --sample 1/100 -o json            one packet in a hundred, for jq
  tracer trace --pod web-1 --write web.pcapng    for Wireshark, with pods and verdicts as comments
  tracer trace --record web.rec                  to look at later: tracer show web.rec
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.bursts import cut_by
from tracer.analysis.frames import path_frames
from tracer.analysis.latency import Latency
from tracer.analysis.paths import Assembler, path_records
from tracer.analysis.verdict import duration_ns
from tracer.attribution.held import HeldPaths
from tracer.attribution.naming import rule_naming
from tracer.commands import options
from tracer.commands.file_options import add_capture_rotation, open_capture
from tracer.commands.services import add_service, with_service
from tracer.errors import ExitCode
from tracer.explaining import Explainer
from tracer.followers import Followers, deferred, wanted_hooks
from tracer.kernel.pcap import accepts_any, match_function
from tracer.kernel.program import Program
from tracer.kernel.ring import open_ring
from tracer.layout import hop_dtype, layout
from tracer.recording import Recorder
from tracer.session import Session, say
from tracer.sinks import open_sink
from tracer.tc_reading import TcReader

if TYPE_CHECKING:
    import argparse

    from tracer.analysis.bursts import Schedule
    from tracer.analysis.drops import Context
    from tracer.analysis.paths import Path as PacketPath
    from tracer.attribution.naming import RuleNaming
    from tracer.kernel.ring import RecordReader
    from tracer.model import Record

TICK_S = 0.25
"""How often unfinished paths and losses are looked at."""
PACE_S = 0.02
"""Least time between two reads of the rings: under load, batches instead of wake-ups."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer trace`."""
    parser.add_argument(
        "filter", nargs="*", metavar="FILTER", help="tcpdump expression, before or after NAT"
    )
    options.add_pod_selection(parser)
    add_service(parser)
    options.add_path_selection(parser)
    options.add_path_output(parser)
    add_capture_rotation(parser)
    options.add_rules(parser, default=options.NO_RULES)
    options.add_standby(parser)
    options.add_run_options(parser)
    parser.add_argument(
        "--snaplen",
        type=options.snaplen,
        default=layout().constants["SNAPLEN"],
        metavar="BYTES",
        help="of each hop's packet, Ethernet header included (%(default)s)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="keep everything, for `tracer show FILE`"
    )


def _program(args: argparse.Namespace) -> Program:
    """The program for these options."""
    defines = {"WITH_TRACE": ""}
    if args.pod or args.namespace or args.selector:
        defines["SELECT_PODS"] = ""
    if args.sample:
        defines["SAMPLE"] = ""
    for name, value in (
        ("SELECT_TCP_FLAGS", args.tcp_flags),
        ("FIRST_PACKETS", args.first),
        ("SNAPLEN", args.snaplen),
    ):
        if value is not None:
            defines[name] = str(value)
    pcap = ""
    if args.filter:
        defines["SELECT_PCAP"] = ""
        if args.inner:
            defines["SELECT_INNER"] = ""
        pcap = match_function(" ".join(args.filter))
    hooks, waiting = wanted_hooks(args.standby), deferred(args.standby)
    return Program(hooks, defines, pcap, waiting, options.attach_ways(args))


class Outputs:
    """Everything a trace is written to; opened before anything is loaded."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        """Open what was asked for, to be closed with `stack`; TracerError for a bad path."""
        self.sink = open_sink("brief" if args.brief else args.output, None)
        self.capture = open_capture(args)
        self.recorder = None
        if args.record:
            asked = {"command": "trace", "filter": args.filter, "rules": args.rules or "off"}
            self.recorder = Recorder(args.record, asked)
        for output in (self.sink, self.capture, self.recorder):
            if output:
                stack.callback(output.close)


class Trace:
    """Reads both rings, puts paths together and writes those that were asked for."""

    def __init__(
        self,
        session: Session,
        outputs: Outputs,
        args: argparse.Namespace,
        rules: RuleNaming | None,
    ) -> None:
        """Follow the packets of `session` into `outputs`."""
        self._session, self._outputs, self._args = session, outputs, args
        self._hops, self._drops = (
            _open(session, name, dtype)
            for name, dtype in (
                ("hops", hop_dtype(args.snaplen)),
                ("drop_events", layout().structs["drop_event"]),
            )
        )
        self._assembler = Assembler()
        self._latency = Latency()
        recorder = outputs.recorder
        found = (recorder.evidence,) if recorder else ()
        self._explainer = Explainer(lambda: session.node, *found)
        self._rules = rules
        self._held = HeldPaths(rules, self._explainer.explain) if rules else None
        self._tc = TcReader()
        self.packets = self.shown = self._read_ns = 0
        self.whole_since_ns = 0
        """CLOCK_BOOTTIME since when every hook is attached, or -1 (on standby)."""
        self.bursts: Schedule | None = None
        """In which packets are sampled, if they are."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What epoll waits for."""
        traced = self._rules.descriptors if self._rules else ()
        return self._hops.fileno(), self._drops.fileno(), *traced

    def read(self) -> bool:
        """Take what waits in the rings; True when something did."""
        self._read_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        # A drop is told after its hop: read in this order, no drop comes without its hop.
        drops, hops = self._drops.take(), self._hops.take()
        if self._rules:
            self._rules.follow()
            self._rules.listen()
        if not len(hops) and not len(drops):
            return False
        self._assembler.add(hops, drops)
        namespaces = [int(netns) for netns in np.unique(hops["netns"]) if netns]
        for warning in self._tc.look(self._session.node, namespaces):
            say(f"warning: {warning}")
        if self._outputs.recorder:
            context = self._context()
            self._outputs.recorder.record("hops", hops, context)
            self._outputs.recorder.record("drops", drops, context)
        known = self._session.inventory.node.namespaces
        if any(netns not in known for netns in namespaces):
            self._session.inventory.poke()
        return True

    def _context(self) -> Context:
        context = self._session.context()
        return replace(context, node=self._tc.over(context.node))

    def write(self, *, everything: bool = False) -> None:
        """Write the paths that are complete, or all that are left."""
        # Of what happened since, a reader that is behind knows nothing: no packet is quiet yet.
        now_ns = self._read_ns
        self._assembler.note_losses(self._session.lost.get("hops", 0), now_ns)
        paths = self._assembler.take(now_ns, everything=everything)
        self.packets += len(paths)
        context = self._context()
        paths = [path for path in paths if self._wanted(path, context)]
        if self._held:
            paths = self._held.add(paths, context) + self._held.named(last=everything)
        if self._session.limits.count is not None:
            paths = paths[: self._session.limits.count - self.shown]
        if not paths:
            return
        records = self._records(paths, context)
        self._latency.add(records)
        if self._outputs.capture:
            self._outputs.capture.write(path_frames(paths, context))
        if not self._args.summary:
            self._outputs.sink.write(records)
        self.shown += len(records)
        if self.shown == self._session.limits.count:
            self._session.stop()

    def _records(self, paths: list[PacketPath], context: Context) -> list[Record]:
        records = path_records(paths, context, self._explainer.explain)
        if self._held:
            rules = self._held.complete(paths, records)
            if self._outputs.recorder:
                self._outputs.recorder.rules(rules)
        for path, record in zip(paths, records, strict=True):
            told = [record.get("incomplete"), self._unseen(path, record)]
            if any(told):
                record["incomplete"] = "; ".join(filter(None, told))
        return records

    def _unseen(self, path: PacketPath, record: Record) -> str:
        """Why hooks were not attached during all of a packet's way; empty where they were."""
        if self.whole_since_ns < 0 or path.begin_ns < self.whole_since_ns:
            return "it came while the hooks were on standby"
        if not self.bursts:
            return ""
        begin_ns, end_ns = path.begin_ns, path.begin_ns + record["duration_ns"]
        ended = record["verdict"] != "unknown"
        return cut_by(self.bursts.last, begin_ns, end_ns, sent=path.starts_here, ended=ended)

    def _wanted(self, path: PacketPath, context: Context) -> bool:
        if self._args.dropped and not path.died:
            return False
        slow_s: float | None = self._args.slow
        return slow_s is None or duration_ns(path, context) > slow_s * 1e9

    def tick(self) -> None:
        """Tell losses, write what is complete, and rotate by age."""
        self.tell_losses()
        self.write()
        if self._outputs.capture:
            self._outputs.capture.tick()

    def tell_losses(self) -> None:
        """Report what was lost since the last look."""
        own = self._rules.losses if self._rules else {}
        for source, count in self._session.new_losses(own).items():
            self._outputs.sink.lost(source, count)
            if self._outputs.recorder:
                self._outputs.recorder.lost(source, count)

    def summarise(self) -> None:
        """Write the latencies and the end record."""
        lost = self._session.lost
        end = {"type": "end", "packets": self.packets, "shown": self.shown, "lost": lost}
        if self.bursts and self.bursts.count:
            end["bursts"] = self.bursts.count
            if self.bursts.rate:
                end["sample.rate"] = round(self.bursts.rate, 1)
        self._outputs.sink.write([*self._latency.records(), end])


def _open(session: Session, ring: str, dtype: np.dtype[np.void]) -> RecordReader:
    info, fd = session.loaded.maps[ring]
    reader, warning = open_ring(fd, dtype, info.max_entries)
    if warning:
        say(f"warning: {warning}")
    return reader


def _follow(session: Session, args: argparse.Namespace, trace: Trace) -> None:
    ip_only = accepts_any(" ".join(args.filter), "ip or ip6")
    behind = Followers(
        session.loaded,
        session.selection,
        args.standby,
        ip_only=ip_only,
        sample=args.sample or 1,
    )
    trace.bursts = behind.bursts
    for line in behind.attend(session.inventory.node, chosen=False):
        say(line)
    session.announce(args.ready_file)
    while session.running:
        session.wait(min(TICK_S, behind.due_s), *trace.descriptors)
        chosen = trace.read()
        for line in behind.attend(session.inventory.node, chosen=chosen):
            say(line)
        trace.whole_since_ns = behind.whole_since_ns
        if chosen:
            session.wait(PACE_S)
        trace.tick()
    session.loaded.detach()
    behind.close()
    trace.read()
    trace.tell_losses()
    trace.write(everything=True)


def run(args: argparse.Namespace) -> ExitCode:
    """Run `tracer trace`."""
    with ExitStack() as stack:
        cluster = options.cluster(args)
        args.filter = with_service(args, cluster)
        outputs = Outputs(args, stack)
        with Session(
            "trace",
            _program(args),
            options.pod_selection(args),
            options.limits(args),
            concurrent=args.concurrent,
            cluster=cluster or options.rule_services(args),
        ) as session:
            with rule_naming(session, args.rules, " ".join(args.filter), say) as rules:
                trace = Trace(session, outputs, args, rules)
                _follow(session, args, trace)
            trace.summarise()
    return ExitCode.PARTIAL if session.lost or session.loaded.degraded else ExitCode.DONE
