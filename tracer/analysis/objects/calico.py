"""Calico's chains, iptables and nftables mode: policies, profiles, and the pods they are for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.analysis.objects.answer import DEFAULT_DENY, RuleObject, comments
from tracer.analysis.objects.names import CALICO_LIMIT, calico_chain, calico_policies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.analysis.objects.answer import Question, Surroundings
    from tracer.analysis.ruleset.model import Rule

_OWNER = "calico"
# nftables mode keeps all in one table and puts what was the table's name before the chain's.
_CHAIN = re.compile(r"(?:(?:raw|mangle|nat|filter)-)?(?P<chain>cali-.*)")
_HASH = re.compile(r"cali:[A-Za-z0-9_-]{16}")
"""The comment of every rule of its own, those in the chains of the system too."""
_BOTH = re.compile(rf"({_HASH.pattern});\s*(.*)")
"""In nftables mode, where a rule has one comment."""
_ENDPOINT = re.compile(r"cali-(?P<way>tw|fw|th|fh|thfw|fhfw)-(?P<device>.+)")
_POLICY_CHAIN = re.compile(r"cali-(?P<kind>pi|po|pri|pro|gi|go)-(?P<identity>.+)")
_POLICY_JUMP = re.compile(
    r"(?:-[jg]|\bjump|\bgoto) (?:(?:raw|mangle|nat|filter)-)?(cali-p[io]-\S+)"
)
_NAMED = re.compile(
    r"(?P<kind>[A-Za-z]*Policy|Profile) (?:(?P<namespace>[^/ ]+)/)?(?P<name>\S+) (?:ingress|egress)"
)
_KNP = "knp.default."
_WAYS = {
    "tw": ("ingress", "pod"), "fw": ("egress", "pod"), "th": ("egress", "host device"),
    "fh": ("ingress", "host device"), "thfw": ("forwarded egress", "host device"),
    "fhfw": ("forwarded ingress", "host device"),
}  # fmt: skip
_OWN = (
    ("INVALID", "invalid for conntrack", "conntrack finds it invalid"),
    ("ct state invalid", "invalid for conntrack", "conntrack finds it invalid"),
    ("ESTABLISHED", "answers", "it belongs to a known connection"),
    ("VXLAN encapped", "tunnel from a pod", "a pod may not send VXLAN packets itself"),
    ("IPinIP encapped", "tunnel from a pod", "a pod may not send IPIP packets itself"),
    ("Unknown interface", "unknown device", "Calico knows no pod with this device"),
    ("cali-rpf-skip", "reverse path filter", "its source does not belong to its device"),
    ("rpfilter", "reverse path filter", "its source does not belong to its device"),
    ("cali-nat-outgoing", "masqueraded", "it leaves Calico's pools (natOutgoing)"),
    ("cali-fip-dnat", "floating IP", "it is for a floating IP of a pod"),
    ("cali-fip-snat", "floating IP", "its pod has a floating IP"),
    ("cali-cidr-block", "blackholed", "it is for a block of Calico's that no pod here has"),
)


def answer(question: Question) -> RuleObject | None:
    """What Calico says with this rule; None if it is not its own."""
    found = _CHAIN.fullmatch(question.rule.chain)
    if not found and not any(map(_HASH.fullmatch, _comments(question.rule))):
        return None
    chain = found["chain"] if found else ""
    if policy := _POLICY_CHAIN.fullmatch(chain):
        return _policy(question, policy)
    endpoint = _ENDPOINT.fullmatch(chain)
    if endpoint and (
        "no policies passed" in question.comment or "no profiles matched" in question.comment
    ):
        return _denied(question, endpoint)
    done = (question.action or "passed on").capitalize()
    for word, does, why in _OWN:
        if word in question.rule.text or word == chain:
            return RuleObject(_OWNER, does=does, sentence=f"{done} by Calico: {why}.")
    said = (one for one in _comments(question.rule) if not _HASH.fullmatch(one))
    comment = " ".join(said).rstrip(".")
    why = f": {comment}" if comment else ""
    return RuleObject(
        _OWNER, does=question.action or "passed on", sentence=f"{done} by Calico{why}."
    )


def _comments(rule: Rule) -> list[str]:
    """The rule's hash and what it says besides, each for itself."""
    words: list[str] = []
    for comment in comments(rule):
        both = _BOTH.fullmatch(comment)
        words += both.groups() if both else (comment,)
    return [word for word in words if word]


