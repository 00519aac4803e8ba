"""Which rule decided, as flat record fields (docs/formats.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.analysis.objects import RuleObject
    from tracer.analysis.ruleset.model import End, Verdict
    from tracer.model import Record

_COLUMNS = {"Service": "service", "NetworkPolicy": "policy"}
TRACED, INFERRED = "traced", "inferred"
"""`netfilter.rule_source`: told by the kernel's trace, or worked out from the rules."""


_NAMED = ("netfilter.", "service.", "policy.")


def told_by_rules(record: Record) -> Record:
    """Of a drop record what it has by its rules; empty where none was looked for or found."""
    if "netfilter.rule_source" not in record:
        return {}
    return {name: value for name, value in record.items() if name.startswith(_NAMED)}


def note_death(record: Record, death: Record) -> None:
    """Put into a packet's record what the explained record of its drop has by its rules."""
    told = (*_NAMED, "explanation", "hint")
    record.update({name: value for name, value in death.items() if name.startswith(told)})


def rule_fields(end: End, source: str) -> Record:
    """Place, text and verdict of the rule, or policy, that ended a base chain."""
    base, rule = end.base, end.rule
    fields: Record = {
        "netfilter.family": base.family,
        "netfilter.backend": base.backend,
        "netfilter.table": base.table,
        "netfilter.chain": rule.chain if rule else base.name,
    }
    if rule:
        fields |= {"netfilter.rule": rule.text} if rule.text else {}
        fields |= {"netfilter.handle": rule.handle} if rule.handle else {}
    else:
        fields["netfilter.policy"] = end.verdict
    fields["netfilter.verdict"] = end.verdict
    fields["netfilter.path"] = chains_of(end)
    if base.base:
        fields["netfilter.priority"] = base.base.priority
    fields["netfilter.rule_source"] = source
    return fields


def chains_of(end: End) -> list[str]:
    """The chains that were open at the end: the base chain first, the deciding rule's last."""
    chains = [rule.chain for rule in end.path]
    chains.append(end.rule.chain if end.rule else end.base.name)
    return chains


def object_fields(found: RuleObject) -> Record:
    """The Kubernetes object behind the rule, in the columns of all records too."""
    fields = found.fields()
    if found.sentence:
        fields["netfilter.object.sentence"] = found.sentence
    prefix = _COLUMNS.get(found.kind)
    if prefix and found.name:
        fields[f"{prefix}.name"] = found.name
        if found.namespace:
            fields[f"{prefix}.namespace"] = found.namespace
        if prefix == "service" and found.port:
            fields["service.port"] = found.port
    return fields


def candidate_fields(verdicts: Sequence[Verdict]) -> Record:
    """Several rules of which one must have decided: none of them is named as the one."""
    candidates = []
    for verdict in verdicts:
        own = rule_fields(verdict.ends[-1], INFERRED)
        told = {name.removeprefix("netfilter."): value for name, value in own.items()}
        del told["rule_source"]
        candidates.append({**told, "assumed": list(verdict.assumed)})
    return {"netfilter.candidates": candidates, "netfilter.rule_source": INFERRED}
