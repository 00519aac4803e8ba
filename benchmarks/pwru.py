"""tracer beside pwru (Debian's package): the same kernel, the same packets, the same questions.

pwru needs kprobes, so this is for a guest (`scripts/kernels 7.x -- … benchmarks/pwru.py PWRU`);
on an emulated processor only the ratios mean something. Where did the packets of a rule's DROP
end? Where did those of a connection go that DNAT turned? One tool at a time answers both, then
sees a stream of packets that match, whose rate shows what watching costs. What either tells of
seven slow packets of that stream, it should tell of each fast one: the rest of its events is lost.
Writes Markdown.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/functional"))

from alone import alone
from lab import topology
from lab.rules import iptables
from lab.traffic import send_numbered, udp_listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.topology import Routed

DROPPED, ASKED, TARGET, STREAM = 20101, 20103, 20105, 20107
COUNT = 7
VIP = "10.96.9.5"
STREAM_S = 4.0
READY_S = 240.0
QUIET_S = 3.0


@dataclass(frozen=True, slots=True)
class Tool:
    """How to start one, and what its output says."""

    name: str
    command: tuple[str, ...]
    ready: str
    """On stderr or stdout once it is attached."""
    events: Callable[[str], int]
    """How many events its output tells of the stream's packets."""


def functions(output: str) -> int:
    """pwru writes a line for each function that a packet meets."""
    return len(re.findall(rf":{STREAM}\b", output))


def hops(output: str) -> int:
    """tracer writes a record for each packet, its hops in it."""
    records = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    return sum(len(each["hops"]) for each in records if each.get("dst.port") == STREAM)


def tools(pwru: str) -> list[Tool]:
    """All that are compared; they get the same filter."""
    match = f"udp and (dst port {DROPPED} or dst port {ASKED} or dst port {STREAM})"
    tracer = (sys.executable, "-m", "tracer", "trace", match, "--concurrent", "-o", "json")
    options = ("--filter-track-skb", "--output-tuple", "--output-meta")
    return [
        Tool(
            "pwru, all functions",
            (pwru, "--all-kmods", *options, match),
            "Listening for events",
            functions,
        ),
        Tool("pwru, without modules", (pwru, *options, match), "Listening for", functions),
        # The first start on a kernel makes the header tree that all others compile with.
        Tool("tracer trace, first start", tracer, "tracing trace on", hops),
        Tool("tracer trace", tracer, "tracing trace on", hops),
    ]


@contextmanager
def network() -> Iterator[Routed]:
    """left -- router -- right; the router drops one port and turns another."""
    with topology.routed("-pwru") as routed:
        dnat = f"ip daddr {VIP} udp dport {ASKED} dnat to {routed.right.ip4}:{TARGET}"
        chain = f"chain c {{ type nat hook prerouting priority -100; {dnat}; }}"
        routed.router.run("nft", "-f", "-", stdin=f"table ip pwru {{ {chain}; }}\n")
        rule = ("FORWARD", "-p", "udp", "--dport", str(DROPPED), "-j", "DROP")
        with iptables(routed.router, "iptables-nft", *rule):
            yield routed


def stream(routed: Routed, lasts_s: float) -> tuple[int, float]:
    """Bursts of COUNT datagrams, each burst read before the next: how many, and a second."""
    with (
        udp_listener(routed.right.where, STREAM) as server,
        routed.left.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.connect((routed.right.ip4, STREAM))
        sent, begin, passed_s = 0, time.perf_counter(), -1.0
        while passed_s < lasts_s:
            for _ in range(COUNT):
                sender.send(bytes(32))
            for _ in range(COUNT):
                server.recv(100)
            sent += COUNT
            passed_s = time.perf_counter() - begin
        return sent, sent / passed_s


@dataclass(frozen=True, slots=True)
class Result:
    """What one tool did."""

    attach_s: float
    detach_s: float
    output: str
    stream_hz: float
    told: float
    """Of the stream's events, those that the output tells."""


def measure(tool: Tool, routed: Routed) -> Result:
    """Attach, ask both questions, let the stream pass, detach."""
    with tempfile.NamedTemporaryFile("r", prefix="trb-pwru-") as output:
        begin = time.perf_counter()
        with Path(output.name).open("w") as into:
            process = subprocess.Popen(tool.command, stdout=into, stderr=subprocess.STDOUT)
        try:
            attach_s = _until(output.name, tool.ready, begin)
            send_numbered(routed.left.where, (routed.right.ip4, DROPPED), COUNT)
            with udp_listener(routed.right.where, TARGET) as server:
                send_numbered(routed.left.where, (VIP, ASKED), COUNT)
                for _ in range(COUNT):
                    server.recv(100)
            stream(routed, 0)
            time.sleep(QUIET_S)
            slow = Path(output.name).read_text(errors="replace")
            sent, stream_hz = stream(routed, STREAM_S)
            begin = time.perf_counter()
            process.send_signal(signal.SIGINT)
            process.wait(READY_S)
            detach_s = time.perf_counter() - begin
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        written = Path(output.name).read_text(errors="replace")
        expected = tool.events(slow) / COUNT * sent
        told = (tool.events(written) - tool.events(slow)) / expected
        last = "".join(written.splitlines(keepends=True)[-1:])
        return Result(attach_s, detach_s, slow + last, stream_hz, told)


def _until(path: str, text: str, begin: float) -> float:
    while text not in Path(path).read_text(errors="replace"):
        if time.perf_counter() - begin > READY_S:
            sys.exit(f"error: not attached in {READY_S:.0f} s:\n{Path(path).read_text()[-2000:]}")
        time.sleep(0.05)
    return time.perf_counter() - begin


def answers(result: Result) -> tuple[int, int, str, str]:
    """Lines about the dropped packets, about the turned ones, and the last line of each."""
    lines = result.output.splitlines()
    dropped = [line for line in lines if re.search(rf"\b{DROPPED}\b", line)]
    turned = [line for line in lines if re.search(rf"\b({ASKED}|{TARGET})\b", line)]
    ends = (_last(dropped), _last(turned))
    return len(dropped), len(turned), *ends


def _last(lines: list[str]) -> str:
    return " ".join(lines[-1].split())[:400].replace("|", "¦") if lines else "none"


def main() -> None:
    """Measure all, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pwru", help="the program, unpacked or installed")
    arguments = parser.parse_args()
    with alone(), network() as routed:
        _, free_hz = stream(routed, STREAM_S)
        results = {tool: measure(tool, routed) for tool in tools(arguments.pwru)}
        _, again_hz = stream(routed, STREAM_S)
    print(
        f"{COUNT} packets each; the stream alone: {free_hz:.0f}/s before, {again_hz:.0f}/s after\n"
    )
    print("| tool | attach s | detach s | packets/s | of alone | events told | drop | DNAT |")
    print("|-|-|-|-|-|-|-|-|")
    for tool, result in results.items():
        drop, turned, *_ = answers(result)
        ratio = result.stream_hz / max(free_hz, again_hz)
        figures = f"{result.attach_s:.1f} | {result.detach_s:.1f} | {result.stream_hz:.0f}"
        print(f"| {tool.name} | {figures} | {ratio:.2f} | {result.told:.3f} | {drop} | {turned} |")
    for tool, result in results.items():
        *_, drop_end, turned_end = answers(result)
        lost = result.output.splitlines()[-1][-300:]
        print(
            f"\n{tool.name}\n- drop: `{drop_end}`\n- DNAT: `{turned_end}`\n- at its end: `{lost}`"
        )


if __name__ == "__main__":
    main()