def _policy(question: Question, found: re.Match[str]) -> RuleObject:
    """A rule inside of a policy or profile: it allows, denies or passes on."""
    kind, namespace, name = _named(question, question.rule.chain, found)
    direction = "ingress" if found["kind"] in ("pi", "pri", "gi") else "egress"
    done = question.action
    does = "denied" if done in ("dropped", "rejected") else "allowed"
    label = f"{namespace}/{name}" if namespace else name
    sentence = f"{kind} {label} (Calico), {direction}: {does} by one of its rules."
    return RuleObject(_OWNER, kind, namespace, name, "", does, sentence)


def _denied(question: Question, found: re.Match[str]) -> RuleObject:
    """The end of a pod's chain: policies select it, and none allowed the packet."""
    direction, what = _WAYS[found["way"]]
    pod = question.around.pod_by_device.get(found["device"], "") if what == "pod" else ""
    whose = f"{direction} of " + (f"pod {pod}" if pod else f"{what} {found['device']}")
    done = (question.action or "dropped").capitalize()
    policies = [
        _named(question, jump[1], policy)
        for rule in question.siblings
        if (jump := _POLICY_JUMP.search(rule.text)) and (policy := _POLICY_CHAIN.fullmatch(jump[1]))
    ]
    if not policies or "no profiles" in question.comment:
        namespace, _, name = pod.partition("/")
        sentence = f"{done} by Calico, {whose}: no profile of its namespace allows it."
        return RuleObject(_OWNER, "Pod", namespace, name, "", "no profile matched", sentence)
    kind, namespace, name = policies[0]
    labels = [f"{where}/{policy}" if where else policy for _, where, policy in policies]
    several = len(policies) > 1
    return RuleObject(
        _OWNER,
        kind,
        namespace,
        ",".join(policy for _, _, policy in policies),
        "",
        DEFAULT_DENY,
        f"{done} by {'policies' if several else kind} {' and '.join(labels)} (Calico), {whose}:"
        f" {'none of them allows' if several else 'it does not allow'} the packet.",
    )


def _named(question: Question, chain: str, found: re.Match[str]) -> tuple[str, str, str]:
    """Kind, namespace and name of what a policy's chain stands for; the hash if nobody tells."""
    rule = question.rule
    prefix = rule.chain.partition("cali-")[0]
    named = prefix + chain if prefix and not chain.startswith(prefix) else chain
    for step in question.around.rules(rule.family, rule.table, named):
        for comment in _comments(step):
            if told := _NAMED.fullmatch(comment):
                return _plain(told["kind"], told["namespace"] or "", told["name"])
    identity = found["identity"]
    identity = _identities(question.around).get(identity, identity)
    if identity.startswith("knp/"):
        _, namespace, name = identity.split("/", 2)
        return "NetworkPolicy", namespace, name
    profile = "Profile" if found["kind"] in ("pri", "pro") else "Policy"
    namespace, slash, name = identity.partition("/")
    return _plain(profile, namespace if slash else "", name if slash else identity)


def _plain(kind: str, namespace: str, name: str) -> tuple[str, str, str]:
    """What Kubernetes calls it: a NetworkPolicy that Calico took over has a prefix."""
    if kind == "KubernetesNetworkPolicy" or name.startswith(_KNP):
        return "NetworkPolicy", namespace, name.removeprefix(_KNP)
    if kind in ("Policy", "NetworkPolicy"):
        return "Calico NetworkPolicy" if namespace else "GlobalNetworkPolicy", namespace, name
    return kind, namespace, name


def _identities(around: Surroundings) -> Mapping[str, str]:
    """Shortened identity in the name of a chain → the identity, of policies that are known."""
    if "calico" not in around.memo:
        prefix = "cali-pi-"
        around.memo["calico"] = {
            calico_chain(prefix, identity)[len(prefix) : CALICO_LIMIT]: identity
            for policy in (around.node.network_policies.values() if around.node else ())
            for identity in calico_policies(policy.namespace, policy.name)
        }
    return around.memo["calico"]
