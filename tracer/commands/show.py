"""Render a recording again, anywhere: no root, no BPF, not the node it was made on.

Takes the selection and output options of `tracer trace`. A packet is shown with its whole way
when all that was asked for holds at one of its hops.

examples:
  tracer show web.rec                            everything that was recorded
  tracer show web.rec --dropped 'tcp port 80'    what died of it, filtered afterwards
  tracer show web.rec --pod shop/web-1 -o json   for jq
  tracer show web.rec --write web.pcapng         for Wireshark
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tracer.analysis.drops import drop_record
from tracer.analysis.explain import explain
from tracer.analysis.frames import frames, path_frames
from tracer.analysis.latency import Latency
from tracer.analysis.paths import Assembler, path_records
from tracer.analysis.rule_fields import note_death
from tracer.analysis.rule_hops import hook_hops
from tracer.analysis.sift import Sieve, died_for, wanted_rows
from tracer.analysis.verdict import duration_ns
from tracer.commands import options
from tracer.commands.services import add_service, with_recorded_service
from tracer.errors import ExitCode, TracerError
from tracer.kernel.pcap import compiled, matches
from tracer.layout import layout
from tracer.recording import Batch, DamagedError, Evidence, Loss, Recording, Rules
from tracer.session import say
from tracer.sinks import open_sink
from tracer.sinks.pcapng import Pcapng
from tracer.wall_time import NS_PER_S

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from tracer.analysis.drops import Context
    from tracer.analysis.paths import Path as PacketPath
    from tracer.model import Node, Record
    from tracer.sinks import Sink


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer show`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="made by --record of trace, drops")
    parser.add_argument(
        "filter",
        nargs="*",
        default=[],
        metavar="FILTER",
        help="tcpdump expression, before or after NAT",
    )
    options.add_pod_selection(parser)
    add_service(parser)
    options.add_path_selection(parser)
    group = parser.add_argument_group("where and why")
    group.add_argument("--netns", default="", metavar="NAME|INODE", help="packets seen there")
    group.add_argument("-i", "--interface", default="", metavar="NAME", help="packets seen at it")
    group.add_argument(
        "--reason", action="append", default=[], metavar="REASON", help="dropped for it; repeatable"
    )
    group.add_argument("--stack", action="store_true", help="of drops: show the kernel's stack")
    options.add_path_output(parser)


class Renderer(Protocol):
    """What makes records of one kind of recording."""

    packets: int
    """Packets that the recording holds, selected or not."""
    capture: Pcapng | None
    """Where the packets themselves go, too."""

    def add(self, batch: Batch) -> None:
        """Take the next batch."""

    def records(self, *, everything: bool = False) -> list[Record]:
        """Records of what is complete and was asked for; at the end, of all that is left."""

    def lost(self, loss: Loss) -> None:
        """Take note of a loss."""


class Paths:
    """Recordings of `tracer trace`: packets with their whole way."""

    def __init__(self, args: argparse.Namespace, sieve: Sieve, known: Known) -> None:
        """`known` explains deaths."""
        self._args, self._sieve, self._known = args, sieve, known
        self._assembler = Assembler()
        self._context: Context | None = None
        self._none = {
            name: np.empty(0, layout().structs[f"{name}_event"]) for name in ("hop", "drop")
        }
        self._seen_of: Counter[bytes] = Counter()
        self._now_ns = self._lost_hops = self.packets = 0
        self.capture: Pcapng | None = None

    def add(self, batch: Batch) -> None:
        """Hand hops and drops to the assembler; time goes on as it did."""
        self._context = batch.context
        hops = batch.events if batch.kind == "hops" else self._none["hop"]
        drops = batch.events if batch.kind == "drops" else self._none["drop"]
        self._assembler.add(hops, drops)
        self._now_ns = max(self._now_ns, int(batch.events["time_ns"].max()))

    def lost(self, loss: Loss) -> None:
        """Hops that are missing make the packets of that time incomplete."""
        if loss.source == "hops":
            self._lost_hops += loss.count
            self._assembler.note_losses(self._lost_hops, self._now_ns)

    def records(self, *, everything: bool = False) -> list[Record]:
        """Packet records; `--first` counts, as in the kernel, before `--slow` and `--dropped`."""
        if self._context is None:
            return []
        paths = self._assembler.take(self._now_ns, everything=everything)
        self.packets += len(paths)
        chosen = self._chosen(paths, self._context)
        if self.capture:
            self.capture.write(path_frames(chosen, self._context))
        records = path_records(chosen, self._context, self._known.explained)
        for path, record in zip(chosen, records, strict=True):
            self._note_rules(path, record, self._context)
        return records

    def _note_rules(self, path: PacketPath, record: Record, context: Context) -> None:
        """Put in what the recorder found of the rules behind a packet's death and its hops."""
        rules = self._known.rules
        if not rules:
            return
        for hop in hook_hops(path):
            if told := rules.of_hop(hop.event):
                record["hops"][hop.at]["rules"] = told
        if path.drop is not None and record["verdict"] == "dropped":
            fields = rules.of_drop((int(path.drop["time_ns"]), int(path.drop["skb"])))
            if fields:
                death = drop_record(path.drop, context, with_stack=True) | fields
                note_death(record, self._known.explained(death))

    def _chosen(self, paths: Sequence[PacketPath], context: Context) -> list[PacketPath]:
        if not paths:
            return []
        rows = paths[0].batch.rows  # those that are taken together share their columns
        wanted = wanted_rows(rows, context, self._sieve)
        died = died_for(rows, context, self._sieve.reasons) if self._sieve.reasons else None
        return [
            path
            for path in paths
            if wanted[path.start : path.stop].any()
            and (died is None or died[path.start : path.stop].any())
            and self._among_first(path)
            and self._wanted(path, context)
        ]

    def _among_first(self, path: PacketPath) -> bool:
        if self._args.first is None:
            return True
        flow = path.rows["tuple"][0].tobytes()
        self._seen_of[flow] += 1
        return self._seen_of[flow] <= int(self._args.first)

    def _wanted(self, path: PacketPath, context: Context) -> bool:
        if self._args.dropped and not path.died:
            return False
        slow_s: float | None = self._args.slow
        return slow_s is None or duration_ns(path, context) > slow_s * NS_PER_S


