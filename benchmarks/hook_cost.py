"""What one call of each hook costs, way by way: run time that the kernel counts (bpf_stats).

Where time means nothing, as on an emulated processor, the same counter counts instructions:
`scripts/kernels 6.12 --instructions -- … benchmarks/hook_cost.py` lets one nanosecond of the
guest be one instruction; `benchmarks/hook_costs.py` does so in every kernel. Every figure has
that of an empty program taken off it. Packets are small datagrams and segments, routed between
three namespaces, the first of which has a queueing discipline; `drops` and `flows` tell of all,
`trace` of those to two of three ports. Writes a Markdown table, one row a function and way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "tests/functional"))
sys.path.append(str(Path(__file__).parents[1] / "tests/kernels"))

from alone import alone
from bpf_stats import bpf_stats
from lab import runner, topology
from lab.rules import nft
from lab.shell import run
from lab.traffic import family_of, send_udp, tcp_listener, udp_listener
from ways import forced, open_kinds_of

from tracer.kernel import libbpf
from tracer.kernel.hooks import HOOKS, TYPED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lab.namespaces import Namespace
    from lab.topology import Routed

CHOSEN, OTHER, DROPPED = 20201, 20203, 20205
COMMANDS = {
    "drops": (),
    "flows": ("--interval", "500ms"),
    "trace": (f"dst port {CHOSEN} or dst port {DROPPED}", "-o", "json"),
}
STANDBY = "--standby"
"""With it `trace` has a hook of its own."""
TBF = "tbf rate 1gbit burst 1mb latency 200ms"
"""A token bucket keeps every packet, if only until the next line of code."""
RULE = f"meta l4proto {{ tcp, udp }} th dport {DROPPED} drop"
RETRANSMIT_S = 1.7
"""A SYN without an answer is sent again after 1 s (TCP_TIMEOUT_INIT)."""
ATTACHED = re.compile(r"([\w-]+) \((\w+)")
runner.READY_S = 250
runner.STOP_S = 60


def totals() -> dict[int, tuple[str, int, int]]:
    """Program id → name, calls, run time in ns, since it was loaded."""
    listed = json.loads(run("bpftool", "--json", "prog", "show") or "[]")
    return {
        each["id"]: (each["name"], each.get("run_cnt", 0), each.get("run_time_ns", 0))
        for each in listed
        if "name" in each
    }


def send(routed: Routed, count: int) -> None:
    """`count` packets of each kind to each port; what is dropped is chosen, too."""
    for address in (routed.right.ip4, routed.right.ip6):
        for port in (CHOSEN, OTHER):
            with udp_listener(routed.right.where, port, family_of(address)) as listener:
                send_udp(routed.left.where, (address, port), count)
                for _ in range(count):
                    listener.recv(100)
        send_udp(routed.left.where, (address, DROPPED), count)
    for port in (CHOSEN, OTHER):
        with tcp_listener(routed.right.where, port) as listener:
            talk(routed.left.where, (routed.right.ip4, port), listener, count)
    knock(routed.left.where, (routed.right.ip4, DROPPED), count)


def talk(where: Namespace, to: tuple[str, int], listener: socket.socket, count: int) -> None:
    """`count` questions, each answered before the next, over one connection."""
    with where.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(to)
        server, _ = listener.accept()
        with server:
            for _ in range(count):
                client.sendall(b"question")
                server.sendall(server.recv(100))
                client.recv(100)


def knock(where: Namespace, to: tuple[str, int], count: int) -> None:
    """`count` connections that get no answer; each asks a second time."""
    with ExitStack() as opened:
        for _ in range(count):
            client = opened.enter_context(where.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.setblocking(False)  # noqa: FBT003 - the socket's own signature
            client.connect_ex(to)
        time.sleep(RETRANSMIT_S)


def empty_ns(routed: Routed, count: int) -> float:
    """Run time of a program that does nothing, by itself at a hook of every packet."""
    program = libbpf.load_typed("empty", libbpf.EMPTY_PROGRAM, "net_dev_queue")
    link = libbpf.attach_tracepoint(program, TYPED, "net_dev_queue")
    send(routed, count)
    calls, time_ns = next(spent for name, *spent in totals().values() if name == "empty")
    for descriptor in (link, program):
        os.close(descriptor)
    return time_ns / calls


@dataclass(frozen=True, slots=True)
class Cost:
    """One BPF function, attached in one way."""

    function: str
    hook: str
    way: str
    calls: int
    per_call_ns: float


def measure(routed: Routed, command: str, options: Iterable[str], count: int) -> list[Cost]:
    """Run `command` while packets pass: each of its functions that is called."""
    before = totals()
    with runner.running(command, *COMMANDS[command], *options) as live:
        settled = totals()
        send(routed, count)
        after = totals()
        live.stop()
    ways = dict(ATTACHED.findall(live.err))
    hooks = {name: hook.name for hook in HOOKS for name in hook.functions}
    costs = []
    for number in sorted((settled.keys() & after.keys()) - before.keys()):
        name, calls, time_ns = after[number]
        _, had, had_ns = settled[number]
        if name in hooks and calls > had:
            hook, per_call_ns = hooks[name], (time_ns - had_ns) / (calls - had)
            costs.append(Cost(name, hook, ways[hook], calls - had, per_call_ns))
    return costs


def every_way(routed: Routed, command: str, count: int) -> Iterator[Cost]:
    """What each function costs in each way that this kernel has, each once."""
    called: set[tuple[str, str]] = set()
    runs = [forced(command, kind) for kind in open_kinds_of(command)]
    for options in [*runs, [STANDBY]] if command == "trace" else runs:
        costs = measure(routed, command, options, count)
        yield from (cost for cost in costs if (cost.hook, cost.way) not in called)
        called |= {(cost.hook, cost.way) for cost in costs}


def main() -> None:
    """Measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=101, help="packets of each kind")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="default: %(default)s")
    arguments = parser.parse_args()
    with alone(), bpf_stats(), topology.routed("-cost") as routed:
        routed.left.where.run("tc", "qdisc", "add", "dev", "eth0", "root", *TBF.split())
        with nft(routed.router, "inet", "forward", RULE):
            empty = empty_ns(routed, arguments.count)
            print(f"An empty program: {empty:.0f}, taken off.\n")
            print("| command | function | way | calls | per call |\n|-|-|-|-|-|", flush=True)
            for command in arguments.commands.split(","):
                for cost in every_way(routed, command, arguments.count):
                    figures = f"{cost.calls} | {cost.per_call_ns - empty:.0f}"
                    print(f"| {command} | {cost.function} | {cost.way} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
