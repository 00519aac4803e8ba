"""kube-proxy's rules, iptables and nftables mode, and kubelet's KUBE-FIREWALL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.analysis.objects.answer import RuleObject
from tracer.analysis.objects.services import (
    SERVICE_PORT,
    element_comments,
    packet_key,
    services_by_chain,
)

if TYPE_CHECKING:
    from tracer.analysis.objects.answer import Question

_OWNER = "kube-proxy"
_IPTABLES_CHAIN = re.compile(
    r"KUBE-(?:SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|MARK-DROP|FORWARD|"
    r"PROXY-FIREWALL|FIREWALL|PROXY-CANARY|(?:SVC|SVL|EXT|FW|SEP)-[A-Z2-7]{16})"
)
_HASHED = "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"
_NFT_CHAIN = re.compile(
    r"(?P<kind>service|local|external|firewall|endpoint|affinity)-(?P<hash>[A-Z2-7]{8})-"
    r"(?P<namespace>[^/]+)/(?P<name>[^/]+?)(?:/(?P<transport>[^/]*)(?:/(?P<port>[^/]*?))?)?"
    r"(?:__(?P<address>[^/]+)/(?P<number>\d+))?"
)
_NFT_TABLE = "kube-proxy"

# What the comments of iptables mode say of a Service → what it does, and the sentence. In both
# {service} and {done}: what happens to the packet.
_COMMENTS = tuple(
    (re.compile(f"(?:{before}){SERVICE_PORT}{after}"), does, sentence)
    for before, after, does, sentence in (
        ("", " has no endpoints", "has no endpoints", "{service} has no endpoints"),
        (
            "",
            " has no local endpoints",
            "has no local endpoints",
            "{service} has no endpoints on this node, and its traffic policy is Local",
        ),
        (
            "",
            " traffic not accepted by .*",
            "source is not in its loadBalancerSourceRanges",
            "{service} is only for the sources of its loadBalancerSourceRanges",
        ),
        (
            "other traffic to ",
            " will be dropped by .*",
            "source is not in its loadBalancerSourceRanges",
            "{service} is only for the sources of its loadBalancerSourceRanges",
        ),
        ("", " health check node port", "health check", "it is for the health check of {service}"),
        ("", " -> (?P<endpoint>.*)", "endpoint chosen", "{service} is served by {endpoint}"),
        (
            "masquerade (?:LOCAL )?traffic for ",
            " external destinations",
            "to be masqueraded",
            "it comes from outside to {service}, so that the answer must come back this way",
        ),
        ("(?:route LOCAL|pod) traffic for ", " external destinations", "", "{service} is asked"),
        ("", "(?: (?:cluster|external|loadbalancer) IP)?", "", "{service} is asked"),
    )
)
_OWN = (
    # chain, text → what it does, and the sentence
    (
        "KUBE-FORWARD",
        "INVALID",
        "invalid for conntrack",
        "conntrack finds it invalid (not part of a connection, or out of its window)",
    ),
    (
        "KUBE-FIREWALL",
        "127.0.0.0/8",
        "martian for loopback",
        "it comes from outside to an address of 127.0.0.0/8, which kube-proxy and kubelet forbid",
    ),
    ("KUBE-FORWARD", "0x4000", "Service traffic", "it is Service traffic"),
    ("KUBE-FORWARD", "ESTABLISHED", "answers", "it belongs to a known connection"),
    (
        "KUBE-POSTROUTING",
        "MASQUERADE",
        "masqueraded",
        "it is Service traffic whose answer must come back this way",
    ),
    ("KUBE-MARK-MASQ", "MARK", "to be masqueraded", "it is to be masqueraded as it leaves"),
    (
        "masquerading",
        "@hairpin-connections",
        "masqueraded",
        "a pod reaches itself by its own Service",
    ),
    (
        "masquerading",
        "masquerade",
        "masqueraded",
        "it is Service traffic whose answer must come back this way",
    ),
)
_SETS = {
    # chain of nftables mode → the map that it looks into
    "service-endpoints-check": "no-endpoint-services",
    "nodeport-endpoints-check": "no-endpoint-nodeports",
}


def answer(question: Question) -> RuleObject | None:
    """What kube-proxy or kubelet says with this rule; None if it is neither's."""
    rule = question.rule
    if rule.table == _NFT_TABLE:
        return _nftables(question)
    if _IPTABLES_CHAIN.fullmatch(rule.chain) or question.comment.startswith("kubernetes "):
        return _iptables(question)
    return None


def _iptables(question: Question) -> RuleObject:
    rule = question.rule
    endpoint = re.search(r"-j DNAT --to-destination (\S+)", rule.text)
    for comment in question.comments if not endpoint else ():
        for pattern, does, sentence in _COMMENTS:
            if found := pattern.fullmatch(comment):
                return _service(question, found.groupdict(), does, sentence)
    if not rule.chain.startswith(_HASHED):
        return _own(question)
    # Comments are left out where there are over a thousand endpoints: the hash knows.
    known = services_by_chain(question.around).get(rule.chain.rpartition("-")[2], question.comment)
    if not (found := re.fullmatch(SERVICE_PORT, known)):
        return _own(question)
    if endpoint:
        values = {**found.groupdict(), "endpoint": endpoint[1]}
        return _service(question, values, "endpoint chosen", "{service} is served by {endpoint}")
    return _service(question, found.groupdict(), "", "{service} is asked")


