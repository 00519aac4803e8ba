"""Count every pod's flows in the kernel, and write them every interval.

A record is one flow in one direction at one pod's device: packets and bytes (from the network
header on, as netfilter counts), first and last time, TCP flags. Packets of pods that died
anywhere on the node come as records of their own, with verdict `dropped` and the reason.

examples:
  tracer flows                                  every 10 s to the terminal
  tracer flows --write flows.jsonl              into a file, until Ctrl-C
  tracer flows --interval 1s --format hubble    for tools that read Hubble's JSON
  tracer flows --namespace shop --duration 1m   one minute of one namespace
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.flow_columns import drop_table, flow_table, other_table
from tracer.analysis.flows import NODE_ONLY, UNKNOWN, at_pods, unpaired_places
from tracer.commands import options
from tracer.errors import ExitCode
from tracer.flow_table import concat, records
from tracer.kernel.flow_maps import FlowCounts, Generations, Growing
from tracer.kernel.hooks import hooks_of
from tracer.kernel.maps import possible_cpus
from tracer.kernel.program import Program
from tracer.session import Session, say
from tracer.sinks import open_sink

if TYPE_CHECKING:
    import argparse

    from tracer.sinks import Sink

UNHEARD_KINDS = ("macvlan", "ipvlan")
"""Devices that take their packets from another one's receive handler (RX_HANDLER_ANOTHER)."""
DEFAULT_INTERVAL_S = 10.0
DEFAULT_MAX_FLOWS = 65536
FLOW_CPU_BYTES = 72
"""One CPU's counts of one flow, and of the half entry kept for flows that are not IPv4."""
MAP_BUDGET_BYTES = 256 << 20
"""Kernel memory that the two generations' counts may take by default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer flows`."""
    options.add_pod_selection(parser)
    group = parser.add_argument_group("what")
    group.add_argument(
        "--interval",
        type=options.duration_s,
        default=DEFAULT_INTERVAL_S,
        metavar="TIME",
        help="time between two writes (default: 10s)",
    )
    group.add_argument(
        "--max-flows",
        type=options.positive("--max-flows"),
        metavar="N",
        help="flows told apart in one interval; the rest is summed by pod (default: 65536,"
        " less on machines of many CPUs)",
    )
    group.add_argument("--format", choices=("flat", "hubble"), default="flat", help="record format")
    group.add_argument("--write", type=Path, metavar="PATH", help="append to a file, not stdout")
    options.add_run_options(parser)


def _max_flows() -> int:
    """The default, bounded by the kernel memory that one value per CPU takes."""
    affordable = MAP_BUDGET_BYTES // (2 * possible_cpus() * FLOW_CPU_BYTES)
    return max(1024, min(DEFAULT_MAX_FLOWS, affordable))


def _program(args: argparse.Namespace) -> Program:
    defines = {"WITH_FLOWS": "", "MAX_FLOWS": str(args.max_flows or _max_flows())}
    if args.pod or args.namespace or args.selector:
        defines["SELECT_PODS"] = ""
    hooks = tuple(hook.name for hook in hooks_of("flows"))
    return Program(hooks, defines, deferred=("dev-rx",), attach=options.attach_ways(args))


class Flows:
    """Reads the generations of each interval and writes them as records."""

    def __init__(self, session: Session, sink: Sink) -> None:
        """Start counting."""
        self._session, self._sink = session, sink
        self._flows = FlowCounts(session.loaded)
        self._drops = Generations(session.loaded, "flow_drops", "flow_drop_key", "drop_count")
        self._other = Growing(session.loaded, "flow_other", "flow_other_key", "drop_count")
        self._held = self._flows.turn()
        self._begin_ns = time.time_ns()
        self._unpaired: frozenset[tuple[int, int]] = frozenset()
        self.follow_devices()
        self.flows = self.packets = 0

    def write(self, *, last: bool = False) -> None:
        """Write everything counted since the last call.

        Flows of a namespace that nobody has named yet wait for the next call, unless it is the
        `last`: a pod's first packets are often faster than word of the pod.
        """
        flows, drops, other = self._flows.turn(), self._drops.turn(), self._other.turn()
        flows = self._hold_unnamed(*flows, last=last)
        end_ns = time.time_ns()
        context = self._session.context()
        tables = [
            flow_table(*flows, context),
            drop_table(*drops, context, (self._begin_ns, end_ns)),
            other_table(*other, context, end_ns),
        ]
        self._begin_ns = end_ns
        self.flows += sum(table.rows for table in tables)
        for table in (tables[0], tables[2]):
            self.packets += int(table.columns["packets"].values.sum()) if table.rows else 0
        self._sink.write(records(concat(tables)))
        for source, count in self._session.new_losses().items():
            self._sink.lost(source, count)

    def _hold_unnamed(
        self, keys: np.ndarray, counts: np.ndarray, *, last: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """What to write now: all that was held, and of the new what has a name."""
        inventory = self._session.inventory
        known = at_pods(keys, inventory.node)[1]
        if (known == UNKNOWN).any() and last:
            inventory.scan()
        elif (known == UNKNOWN).any():
            inventory.poke()
        hold = (known == UNKNOWN) & (not last)
        keys = np.concatenate((self._held[0], keys))
        counts = np.concatenate((self._held[1], counts))
        hold = np.concatenate((np.zeros(len(self._held[0]), bool), hold))
        self._held = keys[hold], counts[hold]
        keys, known = at_pods(keys[~hold], inventory.node)
        return keys[known != NODE_ONLY], counts[~hold][known != NODE_ONLY]

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


def run(args: argparse.Namespace) -> ExitCode:
    """Run `tracer flows`."""
    sink = open_sink(args.format, args.write)
    with Session(
        "flows",
        _program(args),
        options.pod_selection(args),
        options.limits(args),
        concurrent=args.concurrent,
    ) as session:
        flows = Flows(session, sink)
        session.announce(args.ready_file)
        due_s = time.monotonic() + args.interval
        while session.running:
            session.wait(due_s - time.monotonic())
            flows.follow_devices()
            if time.monotonic() >= due_s:
                flows.write()
                due_s += args.interval
        session.loaded.detach()
        flows.write(last=True)
    sink.close()
    say(f"{flows.flows} flow records, {flows.packets} packets")
    return ExitCode.PARTIAL if session.lost or session.loaded.degraded else ExitCode.DONE
