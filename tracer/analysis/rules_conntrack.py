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
LOOSE = "net.netfilter.nf_conntrack_tcp_loose"
"""Whether conntrack takes up connections whose beginning it has not seen."""
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
        " failed, or a rule did it.",
        "`tracer conntrack --stats`: insert_failed grows there if conntrack did it; else"
        " `iptables-legacy-save -c` and `nft list ruleset` there",
        when={
            **_HOOK,
            "netfilter.hook": ("INPUT", "POSTROUTING"),
            "conntrack.state": ("new",),
        },
        proof=_is_unconfirmed,
    ),
)


def asked_of(record: Record) -> tuple[str, ...]:
    """Sysctls that tell more of why conntrack may call a packet invalid."""
    in_the_middle = record.get("transport") == "tcp" and not {"RST", "SYN"} & _flags(record)
    return (LOOSE,) if in_the_middle else ()


def why_invalid(record: Record, evidence: Mapping[str, str]) -> str:
    """What makes conntrack call a packet without an entry invalid, in words.

    The kernel does not tell: it is worked out from the packet, and from `asked_of`.
    """
    if record.get("transport.checksum") == "wrong":
        return "its checksum is wrong"
    if record.get("transport") != "tcp":
        return "conntrack knows no connection that it answers"
    return _why_segment(_flags(record), is_loose=evidence.get(LOOSE) != "0")


def _why_segment(flags: set[str], *, is_loose: bool) -> str:
    if not flags or ("SYN" in flags and flags & {"FIN", "RST"}):
        return "its TCP flags contradict each other"
    if "RST" in flags:
        return "conntrack knows no connection that it resets"
    if "SYN" in flags:
        return "conntrack has not seen the SYN that it answers: does the other way pass here?"
    window = "to conntrack it is outside of its window, or does not fit its connection's state"
    return window if is_loose else f"it came without a SYN ({LOOSE} is 0), or {window}"


def _flags(record: Record) -> set[str]:
    return set(record.get("tcp.flags", "").split(",")) - {""}
