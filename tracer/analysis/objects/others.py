"""Programs whose rules say by chain, table or comment whose they are: networks and masquerade."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis.objects.answer import RuleObject, comments

if TYPE_CHECKING:
    from tracer.analysis.objects.answer import Question
    from tracer.analysis.ruleset.model import Rule

_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class _Program:
    """How the rules of one program are recognised: any of these fits."""

    owner: str
    label: str
    chain: re.Pattern[str] = _NOTHING
    table: re.Pattern[str] = _NOTHING
    comment: re.Pattern[str] = _NOTHING
    text: re.Pattern[str] = _NOTHING
    prefix: str = ""
    """Of its comments, which says no more than the owner does."""


_PROGRAMS = (
    _Program(
        "flannel",
        "flannel",
        re.compile(r"FLANNEL-.*"),
        re.compile(r"flannel-ipv[46]"),
        re.compile(r"flanneld .*"),
        prefix=r"flanneld (?:masq|forward)",
    ),
    _Program(
        "aws-vpc-cni",
        "AWS VPC CNI",
        re.compile(r"AWS-(?:SNAT|CONNMARK)-CHAIN-\d+|CNI-E[46]-.*"),
        comment=re.compile(r"AWS, .*|AWS (?:SNAT|CONNMARK).*"),
        prefix="AWS,? ",
    ),
    _Program(
        "cilium",
        "Cilium",
        re.compile(r"(?:OLD_)?CILIUM_.*"),
        comment=re.compile(r"cilium(?:-feeder)?[: ].*"),
        prefix="cilium(?:-feeder)?:? ",
    ),
    _Program(
        "antrea",
        "Antrea",
        re.compile(r"ANTREA-.*"),
        re.compile(r"antrea.*"),
        re.compile(r"Antrea: .*"),
        prefix="Antrea: ",
    ),
    _Program(
        "ip-masq-agent",
        "ip-masq-agent",
        re.compile(r"IP-MASQ-AGENT|GKE-IP-MASQ.*|IP-MASQ"),
        comment=re.compile(r"ip-masq(?:-agent)?: .*"),
        prefix="ip-masq(?:-agent)?: ",
    ),
    _Program(
        "kube-network-policies",
        "kube-network-policies",
        table=re.compile(r"kube-network-policies"),
    ),
    _Program(
        "docker",
        "Docker",
        re.compile(r"DOCKER(?:-.*)?"),
        re.compile(r"docker-bridges"),
        text=re.compile(r"\b(?:docker0|docker_gwbridge|br-[0-9a-f]{12})\b"),
    ),
)
_CNI_CHAIN = re.compile(r"CNI-(?:DN-|SN-)?[0-9a-f]{20,24}|CNI-HOSTPORT-(?:DNAT|SNAT|SETMARK|MASQ)")
_CNI_NFT_TABLE = re.compile(r"cni_hostport|cni_plugins_masquerade")
_CNI_COMMENT = re.compile(r'(?P<dnat>dnat )?name: "(?P<network>[^"]*)" id: "(?P<id>[^"]*)"')


def answer(question: Question) -> RuleObject | None:
    """What one of these programs says with this rule; None if it is nobody's."""
    rule = question.rule
    if (
        _CNI_CHAIN.fullmatch(rule.chain)
        or _CNI_NFT_TABLE.fullmatch(rule.table)
        or any(_CNI_COMMENT.fullmatch(comment) for comment in question.comments)
        or question.comment.startswith("CNI portfwd")
    ):
        return _cni(question)
    for program in _PROGRAMS:
        if (
            program.chain.fullmatch(rule.chain)
            or program.table.fullmatch(rule.table)
            or any(program.comment.fullmatch(comment) for comment in question.comments)
            or program.text.search(rule.text)
        ):
            return _plain(question, program)
    return None


def _plain(question: Question, program: _Program) -> RuleObject:
    why = re.sub(rf"^(?:{program.prefix})", "", question.comment) if program.prefix else ""
    does = question.action or "passed on"
    if program.owner == "kube-network-policies":
        does = "judged in user space"
        why = "a program judges NetworkPolicies there, and its verdict is what counts"
    elif not why and program.owner == "docker":
        why = _docker(question)
    why = why or _MEANING.get(question.action, "")
    pod = question.around.pod_at(question.packet.saddr if question.packet else None)
    whose = f", packet of pod {pod}" if pod else ""
    action = question.action or "passed on"
    sentence = f"{action.capitalize()} by {program.label}{whose}{f': {why}' if why else ''}."
    return RuleObject(program.owner, "network", does=does, sentence=sentence)


def _docker(question: Question) -> str:
    """Why Docker has the rule: its rules bear no comments."""
    rule = question.rule
    if rule.chain == "DOCKER-USER":
        return "a rule of the administrator's, in the chain that it has for them"
    if question.action == "dropped":
        return "it keeps its bridge networks apart and its containers' ports closed"
    published = re.search(r"--to-destination (\S+)|dnat (?:ip6? )?to (\S+)", rule.text)
    return f"{published[1] or published[2]} publishes the port" if published else ""


_MEANING = {
    "masqueraded": "it leaves with the node's address instead of its own",
    "given another source": "it leaves with another source address",
}


def _cni(question: Question) -> RuleObject:
    """The plugins bridge (ipMasq) and portmap: the container's id leads to the pod."""
    found = _container(question)
    pod = question.around.pod_by_container.get(found["id"], "") if found else ""
    network = found["network"] if found else ""
    namespace, _, name = pod.partition("/")
    portmap = "HOSTPORT" in question.rule.chain or "CNI-DN" in question.rule.chain
    portmap = portmap or question.rule.table == "cni_hostport" or bool(found and found["dnat"])
    owner = "cni-portmap" if portmap else "cni-bridge"
    action = question.action or "passed on"
    whose = f" for pod {pod}" if pod else ""
    where = f" of network {network}" if network else ""
    why = _MEANING.get(action, "")
    if portmap and action == "sent to another destination":
        why = "a hostPort of the pod"
    sentence = f"{action.capitalize()} by CNI plugin {owner.removeprefix('cni-')}{where}{whose}"
    return RuleObject(
        owner,
        "Pod" if pod else "network",
        namespace,
        name or network,
        "",
        action,
        f"{sentence}{f': {why}' if why else ''}.",
    )


def _container(question: Question) -> re.Match[str] | None:
    """The comment with the container's id: the rule's own, or of one that jumps to its chain."""
    rule, around = question.rule, question.around
    chains = ("CNI-HOSTPORT-DNAT", "POSTROUTING", "hostports", "masq_checks")
    callers = (
        caller
        for chain in (chains if rule.chain not in chains else ())
        for caller in around.rules(rule.family, rule.table, chain)
        if caller.text.endswith(f" {rule.chain}") or f" {rule.chain} " in caller.text
    )
    for one in (rule, *reversed(question.path), *callers):
        if found := _cni_comment(one):
            return found
    return None


def _cni_comment(rule: Rule) -> re.Match[str] | None:
    return next((m for comment in comments(rule) if (m := _CNI_COMMENT.fullmatch(comment))), None)