def _own(question: Question) -> RuleObject:
    """Rules that concern no single Service."""
    rule = question.rule
    owner = "kubelet" if rule.chain in ("KUBE-FIREWALL", "KUBE-MARK-DROP") else _OWNER
    for chain, text, does, sentence in _OWN:
        if rule.chain == chain and text in rule.text:
            return RuleObject(owner, does=does, sentence=_sentence(question, sentence, owner))
    does = question.action or "Service traffic"
    return RuleObject(owner, does=does, sentence=_sentence(question, question.comment, owner))


def _nftables(question: Question) -> RuleObject:
    rule = question.rule
    chains = (rule.chain, *(step.chain for step in reversed(question.path)))
    if found := _NFT_CHAIN.fullmatch(rule.chain):
        return _nft_chain(question, found)
    for chain in ("service-endpoints-check", "nodeport-endpoints-check"):
        asked = chain in chains or rule.chain == "reject-chain"
        if asked and (service := _element(question, _SETS[chain])):
            return _no_endpoints(question, chain, service)
    if rule.chain in ("services", "firewall-check"):
        name = "firewall-ips" if rule.chain == "firewall-check" else "service-ips"
        service = _element(question, name) or _element(question, "service-nodeports")
        if found := re.fullmatch(SERVICE_PORT, service):
            return _service(question, found.groupdict(), "", "{service} is asked")
    if rule.chain == "cluster-ips-check":
        return _cluster_ip(question)
    return _own(question)


def _nft_chain(question: Question, found: re.Match[str]) -> RuleObject:
    values = {**found.groupdict(), "endpoint": "one of its endpoints"}
    if question.rule.chain.endswith("..."):  # too long, and cut: the hash is of the whole
        whole = services_by_chain(question.around).get(found["hash"], "")
        values |= _values(re.fullmatch(SERVICE_PORT, whole)) if whole else {}
    if found["kind"] == "firewall":
        sentence = "{service} is only for the sources of its loadBalancerSourceRanges"
        does = "source is not in its loadBalancerSourceRanges"
        return _service(question, values, does, sentence)
    if found["address"]:
        address = found["address"]
        if question.rule.family == "ip6":  # a colon may not stand in the name of a chain
            address = f"[{address.replace('.', ':')}]"
        values["endpoint"] = f"{address}:{found['number']}"
    if "dnat" in question.rule.text:
        sentence = "{service} is served by {endpoint}"
        return _service(question, values, "endpoint chosen", sentence)
    return _service(question, values, "", "{service} is asked")


def _no_endpoints(question: Question, chain: str, service: str) -> RuleObject:
    """A Service without endpoints is rejected, one whose policy is Local dropped."""
    found = re.fullmatch(SERVICE_PORT, service)
    values = _values(found) | ({} if found else {"name": service})
    rejected = question.rule.chain == "reject-chain"
    verdict = element_comments(question, _SETS[chain]).get(f"={packet_key(question, _SETS[chain])}")
    local = not rejected and verdict == "drop"
    sentence = "{service} has no endpoints"
    if local:
        sentence += " on this node, and its traffic policy is Local"
    does = "has no local endpoints" if local else "has no endpoints"
    return _service(question, values, does, sentence, done="dropped" if local else "rejected")


def _values(found: re.Match[str] | None) -> dict[str, str | None]:
    return found.groupdict() if found else {"namespace": "", "name": "", "port": ""}


def _element(question: Question, name: str) -> str:
    """`namespace/name:port` that a map of nftables mode has for the packet; may be empty."""
    return element_comments(question, name).get(packet_key(question, name), "")


def _cluster_ip(question: Question) -> RuleObject:
    packet = question.packet
    address = packet.daddr if packet and packet.daddr else "it"
    if question.action == "rejected":
        port = f" {packet.dport}" if packet and packet.dport else ""
        services = element_comments(question, "service-ips")
        key = next((key for key in services if key.startswith(f"{address}/")), "")
        found = re.fullmatch(SERVICE_PORT, services.get(key, ""))
        values = _values(found) | {"port": ""}
        return _service(question, values, "has no such port", f"{{service}} has no port{port}")
    sentence = f"{address} is in the range of ClusterIPs, but no Service has it"
    return RuleObject(
        _OWNER, "Service", does="unallocated ClusterIP", sentence=_sentence(question, sentence)
    )


def _service(
    question: Question, values: dict[str, str | None], does: str, sentence: str, *, done: str = ""
) -> RuleObject:
    namespace, name = values["namespace"] or "", values["name"] or ""
    packet = question.packet
    number = packet.dport if packet else None
    # After DNAT the packet's port is the endpoint's, and in a rule of no address it may be.
    written = re.search(r"--dport (\d+)", question.rule.text)
    port = str(number) if number else written[1] if written else values.get("port") or ""
    label = f"Service {namespace}/{name}" if name else "The Service"
    label += f":{port}" if port else ""
    label += f" ({packet.daddr})" if packet and packet.daddr else ""
    endpoint = values.get("endpoint") or ""
    pod = question.around.pod_at(endpoint.rpartition(":")[0].strip("[]"))
    if does == "has no endpoints" and f"{namespace}/{name}" in question.around.unready:
        sentence += ": it selects pods, but none is ready"
    text = sentence.format(service=label, endpoint=f"{endpoint} (pod {pod})" if pod else endpoint)
    return RuleObject(
        _OWNER,
        "Service",
        namespace,
        name,
        port,
        does or question.action or "asked",
        _sentence(question, text, done=done),
    )


def _sentence(question: Question, why: str, owner: str = _OWNER, *, done: str = "") -> str:
    done = done or question.action
    if not why:
        return f"{(done or 'passed on').capitalize()} by {owner}."
    if not done or done == "returned":
        return f"{owner}: {why}."
    return f"{done.capitalize()} by {owner}: {why}."
