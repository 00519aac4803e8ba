"""Whether a NetworkPolicy allows a packet, evaluated as networking.k8s.io/v1 defines them.

Default deny has no rule of its own that could be named: what a selected pod is not allowed is
denied. So it is worked out from the policies, labels and ports.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from tracer.analysis.names import node_addresses, pod_at, service_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracer.model import (
        ClusterPod,
        NetworkPolicy,
        Node,
        Pod,
        PolicyPeer,
        PolicyPort,
        PolicyRule,
        Record,
        Requirement,
        Selector,
    )

HOOKS = ("FORWARD", "INPUT", "OUTPUT", "POSTROUTING")
"""Where policies are enforced by netfilter."""
TC_REASONS = ("TC_INGRESS", "TC_EGRESS")
"""What is dropped by an eBPF program of Cilium's or the AWS VPC CNI's at a device."""
PORTED = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody opens a connection, as seen from one pod."""

    direction: str
    """`ingress` or `egress` of the pod."""
    pod: Pod | ClusterPod
    other: str
    """Address of the other end; of a Service's endpoint, not of the Service."""
    transport: str
    port: int = 0
    """Of the receiver; 0: the transport has none."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the policies say to an attempt."""

    selecting: tuple[str, ...] = ()
    """`namespace/name` of the policies that select the pod for this direction, sorted."""
    by: str = ""
    """The first of them that allows it; empty: none."""
    rule: int = -1
    """Index of the rule that does."""
    exempt: bool = False
    """No policy applies: the pod's own node, the pod itself, or a host-network pod."""

    @property
    def allowed(self) -> bool:
        """Allowed, or nobody says anything about it."""
        return self.exempt or not self.selecting or bool(self.by)


def judge(node: Node, attempt: Attempt) -> Judgement:
    """What the policies of the pod's namespace say; Node has policies, labels and pods."""
    pod = attempt.pod
    known = node.cluster_pods.get(pod.key)
    own = attempt.other in pod.addresses or (known and attempt.other in known.addresses)
    if pod.host_network or own or _is_own_node(node, attempt):
        return Judgement(exempt=True)
    labels = known.labels if known else pod.labels
    found = [
        policy
        for key, policy in sorted(node.network_policies.items())
        if policy.namespace == pod.namespace
        and _rules(policy, attempt.direction) is not None
        and selects(policy.pods, labels)
    ]
    selecting = tuple(policy.key for policy in found)
    other = pod_at(node, attempt.other)
    for policy in found:
        for index, rule in enumerate(_rules(policy, attempt.direction) or ()):
            if _allows(node, policy, rule, attempt, other):
                return Judgement(selecting, policy.key, index)
    return Judgement(selecting)


def _is_own_node(node: Node, attempt: Attempt) -> bool:
    """The kubelet may always reach the pods of its node: probes."""
    own = attempt.direction == "ingress" and attempt.other in node_addresses(node)
    known = node.cluster_pods.get(attempt.pod.key)
    where = node.node_by_address.get(attempt.other)
    return own and (not known or not where or known.node == where)


