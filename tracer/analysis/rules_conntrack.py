"""Drops that conntrack causes: a full table, an entry that could not be made, invalid packets.

Conntrack drops in hook functions of its own, so no rule stands behind them; what tells them from
xtables' is the hook, the entry that the packet has or lacks, and how full the table is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.model import Record

COUNT, MAX = "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"
FULL = 0.95
"""Of the limit: entries go on ending between the drop and our look."""
_HOOK = {
    "netfilter.mechanism": ("hook",),
    "netfilter.verdict": (None,),
    "netfilter.policy": (None,),
}
"""No rule is known to have done it."""


def _is_full(_record: Record, evidence: Mapping[str, str]) -> bool:
    count, limit = int(evidence.get(COUNT, 0)), int(evidence.get(MAX, 0))
    return 0 < limit * FULL <= count


def _is_unconfirmed(record: Record, _evidence: Mapping[str, str]) -> bool:
    return "confirmed" not in record.get("conntrack.status", ())


RULES = (
    Rule(
        "*",
        "The conntrack table {where} is full: there was no room for the connection that it opens.",
        "`tracer conntrack --top` shows who fills it; raise net.netfilter.nf_conntrack_max on the"
        " node, or shorten timeouts",
        when={
            **_HOOK,
            "netfilter.hook": ("PREROUTING", "OUTPUT"),
            "conntrack.state": (None,),
        },
        evidence=(COUNT, MAX),
        proof=_is_full,
    ),
    Rule(
        "*",
        "It was dropped in {netfilter} {where} before conntrack had entered its connection: insert"
        " failed, or an iptables-legacy rule.",
        "`tracer conntrack --stats`: insert_failed grows there if conntrack did it; else"
        " `iptables-legacy-save -c` there",
        when={
            **_HOOK,
            "netfilter.hook": ("INPUT", "POSTROUTING"),
            "conntrack.state": ("new",),
        },
        proof=_is_unconfirmed,
    ),
)


def why_invalid(record: Record) -> str:
    """What makes conntrack call a packet without an entry invalid, in words; may be empty."""
    transport, flags = record.get("transport"), record.get("tcp.flags", "").split(",")
    if transport != "tcp":
        return "conntrack knows no connection that it answers"
    if "RST" in flags:
        return "conntrack knows no connection that it resets"
    if "SYN" in flags:
        return "conntrack has not seen the SYN that it answers: does the other way pass here?"
    return (
        "to conntrack it is outside of its window, has a wrong checksum, or came without a SYN"
        " (net.netfilter.nf_conntrack_tcp_loose=0)"
    )
