"""Causes of drops in netfilter: the rule where it is known, else the mechanism."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.rule_evidence import UNMOVED
from tracer.analysis.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.model import Record

_BY_RULE = {"netfilter.verdict": ("drop", "reject", "queue")}
_BY_POLICY = {"netfilter.policy": ("drop",)}
_TRACED, _INFERRED = ({"netfilter.rule_source": (source,)} for source in ("traced", "inferred"))
_HINT = "`{rule_list}` there shows it among its neighbours{ct_hint}"
_CHECK = "; --rules has the kernel tell which rule it is"

RULES = (
    Rule(
        "*",
        "{object}The policy of base chain {chain} in table {table} dropped it: no rule took it"
        " ({netfilter} {where}).",
        "accept it with a rule before the end of the chain: " + _HINT,
        when={**_BY_POLICY, **_TRACED},
    ),
    Rule(
        "*",
        "{object}A rule of chain {chain} in table {table} {done} it ({netfilter}{path} {where}).",
        _HINT,
        when={**_BY_RULE, **_TRACED},
    ),
    Rule(
        "*",
        "{object}The policy of base chain {chain} in table {table} dropped it, as its rules read"
        " ({netfilter} {where}; inferred{evidence}).",
        _HINT + _CHECK,
        when={**_BY_POLICY, **_INFERRED},
    ),
    Rule(
        "*",
        "{object}A rule of chain {chain} in table {table} {done} it, as the rules read"
        " ({netfilter}{path} {where}; inferred{evidence}).",
        _HINT + _CHECK,
        when={**_BY_RULE, **_INFERRED},
    ),
    Rule(
        "*",
        "By the rules {candidate} dropped it in {netfilter} {where}, but its counter did not move:"
        " something else did, or a rule that is gone.",
        "--rules has the kernel tell which rule it is{ct_hint}",
        when={"netfilter.evidence": (UNMOVED,)},
    ),
    Rule(
        "*",
        "One of {candidates} rules dropped it in {netfilter} {where}; which one, the rules and the"
        " packet alone do not tell.",
        "--rules has the kernel tell which rule it is{ct_hint}",
        when=_INFERRED,
    ),
    Rule(
        "*",
        "An nftables (or iptables-nft) rule dropped it in {netfilter} {where}.",
        "find the rule with `nft list ruleset` there{ct_hint}",
        when={"netfilter.mechanism": ("nf_tables",)},
    ),
    Rule(
        "*",
        # Before Linux 6.7 nf_tables leaves the freeing to its hook's caller, as all others do.
        "A netfilter hook function dropped it in {netfilter} {where}: an iptables-legacy rule"
        " (before 6.7 any), conntrack, IPVS or a BPF program.",
        "`iptables-legacy-save -c` and `nft list ruleset` there; a full conntrack table drops"
        " too{ct_hint}",
        when={"netfilter.mechanism": ("hook",)},
        evidence=("net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"),
    ),
    Rule(
        "*",
        "A queue rule handed it to a program in user space, which dropped it or is not there.",
        "/proc/net/netfilter/nfnetlink_queue there shows queues, programs and drops",
        when={"netfilter.mechanism": ("nf_queue",)},
    ),
    Rule(
        "NETFILTER_DROP",
        "A netfilter hook dropped it {where}.",
        "`nft list ruleset` and `iptables-legacy-save` there",
    ),
)


def rule_words(record: Record) -> Mapping[str, str]:
    """The names that the texts above may use besides `explain.words`."""
    table = f"{record.get('netfilter.family', '')} {record.get('netfilter.table', '')}".strip()
    chain = str(record.get("netfilter.chain", ""))
    path = record.get("netfilter.path", ())
    sentence = record.get("netfilter.object.sentence", "")
    misses = "; ".join(record.get("netfilter.misses", ()))
    verdict = record.get("netfilter.verdict", "")
    evidence = record.get("netfilter.evidence", "")
    candidates = record.get("netfilter.candidates", ())
    return {
        "table": table,
        "chain": chain,
        "path": f", by {' → '.join(path)}," if len(path) > 1 else "",
        "object": (f"{sentence} " if sentence else "") + (f"{misses}. " if misses else ""),
        "done": {"reject": "rejected", "queue": "queued"}.get(verdict, "dropped"),
        "candidates": str(len(candidates)),
        "candidate": _candidate(candidates),
        "evidence": f": its {evidence}" if evidence else "",
        "rule_list": _list_command(record, table, chain),
    }


def _candidate(candidates: Sequence[Record]) -> str:
    if len(candidates) != 1:
        return f"one of {len(candidates)} rules"
    (only,) = candidates
    return f"a rule of chain {only['chain']} in table {only['family']} {only['table']}"


def _list_command(record: Record, table: str, chain: str) -> str:
    backend = str(record.get("netfilter.backend", "nft"))
    if backend == "nft":
        return f"nft -a list chain {table} {chain}"
    tool = backend if record.get("netfilter.family") == "ip" else f"ip6{backend[2:]}"
    return f"{tool} -t {record.get('netfilter.table')} -S {chain} -v"