def _rules(policy: NetworkPolicy, direction: str) -> tuple[PolicyRule, ...] | None:
    return policy.ingress if direction == "ingress" else policy.egress


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects what has these labels; an empty one selects all."""
    return all(labels.get(key) == value for key, value in selector.labels.items()) and all(
        _holds(one, labels) for one in selector.requirements
    )


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    key, operator = requirement.key, requirement.operator
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    is_in = labels.get(key) in requirement.values
    return is_in if operator == "In" else operator == "NotIn" and not is_in


def _allows(
    node: Node,
    policy: NetworkPolicy,
    rule: PolicyRule,
    attempt: Attempt,
    other: Pod | ClusterPod | None,
) -> bool:
    receiver = attempt.pod if attempt.direction == "ingress" else other
    return (
        not rule.ports or any(_fits(node, port, attempt, receiver) for port in rule.ports)
    ) and (
        not rule.peers or any(_is_peer(node, policy, peer, attempt, other) for peer in rule.peers)
    )


def _fits(
    node: Node, port: PolicyPort, attempt: Attempt, receiver: Pod | ClusterPod | None
) -> bool:
    if attempt.transport != port.transport or attempt.transport not in PORTED:
        return False
    if not port.port:
        return True
    if port.port.isdecimal():
        first = int(port.port)
        return first <= attempt.port <= (port.end_port or first)
    known = node.cluster_pods.get(receiver.key) if receiver else None
    return any(
        (name, transport, number) == (port.port, attempt.transport, attempt.port)
        for name, transport, number in (known.ports if known else ())
    )


def _is_peer(
    node: Node,
    policy: NetworkPolicy,
    peer: PolicyPeer,
    attempt: Attempt,
    other: Pod | ClusterPod | None,
) -> bool:
    if peer.block:
        return _in_block(attempt.other, peer.block) and not any(
            _in_block(attempt.other, block) for block in peer.excepted
        )
    if other is None or other.host_network:
        return False
    if peer.namespaces is None:
        if other.namespace != policy.namespace:
            return False
    elif not selects(peer.namespaces, node.namespace_labels.get(other.namespace, {})):
        return False
    known = node.cluster_pods.get(other.key)
    labels = known.labels if known else other.labels
    return peer.pods is None or selects(peer.pods, labels)


@lru_cache(maxsize=4096)
def _in_block(address: str, block: str) -> bool:
    try:
        return ip_address(address) in ip_network(block, strict=False)
    except ValueError:
        return False


def judge_drop(node: Node, record: Record) -> tuple[Attempt, Judgement] | None:
    """The first denial that explains a drop record; None where policies do not.

    Asked are the policies of the sender, if it is a pod of this node, and of the receiver, if
    that is: each node enforces those of its own pods. Answers need no policy, and a ClusterIP
    that was not translated has met none.
    """
    if not node.network_policies or not _may_be_policy(record):
        return None
    source, goal = record.get("src.address", ""), record.get("dst.address", "")
    transport, port = record.get("transport", ""), record.get("dst.port", 0)
    if service_at(node, transport, goal, port):
        return None
    ends = (("egress", source, goal), ("ingress", goal, source))
    for direction, address, other in ends:
        uid = node.pod_by_address.get(address)
        if uid is None or uid not in node.pods:
            continue
        attempt = Attempt(direction, node.pods[uid], other, transport, port)
        judgement = judge(node, attempt)
        if not judgement.allowed:
            return attempt, judgement
    return None


def _may_be_policy(record: Record) -> bool:
    reason, hook = record.get("drop.reason"), record.get("netfilter.hook")
    answer = (
        record.get("conntrack.state") == "established"
        or record.get("conntrack.direction") == "reply"
        or (record.get("transport") == "tcp" and "ACK" in record.get("tcp.flags", ""))
    )
    # A rule whose object is known has been explained already, and better.
    named = any(name.startswith(("netfilter.object.", "policy.")) for name in record)
    return not answer and not named and (hook in HOOKS or reason in TC_REASONS)


def denial(attempt: Attempt, judgement: Judgement, node: Node) -> str:
    """One sentence: which policies select the pod, and what none of them allows."""
    pod = pod_at(node, attempt.other)
    who = f"pod {pod.key}" if pod else attempt.other
    preposition = "from" if attempt.direction == "ingress" else "to"
    port = f" port {attempt.port}" if attempt.port else ""
    what = f"{attempt.transport or 'traffic'}{port} {preposition} {who}"
    return (
        f"No NetworkPolicy allows it: {_listed(judgement.selecting)}"
        f" {'select' if len(judgement.selecting) > 1 else 'selects'} pod {attempt.pod.key} for"
        f" {attempt.direction}, and no rule of {'theirs' if len(judgement.selecting) > 1 else 'it'}"
        f" allows {what}."
    )


def denial_fields(attempt: Attempt, judgement: Judgement) -> Record:
    """`policy.…`: worked out from the policies, not told by whoever enforces them."""
    return {
        "policy.namespace": attempt.pod.namespace,
        "policy.name": ",".join(key.partition("/")[2] for key in judgement.selecting),
        "policy.direction": attempt.direction,
        "policy.source": "evaluated",
    }


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
