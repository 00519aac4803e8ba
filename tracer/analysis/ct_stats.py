"""conntrack's counters and settings of one namespace → flat records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.ct_records import space_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.model import Node, Record

PREFIX = "net.netfilter.nf_conntrack_"
SETTINGS = (
    "count", "max", "buckets", "expect_max", "events", "acct", "timestamp", "checksum",
    "log_invalid", "tcp_loose", "tcp_be_liberal", "tcp_ignore_invalid_rst", "tcp_max_retrans",
    "generic_timeout", "icmp_timeout", "icmpv6_timeout", "udp_timeout", "udp_timeout_stream",
    "tcp_timeout_syn_sent", "tcp_timeout_syn_recv", "tcp_timeout_established",
    "tcp_timeout_fin_wait", "tcp_timeout_close_wait", "tcp_timeout_last_ack",
    "tcp_timeout_time_wait", "tcp_timeout_close", "tcp_timeout_max_retrans",
    "tcp_timeout_unacknowledged",
)  # fmt: skip
SYSCTLS = tuple(PREFIX + name for name in SETTINGS)
"""What `settings` are read from."""


def stats_records(
    node: Node, netns: int, cpus: Sequence[Mapping[str, int]], sysctls: Mapping[str, str]
) -> list[Record]:
    """One record with the namespace's sums and settings, then one for each CPU."""
    place = space_fields(node, netns)
    sums: dict[str, int] = {}
    for cpu in cpus:
        for name, value in cpu.items():
            if name != "cpu":
                sums[name] = sums.get(name, 0) + value
    settings = {
        f"conntrack.{name.removeprefix(PREFIX)}": int(value)
        for name, value in sysctls.items()
        if value.lstrip("-").isdecimal()
    }
    whole: Record = {"type": "stats", **place, **settings, **_named(sums)}
    return [whole, *({"type": "cpu", **place, "cpu": c["cpu"], **_named(c)} for c in cpus)]


def _named(counters: Mapping[str, int]) -> Record:
    return {f"stats.{name}": value for name, value in counters.items() if name != "cpu"}
