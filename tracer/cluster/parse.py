"""Objects of the Kubernetes API, as JSON, → the model (pure). Only what is used is kept."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from tracer.model import (
    ClusterPod,
    EndpointSlice,
    NetworkPolicy,
    Owner,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Requirement,
    Selector,
    Service,
    ServicePort,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]

ENDED = ("Succeeded", "Failed")
"""Phases of a pod whose address may be another's by now."""


def key_of(item: Json) -> str:
    """`namespace/name`; of what has no namespace the name."""
    metadata = item["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


def addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Canonical text, each once; what is no address (`None` of a headless Service) is left out."""
    return tuple(dict.fromkeys(filter(None, map(_address, texts))))


@lru_cache(maxsize=4096)
def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def controller(item: Json) -> Owner | None:
    """The controller among the ownerReferences."""
    for reference in item["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"])
    return None


def pod(item: Json) -> ClusterPod:
    """A Pod; one that ended keeps its name, not its addresses."""
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    ended = status.get("phase") in ENDED
    known = [] if ended else [one["ip"] for one in status.get("podIPs") or () if one.get("ip")]
    containers = [
        *(spec.get("containers") or ()),
        *(one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"),
    ]
    return ClusterPod(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        addresses=addresses(known or ([] if ended else filter(None, [status.get("podIP")]))),
        host_network=bool(spec.get("hostNetwork")),
        labels=metadata.get("labels") or {},
        owner=controller(item),
        ports=tuple(
            (port["name"], port.get("protocol", "TCP").lower(), port["containerPort"])
            for container in containers
            for port in container.get("ports") or ()
            if port.get("name")
        ),
    )


def service(item: Json) -> Service:
    """A Service."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    ingress = ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    own = spec.get("clusterIPs") or filter(None, [spec.get("clusterIP")])
    outside = [*(spec.get("externalIPs") or ()), *(one.get("ip", "") for one in ingress)]
    return Service(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        kind=spec.get("type", "ClusterIP"),
        addresses=addresses(own),
        external_addresses=addresses(outside),
        ports=tuple(
            ServicePort(
                port.get("name") or "",
                port.get("protocol", "TCP").lower(),
                port["port"],
                port.get("nodePort") or 0,
            )
            for port in spec.get("ports") or ()
        ),
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_local=spec.get("externalTrafficPolicy") == "Local",
    )


def endpoint_slice(item: Json) -> EndpointSlice:
    """An EndpointSlice; an endpoint of unknown readiness counts as ready, as for kube-proxy."""
    metadata = item["metadata"]
    found: dict[bool, list[str]] = {True: [], False: []}
    for endpoint in item.get("endpoints") or ():
        ready = (endpoint.get("conditions") or {}).get("ready") is not False
        found[ready] += endpoint.get("addresses") or ()
    return EndpointSlice(
        namespace=metadata.get("namespace", ""),
        service=(metadata.get("labels") or {}).get("kubernetes.io/service-name", ""),
        ports=tuple(
            ServicePort(port.get("name") or "", (port.get("protocol") or "TCP").lower(), number)
            for port in item.get("ports") or ()
            if (number := port.get("port"))
        ),
        ready=addresses(found[True]),
        unready=addresses(found[False]),
    )


def network_policy(item: Json) -> NetworkPolicy:
    """A NetworkPolicy; without policyTypes it is about ingress, and egress if it has rules."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return NetworkPolicy(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        pods=_selector(spec.get("podSelector") or {}),
        ingress=_rules(spec, "ingress", "from") if "Ingress" in kinds else None,
        egress=_rules(spec, "egress", "to") if "Egress" in kinds else None,
    )


def _rules(spec: Json, direction: str, peers: str) -> tuple[PolicyRule, ...]:
    return tuple(
        PolicyRule(
            tuple(_peer(one) for one in rule.get(peers) or ()),
            tuple(
                PolicyPort(
                    port.get("protocol", "TCP").lower(),
                    str(port["port"]) if port.get("port") is not None else "",
                    port.get("endPort") or 0,
                )
                for port in rule.get("ports") or ()
            ),
        )
        for rule in spec.get(direction) or ()
    )


def _peer(peer: Json) -> PolicyPeer:
    pods, namespaces = peer.get("podSelector"), peer.get("namespaceSelector")
    block = peer.get("ipBlock") or {}
    return PolicyPeer(
        pods=None if pods is None else _selector(pods),
        namespaces=None if namespaces is None else _selector(namespaces),
        block=block.get("cidr", ""),
        excepted=tuple(block.get("except") or ()),
    )


def _selector(selector: Json) -> Selector:
    return Selector(
        selector.get("matchLabels") or {},
        tuple(
            Requirement(one["key"], one["operator"], tuple(one.get("values") or ()))
            for one in selector.get("matchExpressions") or ()
        ),
    )