class Drops:
    """Recordings that hold drops alone."""

    def __init__(self, args: argparse.Namespace, sieve: Sieve, known: Known) -> None:
        """TracerError for options that need hops."""
        for name in ("tcp_flags", "sample", "first", "slow"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise TracerError(f"{option}: this recording has drops only", "leave it out")
        self._args, self._sieve, self._known = args, sieve, known
        self._batches: list[Batch] = []
        self.packets = 0
        self.capture: Pcapng | None = None

    def add(self, batch: Batch) -> None:
        """Keep the batch until its records are asked for."""
        self.packets += len(batch.events)
        self._batches.append(batch)

    def lost(self, loss: Loss) -> None:
        """Nothing depends on what was lost."""

    def records(self, *, everything: bool = False) -> list[Record]:  # noqa: ARG002 - all, always
        """Drop records with their explanations."""
        made: list[Record] = []
        for batch in self._batches:
            wanted = wanted_rows(batch.events, batch.context, self._sieve)
            if self._sieve.reasons:
                wanted &= died_for(batch.events, batch.context, self._sieve.reasons)
            events = batch.events[wanted]
            if self.capture:
                self.capture.write(frames("drops", events, batch.context))
            made += [self._record(event, batch.context) for event in events]
        self._batches.clear()
        return made

    def _record(self, event: np.void, context: Context) -> Record:
        fields = self._known.rules.of_drop((int(event["time_ns"]), int(event["skb"])))
        record = drop_record(event, context, with_stack=True) | fields
        record = self._known.explained(record)
        if not self._args.stack:
            del record["drop.stack"]
        return record


class Known:
    """What the recording has told so far, and whether it knows what was asked for."""

    def __init__(self, sieve: Sieve, rules: Rules) -> None:
        self._sieve, self.rules = sieve, rules
        self._node: Node | None = None
        self._values: dict[int, dict[str, str]] = {}
        self._pods: set[str] = set()
        self._reasons: set[str] = set()
        self._found = sieve.pods.everything

    def add(self, context: Context) -> None:
        """Look at a context; nothing is done for one that is known."""
        if context.node is not self._node:
            self._node = context.node
            self._reasons |= set(context.reasons.values())
            self._pods |= {pod.key for pod in self._node.pods.values()}
            self._found |= any(map(self._sieve.pods.matches, self._node.pods.values()))

    def note(self, evidence: Evidence) -> None:
        """Remember sysctls."""
        self._values.setdefault(evidence.netns, {}).update(evidence.values)

    def explained(self, record: Record) -> Record:
        """A drop record with its explanation; the proof is what the recorder read by then."""
        explanation = explain(record, self._values.get(record.get("netns", 0), {}))
        record["explanation"], record["hint"] = explanation.sentence, explanation.hint
        return record

    def check(self) -> None:
        """Raise TracerError when a pod or reason that was asked for never occurred."""
        if not self._found:
            some = ", ".join(sorted(self._pods)[:5]) or "none"
            raise TracerError(
                f"{self._sieve.pods.describe()}: no such pod in the recording", f"it has {some}"
            )
        unknown = sorted(self._sieve.reasons - self._reasons)
        if unknown and self._reasons:
            raise TracerError(
                f"reason '{unknown[0]}': the recording's kernel has none of that name",
                "known: " + ", ".join(sorted(self._reasons)[:6]) + ", …",
            )


def _sieve(args: argparse.Namespace, stack: ExitStack) -> Sieve:
    """What the options ask for; the packet filter lives as long as `stack`."""
    accepts = None
    if args.filter:
        accepts = partial(matches, stack.enter_context(compiled(" ".join(args.filter))))
    return Sieve(
        pods=options.pod_selection(args),
        netns=args.netns,
        interface=args.interface,
        tcp_flags=args.tcp_flags or 0,
        sample=args.sample or 1,
        reasons=frozenset(one.upper().removeprefix("SKB_DROP_REASON_") for one in args.reason),
        accepts=accepts,
        inner=args.inner,
    )


class Show:
    """Reads a recording into a sink."""

    def __init__(self, recording: Recording, args: argparse.Namespace, stack: ExitStack) -> None:
        """Open what is written to; TracerError for bad options and paths."""
        self._recording, self._args = recording, args
        sieve = _sieve(args, stack)
        rules = recording.rules()
        if rules.nonsense:
            say(f"warning: {recording.path}: not all of its rules are understood: {rules.nonsense}")
        self._known = Known(sieve, rules)
        self._kind = "drops" if recording.header.get("command") == "drops" else "hops"
        renderer = Drops if self._kind == "drops" else Paths
        self._renderer = renderer(args, sieve, self._known)
        self._sink: Sink = open_sink(self._format(), None)
        stack.callback(self._sink.close)
        if args.write:
            self._renderer.capture = Pcapng(args.write)
            stack.callback(self._renderer.capture.close)
        self._latency = Latency()
        self._shown = 0
        self._lost: Counter[str] = Counter()

    def _format(self) -> str:
        chosen: str = "brief" if self._args.brief else self._args.output
        return "text" if self._kind == "drops" and chosen in ("tree", "brief") else chosen

    def run(self) -> None:
        """Read to the end, to where it is damaged, or to the count that was asked for."""
        for item in self._readable():
            if isinstance(item, Batch):
                self._known.add(item.context)
                self._renderer.add(item)
                self._write(self._renderer.records())
            elif isinstance(item, Evidence):
                self._known.note(item)
            else:
                self._lost[item.source] += item.count
                self._renderer.lost(item)
                self._sink.lost(item.source, item.count)
            if self._shown == self._args.count:
                break
        else:
            self._write(self._renderer.records(everything=True))
        self._known.check()

    def _readable(self) -> Iterator[Batch | Loss | Evidence]:
        with suppress(DamagedError):  # the recording's `ending` tells
            yield from self._recording

    def _write(self, records: list[Record]) -> None:
        if self._args.count is not None:
            records = records[: self._args.count - self._shown]
        self._shown += len(records)
        if self._kind == "hops":
            self._latency.add(records)
        if not self._args.summary:
            self._sink.write(records)

    def summarise(self) -> bool:
        """Write the latencies and the end record; True when something was lost."""
        end: Record = {
            "type": "end",
            "packets": self._renderer.packets,
            "shown": self._shown,
            "lost": dict(self._lost),
        }
        self._sink.write([*self._latency.records(), end])
        return bool(self._lost)


def run(args: argparse.Namespace) -> ExitCode:
    """Run `tracer show`."""
    recording = Recording(args.file)
    args.filter = with_recorded_service(args, recording)
    with ExitStack() as stack:
        show = Show(recording, args, stack)
        show.run()
        partial_ = show.summarise()
    if recording.ending and args.count is None:
        say(f"warning: {args.file}: {recording.ending}; shown is what was whole")
        partial_ = True
    return ExitCode.PARTIAL if partial_ else ExitCode.DONE
