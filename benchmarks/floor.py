"""The least that `trace` can cost: its hooks, with programs that return at once.

`--standby`: those of `trace --standby` while nothing is chosen. Says `ready` on stderr, ends on
SIGINT.
"""

from __future__ import annotations

import signal
import sys

from tracer.analysis.selection import PodSelection
from tracer.inventory import Inventory
from tracer.inventory.sysctl import netns_path
from tracer.kernel import libbpf, nf_links
from tracer.kernel.hooks import TYPED, hooks_of
from tracer.nf_cover import followed, standing_by

WATCHING = "skb-drop"
"""The one tracepoint of `trace --standby`."""


def main() -> None:
    """Attach, and wait; the descriptors go with the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    standby = "--standby" in sys.argv[1:]
    for hook in hooks_of("trace"):
        way = hook.ways[0]
        if way.kind == TYPED and (hook.name == WATCHING or not standby):
            program = libbpf.load_typed("floor", libbpf.EMPTY_PROGRAM, way.target)
            libbpf.attach_tracepoint(program, TYPED, way.target)
    attach_netfilter(standby=standby)
    print("ready", file=sys.stderr, flush=True)
    signal.sigwait([signal.SIGINT])


def attach_netfilter(*, standby: bool) -> None:
    """In the namespaces and at the places where tracer has its own."""
    inventory = Inventory()
    inventory.scan()
    node, namespaces = inventory.node, standing_by if standby else followed
    program = libbpf.load_netfilter("floor", libbpf.ACCEPTING_PROGRAM)
    points = nf_links.WATCH if standby else nf_links.AROUND
    for netns in namespaces(PodSelection(), node):
        path = netns_path(node.namespaces.get(netns), netns)
        _, problem = nf_links.attach({name: program for _, name, _ in points}, path, points)
        if problem:
            sys.exit(problem)


if __name__ == "__main__":
    main()
