"""Why a packet was dropped: one sentence and a hint, from a drop record and sysctls."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

from tracer.analysis import rules_conntrack, rules_ip, rules_link, rules_netfilter, rules_untold
from tracer.analysis.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.model import Record

_UNKNOWN = Rule(
    "*",
    "The kernel dropped it in {function} {where} and gives {reason} as the reason.",
    "--stack shows how it came there; the function's source tells the rest",
)
_UNTOLD = Rule(
    "NOT_SPECIFIED",
    "The kernel dropped it in {function} {where} without giving a reason.",
    "--stack shows how it came there; the function's source tells the rest",
)
_RULES = (
    *rules_conntrack.RULES,
    *rules_netfilter.RULES,
    *rules_ip.RULES,
    *rules_link.RULES,
    *rules_untold.RULES,
    _UNTOLD,
    _UNKNOWN,
)
"""The first that fits wins."""

_NONE: Mapping[str, str] = {}
_ANSWERED = ("tcp", "icmp", "icmpv6")
"""Protocols of which a first packet is told from others."""
_AFTER_CONNTRACK = ("INPUT", "FORWARD", "POSTROUTING")
_NODE = "node"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a person reads: why, and what to do about it. Neither is ever empty."""

    sentence: str
    hint: str


def explain(record: Record, evidence: Mapping[str, str]) -> Explanation:
    """Explain a flat drop record; `evidence` has values of the sysctls of `wanted_evidence`.

    Sysctls that could not be read may be missing from `evidence`.
    """
    rule, values = _rule(record, evidence), words(record, evidence)
    sentence = rule.sentence.format_map(values)
    names = _sysctls(rule, record, values)
    proof = [f"{name} is {evidence[name]}" for name in names if name in evidence]
    if proof:
        sentence = f"{sentence.removesuffix('.')} ({', '.join(proof)})."
    return Explanation(sentence, rule.hint.format_map(values))


def wanted_evidence(record: Record) -> tuple[str, ...]:
    """Sysctls, in the packet's network namespace, that tell whether the explanation holds.

    A device's name in them is one path component under /proc/sys, dots and all.
    """
    rules = _fitting(record)
    asked = rules_conntrack.asked_of(record) if _may_be_invalid(record) else ()
    if not any(rule.evidence for rule in rules):
        return asked
    values = words(record)
    names = (name for rule in rules for name in _sysctls(rule, record, values))
    return tuple(dict.fromkeys((*names, *asked)))


def _sysctls(rule: Rule, record: Record, values: Mapping[str, str]) -> tuple[str, ...]:
    device = record.get("interface.name")
    return tuple(name.format_map(values) for name in rule.evidence if device or "{iif}" not in name)


def words(record: Record, evidence: Mapping[str, str] = _NONE) -> Mapping[str, str]:
    """The names that a rule's texts may use, in words where the record does not know."""
    device = record.get("interface.name")
    where = _where(record)
    place = (record.get("netfilter.family"), record.get("netfilter.hook", "an unknown hook"))
    return {
        **rules_netfilter.rule_words(record),
        "src": record.get("src.address", "(unknown)"),
        "dst": record.get("dst.address", "(unknown)"),
        "dport": str(record.get("dst.port", "(unknown)")),
        "transport": record.get("transport", "unknown"),
        "network": record.get("network.type", "unknown"),
        "length": str(record.get("ip.length", record.get("bytes", "too many"))),
        "flags": record.get("tcp.flags") or "none",
        "reason": record.get("drop.reason", "none"),
        "function": _function(record) or "an unknown function",
        "netfilter": " ".join(filter(None, place)),
        "iif": device or "all",
        "device": device or "its device",
        "Device": device or "Its device",
        "where": where,
        "host": where.partition(" ")[2],
        "ct_hint": _conntrack_hint(record, evidence),
    }


def _where(record: Record) -> str:
    pod = record.get("k8s.pod.name")
    namespace = record.get("netns.name")
    if namespace == _NODE:
        return "on the node"
    if pod:
        return f"in pod {record.get('k8s.pod.namespace', '')}/{pod}"
    if namespace or record.get("netns"):
        return f"in netns {namespace or record['netns']}"
    return "on this host"


def _may_be_invalid(record: Record) -> bool:
    """Conntrack makes an entry for all but what it finds invalid, once it runs."""
    opens = record.get("transport") == "tcp" and record.get("tcp.flags") == "SYN"
    after = record.get("netfilter.hook") in _AFTER_CONNTRACK and "conntrack.state" not in record
    is_wrong = record.get("transport.checksum") == "wrong"
    return after and (is_wrong or (not opens and record.get("transport") in _ANSWERED))


def _conntrack_hint(record: Record, evidence: Mapping[str, str]) -> str:
    if not _may_be_invalid(record):
        return ""
    why = rules_conntrack.why_invalid(record, evidence)
    return (
        "; it has no conntrack entry, so a `ct state invalid` or `untracked` rule would match:"
        f" perhaps {why}"
    )


def _function(record: Record) -> str:
    return str(record.get("drop.location", "")).partition("+")[0].partition(".")[0]


def _rule(record: Record, evidence: Mapping[str, str]) -> Rule:
    fitting = _fitting(record)
    return next(
        (rule for rule in fitting if rule.proof and rule.proof(record, evidence)), fitting[-1]
    )


def _fitting(record: Record) -> list[Rule]:
    """Rules that may explain it: those that want a proof, and the first that does not."""
    candidates = _candidates(record.get("drop.reason", "NOT_SPECIFIED"), _function(record))
    found = []
    for rule in candidates:
        if _fits(rule, record):
            found.append(rule)
            if rule.proof is None:
                break
    return found


@cache
def _candidates(reason: str, function: str) -> tuple[Rule, ...]:
    """Rules for this reason and function: few distinct pairs exist, thousands of drops a second."""
    return tuple(
        rule
        for rule in _RULES
        if fnmatchcase(reason, rule.reason)
        and (not rule.at or any(fnmatchcase(function, pattern) for pattern in rule.at))
    )


def _fits(rule: Rule, record: Record) -> bool:
    for name, values in rule.when.items():  # noqa: SIM110 - all() of a generator takes twice as long
        if record.get(name) not in values:
            return False
    return True
