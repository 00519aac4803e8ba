"""NetworkPolicies as kube-router enforces them (k3s has it built in), iptables and nftables.

A pod's chain KUBE-POD-FW-… runs through the policies that select it, each of which marks what it
allows; what no policy marked is rejected there. Names of chains are hashes with a time in them:
only the comments tell.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.analysis.objects.answer import DEFAULT_DENY, RuleObject, comments

if TYPE_CHECKING:
    from tracer.analysis.objects.answer import Question

_OWNER = "kube-router"
_CHAIN = re.compile(r"KUBE-(?:POD-FW-|NWPLCY-|ROUTER-|SVC-FW-).*")
_POD = re.compile(
    r"(?:rule to (?:REJECT|log dropped) traffic.* POD name:(?P<name>\S+)"
    r" namespace: (?P<namespace>\S+)"
    r"|(?P<nft_namespace>[a-z0-9-]+)/(?P<nft_name>[a-z0-9.-]+) (?:reject|log-drop))"
)
_END = re.compile(r"(?:\bip6? |-)([sd])(?:addr)? ")
_RUN = re.compile(
    r"run through nw policy (?P<name>\S+)|(?P<namespace>[a-z0-9-]+)/(?P<nft>[a-z0-9.-]+) policy"
)
_POLICY = re.compile(
    r"(?P<namespace>[a-z0-9-]+)/(?P<name>[a-z0-9.-]+) (?:ingress|egress|ipblock|except).*"
    r"|.*policy name:? (?P<xt_name>\S+) namespace:? (?P<xt_namespace>\S+)"
)
_OWN = (
    ("invalid", "invalid for conntrack", "conntrack finds it invalid"),
    ("established", "answers", "it belongs to a known connection"),
    ("stateful firewall", "answers", "it belongs to a known connection"),
    (
        "local node",
        "from the pod's node",
        "it comes from the pod's own node, which is always let in",
    ),
    ("netpol-ok", "allowed", "the policies of its pods allow it"),
    ("comply", "allowed", "the policies of its pods allow it"),
    ("icmp", "ICMP that is always let through", "ICMP of this type is always let through"),
)


def answer(question: Question) -> RuleObject | None:
    """What kube-router says with this rule; None if it is not its own."""
    if not _CHAIN.fullmatch(question.rule.chain):
        return None
    comment = question.comment
    if found := _POD.search(comment):
        namespace = found["namespace"] or found["nft_namespace"]
        return _denied(question, namespace, found["name"] or found["nft_name"])
    if (found := _POLICY.search(comment)) and (found["name"] or found["xt_name"]):
        namespace = found["namespace"] or found["xt_namespace"]
        name = found["name"] or found["xt_name"]
        sentence = f"NetworkPolicy {namespace}/{name} ({_OWNER}) allows it."
        return RuleObject(_OWNER, "NetworkPolicy", namespace, name, "", "allowed", sentence)
    for word, does, why in _OWN:
        if word in comment:
            done = question.action or "passed on"
            return RuleObject(
                _OWNER, does=does, sentence=f"{done.capitalize()} by {_OWNER}: {why}."
            )
    return RuleObject(_OWNER, does=question.action or "passed on", sentence=f"{_OWNER}: {comment}.")


def _denied(question: Question, namespace: str, pod: str) -> RuleObject:
    direction = _direction(question, f"{namespace}/{pod}")
    policies = _policies(question, namespace, direction)
    done = question.action or "not allowed"  # the rule before the reject only logs
    whose = f"{direction + ' of ' if direction else ''}pod {namespace}/{pod}"
    if not policies:
        sentence = f"{done.capitalize()} by {_OWNER}, {whose}: no NetworkPolicy allows it."
        return RuleObject(_OWNER, "Pod", namespace, pod, "", DEFAULT_DENY, sentence)
    named = " and ".join(policies)
    s, verb = ("s", "none of them allows") if len(policies) > 1 else ("", "it does not allow")
    return RuleObject(
        _OWNER,
        "NetworkPolicy",
        namespace,
        ",".join(policy.partition("/")[2] for policy in policies),
        "",
        DEFAULT_DENY,
        f"{done.capitalize()} by NetworkPolic{'ies' if s else 'y'} {named} ({_OWNER}), {whose}:"
        f" {verb} the packet.",
    )


def _direction(question: Question, pod: str) -> str:
    """`ingress` if the packet is for the pod, by the rule that jumped here or the addresses."""
    for step in reversed(question.path):
        if "KUBE-POD-FW-" in step.text and (found := _END.search(step.text)):
            return "ingress" if found[1].startswith("d") else "egress"
    packet, around, addresses = question.packet, question.around, _addresses(question)
    if packet is None:
        return ""
    if packet.daddr in addresses or around.pod_at(packet.daddr) == pod:
        return "ingress"
    is_sender = packet.saddr in addresses or around.pod_at(packet.saddr) == pod
    return "egress" if is_sender else ""


def _addresses(question: Question) -> set[str]:
    """Addresses of the pod: each chain of its is about itself and says so."""
    found = (
        re.findall(r"(?:ip6? [sd]addr|-[sd]) ([0-9a-f.:]+)", rule.text)
        for rule in question.siblings
    )
    return {address for one in found for address in one}


def _policies(question: Question, namespace: str, direction: str) -> list[str]:
    """`namespace/name` of the policies that were run through for packets of this direction."""
    other = {"ingress": r"\b(?:ip6? saddr|-s) ", "egress": r"\b(?:ip6? daddr|-d) "}.get(direction)
    names: dict[str, None] = {}
    for rule in question.siblings:
        found = _RUN.fullmatch(" ".join(comments(rule)))
        if found and not (other and re.search(other, rule.text)):
            names[f"{found['namespace'] or namespace}/{found['name'] or found['nft']}"] = None
    return list(names)
