"""What is known of the object behind a rule, and the question that it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from tracer.analysis.objects.names import calico_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.analysis.ruleset.model import Chain, Packet, Rule, Ruleset, Table
    from tracer.model import Node, Record

_QUOTED = r'(?:"((?:\\.|[^"\\])*)"|([^\s"]+))'
_XT_COMMENT = re.compile(rf"--comment {_QUOTED}")
_NFT_COMMENT = re.compile(rf"\bcomment {_QUOTED}")
_ACTIONS = (
    # what stands in a rule's text → what it does to the packet
    (re.compile(r"-j REJECT\b|\breject\b"), "rejected"),
    (re.compile(r"-j DROP\b|\bdrop\b"), "dropped"),
    (re.compile(r"-j MASQUERADE\b|\bmasquerade\b"), "masqueraded"),
    (re.compile(r"-j SNAT\b|\bsnat\b"), "given another source"),
    (re.compile(r"-j (?:DNAT|REDIRECT)\b|\b(?:dnat|redirect)\b"), "sent to another destination"),
    (re.compile(r"-j NFQUEUE\b|\bqueue\b"), "queued to a program"),
    (re.compile(r"-j (?:CT --)?NOTRACK\b|-j CT\b|\bnotrack\b"), "left untracked"),
    (re.compile(r"-j ACCEPT\b|\baccept\b"), "accepted"),
    (re.compile(r"-j RETURN\b|\breturn\b"), "returned"),
    (re.compile(r"-j (?:CONN)?MARK\b|\bmark set\b"), "marked"),
)


DEFAULT_DENY = "default deny"
"""`RuleObject.does`: policies select the pod, and none allowed the packet."""


@dataclass(frozen=True, slots=True)
class RuleObject:
    """Who put a rule there, for which object, and what that means for the packet."""

    owner: str
    """The program: `kube-proxy`, `kube-router`, `calico`, `flannel`, `docker`, …"""
    kind: str = ""
    """`Service`, `NetworkPolicy`, `Pod`, `network`; empty: a rule of the program's own."""
    namespace: str = ""
    name: str = ""
    """Empty where the rule concerns no single object, or does not tell which."""
    port: str = ""
    """Of a Service: number where it is known, else the port's name."""
    does: str = ""
    """In few words: `has no endpoints`, `masqueraded`, `default deny`."""
    sentence: str = ""
    """One sentence for a person."""

    @property
    def label(self) -> str:
        """`namespace/name`, or the name of what has no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def fields(self) -> Record:
        """As names of a flat record (docs/formats.md)."""
        values = {
            "owner": self.owner,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "port": self.port,
            "does": self.does,
        }
        return {f"netfilter.object.{name}": value for name, value in values.items() if value}


@dataclass(frozen=True)
class Surroundings:
    """What a rule is looked up in: the other rules, and the node where they are."""

    ruleset: Ruleset
    node: Node | None = None
    memo: dict[object, Mapping[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def pod_by_container(self) -> Mapping[str, str]:
        """Id of a sandbox → `namespace/name`."""
        pods = self.node.pods.values() if self.node else ()
        return {pod.sandbox_id: pod.key for pod in pods if pod.sandbox_id and pod.name}

    @cached_property
    def pod_by_device(self) -> Mapping[str, str]:
        """Name of a device on the node → `namespace/name`; Calico's are computed as well."""
        if self.node is None:
            return {}
        pods = self.node.pods
        named = {calico_device(pod.namespace, pod.name): pod.key for pod in pods.values()}
        known = {
            device.name: pods[uid].key
            for key, device in self.node.devices.items()
            if key[0] == self.node.netns and (uid := self.node.pod_by_device.get(key, "")) in pods
        }
        return named | known

    @cached_property
    def unready(self) -> frozenset[str]:
        """`namespace/name` of the Services that have endpoints, of which none is ready."""
        slices = self.node.endpoint_slices.values() if self.node else ()
        waiting = {f"{one.namespace}/{one.service}" for one in slices if one.unready}
        ready = {f"{one.namespace}/{one.service}" for one in slices if one.ready}
        return frozenset(waiting - ready)

    def pod_at(self, address: str | None) -> str:
        """`namespace/name` of the pod with this address; empty if nobody knows."""
        if not self.node or not address:
            return ""
        uid = self.node.pod_by_address.get(address)
        if uid and uid in self.node.pods:
            return self.node.pods[uid].key
        return self.node.cluster_pod_by_address.get(address, "")

    def tables(self, family: str, name: str) -> Iterator[Table]:
        """Tables of this family and name: nf_tables' and the legacy one, which may both exist."""
        for legacy in (False, True):
            if table := self.ruleset.tables.get((family, name, legacy)):
                yield table

    def rules(self, family: str, table: str, chain: str) -> Iterator[Rule]:
        """Rules of a chain by name, in order."""
        for one in self.tables(family, table):
            if chain in one.chains:
                yield from one.chains[chain].rules


@dataclass(frozen=True, slots=True)
class Question:
    """One rule that decided about one packet."""

    rule: Rule
    packet: Packet | None
    path: Sequence[Rule]
    """The rules that jumped here, base chain's first; empty: not known."""
    around: Surroundings

    @property
    def comments(self) -> tuple[str, ...]:
        """Comments of the rule."""
        return comments(self.rule)

    @property
    def comment(self) -> str:
        """All comments of the rule in one."""
        return " ".join(self.comments)

    @property
    def action(self) -> str:
        """What the rule does to the packet, as a participle; empty if it only jumps."""
        return action(self.rule.text)

    @property
    def siblings(self) -> Iterator[Rule]:
        """The rules of its chain."""
        return self.around.rules(self.rule.family, self.rule.table, self.rule.chain)

    @property
    def target(self) -> str:
        """`address:port` where the packet goes; what of it is known."""
        if self.packet is None or self.packet.daddr is None:
            return ""
        return f"{self.packet.daddr}{f':{self.packet.dport}' if self.packet.dport else ''}"


def comments(rule: Rule) -> tuple[str, ...]:
    """The comments of a rule, in order; an iptables rule may have several."""
    texts = _pattern(rule.text).findall(rule.text)
    found = [re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in texts]
    return tuple(found) or ((rule.comment,) if rule.comment else ())


def without_comments(text: str) -> str:
    """A rule's text without what its author says of it."""
    return _pattern(text).sub("", text)


def _pattern(text: str) -> re.Pattern[str]:
    return _XT_COMMENT if text.startswith("-A ") else _NFT_COMMENT


def action(text: str) -> str:
    """What a rule does to a packet, from its text without the comments; may be empty."""
    bare = without_comments(text)
    return next((word for pattern, word in _ACTIONS if pattern.search(bare)), "")


def policy_answer(chain: Chain) -> RuleObject | None:
    """For a packet that the policy of a base chain dropped: no rule had accepted it."""
    if not chain.base or chain.base.policy != "drop":
        return None
    who = f"{chain.family} {chain.table} {chain.name}"
    docker = chain.table == "filter" and chain.name == "FORWARD"
    hint = " (Docker sets it so, unless told otherwise)" if docker else ""
    return RuleObject(
        owner="",
        does="policy drop",
        sentence=f"No rule of {who} accepted the packet, and the chain's policy is drop{hint}.",
    )
