"""Whose is this address: pods of the node and of the cluster, what made them, Services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.workload import Workload, workload
from tracer.model import ClusterPod, Pod

if TYPE_CHECKING:
    from tracer.model import Node, Record, Service

_MAX_OWNERS = 4
"""A pod, its Job, its CronJob: nobody stacks them higher."""


def pod_at(node: Node, address: str) -> Pod | ClusterPod | None:
    """The pod with this address: one of the node's, else one of the cluster's."""
    uid = node.pod_by_address.get(address)
    if uid is not None and uid in node.pods:
        return node.pods[uid]
    return node.cluster_pods.get(node.cluster_pod_by_address.get(address, ""))


def owner_of(node: Node, pod: Pod | ClusterPod) -> Workload | None:
    """What made a pod in the end: as the API tells it, else as its labels do."""
    known = node.cluster_pods.get(pod.key)
    if known is None:
        return workload(pod)
    owner = known.owner
    for _ in range(_MAX_OWNERS):
        above = owner and node.owners.get(f"{pod.namespace}/{owner.kind}/{owner.name}")
        if not above:
            break
        owner = above
    return Workload(owner.kind, owner.name) if owner else None


def pod_fields(prefix: str, pod: Pod | ClusterPod | None) -> Record:
    """`k8s.…` fields of one pod, none where there is no pod."""
    if pod is None:
        return {}
    dot = f"k8s.{prefix}." if prefix else "k8s."
    name = {f"{dot}pod.name": pod.name or (pod.uid if isinstance(pod, Pod) else "")}
    if not pod.namespace:  # a pod known by its uid only
        return name
    return {f"{dot}namespace" if prefix else "k8s.pod.namespace": pod.namespace, **name}


def who_fields(node: Node, prefix: str, pod: Pod | ClusterPod | None) -> Record:
    """The same, and what made the pod."""
    fields = pod_fields(prefix, pod)
    owner = owner_of(node, pod) if pod else None
    if owner:
        dot = f"k8s.{prefix}.owner" if prefix else "k8s.owner"
        fields |= {f"{dot}.kind": owner.kind, f"{dot}.name": owner.name}
    return fields


def service_at(node: Node, transport: str, address: str, port: int) -> Service | None:
    """The Service that is reached there: by ClusterIP, external address or NodePort."""
    known = node.service_by_address
    key = known.get(f"{transport}/{address}/{port}")
    if key is None and f"{transport}//{port}" in known and address in node_addresses(node):
        key = known[f"{transport}//{port}"]
    return node.services.get(key or "")


def node_addresses(node: Node) -> set[str]:
    """Addresses of this node, and of those of the cluster that are known."""
    own = (device.addresses for key, device in node.devices.items() if key[0] == node.netns)
    return {*node.node_by_address, *(address for addresses in own for address in addresses)}


def service_fields(node: Node, record: Record) -> Record:
    """`service.…` of a packet's connection: its destination before DNAT, if a Service is there."""
    if not node.services:
        return {}
    transport = record.get("transport", "")
    for end in ("conntrack.orig.dst", "dst", "src"):  # an answer comes from the Service
        address, port = record.get(f"{end}.address"), record.get(f"{end}.port")
        if address and port and (service := service_at(node, transport, address, port)):
            return {
                "service.namespace": service.namespace,
                "service.name": service.name,
                "service.address": address,
                "service.port": port,
                **({"service.source": service.source} if service.source else {}),
            }
    return {}
