"""What one call of each hook costs, way by way: run time that the kernel counts (bpf_stats).

Where time means nothing, as on an emulated processor, the same counter counts instructions:
`scripts/kernels 6.12 --instructions -- … benchmarks/hook_cost.py` lets one nanosecond of the
guest be one instruction. Every figure has that of an empty program taken off it. Packets are
small datagrams, routed between three namespaces; each is chosen by `drops` and `flows`, one in
two by `trace`. Writes a Markdown table, one row a hook and way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/functional"))

from alone import alone
from bpf_stats import bpf_stats
from lab import runner, topology
from lab.rules import nft
from lab.shell import run
from lab.traffic import send_udp, udp_listener

from tracer.kernel import libbpf
from tracer.kernel.hooks import HOOKS, NETFILTER, TYPED

if TYPE_CHECKING:
    from lab.topology import Routed

CHOSEN, OTHER, DROPPED = 20201, 20203, 20205
COMMANDS = {
    "drops": (),
    "flows": ("--interval", "500ms"),
    "trace": (f"udp dst port {CHOSEN}", "-o", "json"),
}
runner.READY_S = 250
runner.STOP_S = 60


def totals() -> dict[str, tuple[int, int]]:
    """Program name → (calls, run time in ns), since each was loaded."""
    listed = json.loads(run("bpftool", "--json", "prog", "show") or "[]")
    return {
        each["name"]: (each["run_cnt"], each["run_time_ns"])
        for each in listed
        if each.get("run_cnt")
    }


def send(routed: Routed, count: int) -> None:
    """`count` packets for each of three ports: chosen, not chosen, dropped by a rule."""
    right = routed.right
    with udp_listener(right.where, CHOSEN), udp_listener(right.where, OTHER):
        for port in (CHOSEN, OTHER, DROPPED):
            send_udp(routed.left.where, (right.ip4, port), count)


def empty_ns(routed: Routed, count: int) -> float:
    """Run time of a program that does nothing, by itself at a hook of every packet."""
    program = libbpf.load_typed("empty", libbpf.EMPTY_PROGRAM, "net_dev_queue")
    link = libbpf.attach_tracepoint(program, TYPED, "net_dev_queue")
    send(routed, count)
    calls, time_ns = totals()["empty"]
    for descriptor in (link, program):
        os.close(descriptor)
    return time_ns / calls


def cost(routed: Routed, command: str, kind: str, count: int) -> dict[str, tuple[int, float]]:
    """Function → (calls, ns a call) of one command, attached by ways of `kind`."""
    options = [
        f"--attach={hook.name}={kind}"
        for hook in HOOKS
        if command in hook.commands and kind in {way.kind for way in hook.ways}
    ]
    with runner.running(command, *COMMANDS[command], *options) as live:
        before = totals()
        send(routed, count)
        after = totals()
        live.stop()
    spent = {}
    for name, (calls, time_ns) in after.items():
        had = before.get(name, (0, 0))
        if calls > had[0]:
            spent[name] = calls - had[0], (time_ns - had[1]) / (calls - had[0])
    return spent


def main() -> None:
    """Measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=101, help="packets of each kind")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="default: %(default)s")
    arguments = parser.parse_args()
    functions = {name: hook for hook in HOOKS for name in hook.functions}
    with alone(), bpf_stats(), topology.routed("-cost") as routed:
        rule = f"udp dport {DROPPED} drop"
        with nft(routed.router, "inet", "forward", rule):
            empty = empty_ns(routed, arguments.count)
            print(f"An empty program: {empty:.0f}, taken off.\n")
            print("| command | function | way | calls | per call |\n|-|-|-|-|-|", flush=True)
            for command in arguments.commands.split(","):
                for kind in ("tp_btf", "raw_tp"):
                    spent = cost(routed, command, kind, arguments.count)
                    for name, (calls, per_call) in spent.items():
                        if name not in functions:
                            continue
                        native = functions[name].ways[0].kind == NETFILTER
                        way = NETFILTER if native else kind
                        row = f"{command} | {name} | {way} | {calls} | {per_call - empty:.0f}"
                        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
