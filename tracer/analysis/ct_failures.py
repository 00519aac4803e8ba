"""What conntrack failed at, from the growth of its counters: one sentence and a hint each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis.ct_records import space_fields
from tracer.wall_time import time_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.model import Node, Record


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind; texts are templates of `count`, `where`, `entries` and `max`."""

    name: str
    sentence: str
    hint: str


TABLE_FULL = Failure(
    "table-full",
    "Conntrack had no room for new connections {where} and dropped {count} packets"
    " ({entries} of {max} entries are in use).",
    "`tracer conntrack --top` shows who fills it; raise net.netfilter.nf_conntrack_max on the node"
    " (each network namespace may have that many), or shorten timeouts",
)
INSERT_FAILED = Failure(
    "insert-failed",
    "{count} packets were dropped {where}: when their connection was to be entered, another with"
    " the same addresses and ports was there already.",
    "two packets of one flow raced (parallel DNS queries: `single-request-reopen`, node-local DNS),"
    " or SNAT found no free port (`--random-fully`, more addresses)",
)
FAILURES = {
    "clash_resolve": Failure(
        "clash-resolved",
        "{count} times two packets of one connection raced {where}, and conntrack made one entry"
        " of it; nothing was dropped.",
        "harmless; many of them show a program that sends its first packets in parallel",
    ),
    "early_drop": Failure(
        "early-drop",
        "The table was full, and {count} connections that were not assured were thrown out early"
        " {where} ({entries} of {max} entries are in use).",
        "`tracer conntrack --top` shows who fills it; raise net.netfilter.nf_conntrack_max",
    ),
    "invalid": Failure(
        "invalid",
        "{count} packets fitted no connection {where}, and conntrack called them invalid.",
        "rules that drop `ct state invalid` lose them: `tracer drops` shows the packets; why"
        " (window, checksum, no SYN) the kernel writes to its log with"
        " net.netfilter.nf_conntrack_log_invalid=255 (a setting of the whole namespace)",
    ),
    "error": Failure(
        "error",
        "{count} ICMP errors {where} were broken or fitted no connection.",
        "look at who sends them: `tracer drops 'icmp or icmp6'`",
    ),
    "chaintoolong": Failure(
        "chain-too-long",
        "{count} packets were dropped {where}: too many entries share one slot of the hash table.",
        "raise net.netfilter.nf_conntrack_buckets on the node",
    ),
}
"""By the counter that grows (ctnetlink.COUNTERS)."""


def failure_records(
    node: Node, netns: int, grown: Mapping[str, int], fill: tuple[int, int], now_ns: int
) -> list[Record]:
    """One record for each kind of failure in `grown` (counter → by how much).

    `fill`: entries in the namespace, and the most there may be.
    """
    counts = [(FAILURES[name], grown[name]) for name in FAILURES if grown.get(name)]
    # Whose chain was too long is in it too.
    failed = max(grown.get("insert_failed", 0) - grown.get("chaintoolong", 0), 0)
    if failed:
        counts.append((INSERT_FAILED, failed))
    # `drop` counts those that failed as well.
    full = grown.get("drop", 0) - failed
    if full > 0:
        counts.append((TABLE_FULL, full))
    entries, limit = fill
    words = {"where": _where(node, netns), "entries": entries, "max": limit or "unlimited"}
    return [
        {
            "type": "failure",
            "time": time_text(now_ns),
            **space_fields(node, netns),
            "failure": kind.name,
            "count": count,
            "conntrack.entries": entries,
            "conntrack.max": limit,
            "explanation": kind.sentence.format(count=count, **words),
            "hint": kind.hint,
        }
        for kind, count in counts
    ]


def _where(node: Node, netns: int) -> str:
    if netns == node.netns:
        return "on the node"
    pod = node.pods.get(node.pod_by_netns.get(netns, ""))
    if pod:
        return f"in pod {pod.key}"
    namespace = node.namespaces.get(netns)
    return f"in netns {namespace.name if namespace and namespace.name else netns}"
