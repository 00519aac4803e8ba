"""What the watches have told so far, and snapshots of it. One lock, nothing that waits."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from tracer.cluster import parse
from tracer.model import ClusterView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tracer.cluster.parse import Json
    from tracer.model import ClusterPod, Service

LINGER_S = 90.0
"""How long a pod that is gone keeps its name: its last packets are told of later."""
MAX_GONE = 8192
SHARED_SLACK = 1024


def addressed(services: Iterable[Service]) -> dict[str, str]:
    """`Node.service_by_address` of these Services."""
    return {
        f"{port.transport}/{address}/{number}": service.key
        for service in services
        for port in service.ports
        for address, number in (
            *((one, port.port) for one in (*service.addresses, *service.external_addresses)),
            *((("", port.node_port),) if port.node_port else ()),
        )
    }


class Store:
    """Tables that grow and shrink with the events of the watches; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[str, dict[str, Any]] = {
            one.name: {} for one in fields(ClusterView) if one.name != "service_by_address"
        }
        self._dirty: set[str] = set()
        self._gone: dict[str, float] = {}
        self._shared: dict[Any, Any] = {}
        self._view = ClusterView()

    def put(self, kind: str, item: Json) -> str:
        """Take a new or changed object; returns its key."""
        table, read, key = _KINDS[kind]
        value, name = read(item), key(item)
        with self._lock:
            if kind == "pods":
                self._put_pod(name, self._slim(value))
            elif value is not None and self._tables[table].get(name) != value:
                self._tables[table][name] = self._share(value) if table == "owners" else value
                self._dirty.add(table)
        return name

    def drop(self, kind: str, key: str) -> None:
        """Forget an object; a pod keeps its name for a while."""
        table = _KINDS[kind][0]
        with self._lock:
            if kind == "pods":
                if key in self._tables[table] and len(self._gone) < MAX_GONE:
                    self._gone.setdefault(key, time.monotonic() + LINGER_S)
                else:
                    self._forget_pod(key)
            elif self._tables[table].pop(key, None) is not None:
                self._dirty.add(table)

    def keep_only(self, kind: str, keys: set[str]) -> None:
        """A list is complete: what was not in it is gone."""
        table, _, _ = _KINDS[kind]
        mine = self._tables[table]
        prefixed = kind in _OWNING
        with self._lock:
            missing = [
                key
                for key in mine
                if key not in keys and (not prefixed or key.split("/")[1] == _OWNING[kind])
            ]
        for key in missing:
            self.drop(kind, key)

    def view(self) -> ClusterView:
        """The present state; the same object as before where nothing has changed."""
        with self._lock:
            now_s = time.monotonic()
            for key in [key for key, until_s in self._gone.items() if until_s <= now_s]:
                del self._gone[key]
                self._forget_pod(key)
            if not self._dirty:
                return self._view
            changed: dict[str, Any] = {table: dict(self._tables[table]) for table in self._dirty}
            if "services" in self._dirty:
                changed["service_by_address"] = addressed(changed["services"].values())
            self._dirty.clear()
            self._view = replace(self._view, **changed)
            return self._view

    def _put_pod(self, key: str, pod: ClusterPod) -> None:
        tables = self._tables
        self._gone.pop(key, None)
        before = tables["cluster_pods"].get(key)
        if before == pod:
            return
        if before:
            self._unaddress(key, before)
        tables["cluster_pods"][key] = pod
        table, value = (
            ("node_by_address", pod.node) if pod.host_network else ("cluster_pod_by_address", key)
        )
        for address in pod.addresses:
            if tables[table].get(address) != value:
                tables[table][address] = value
                self._dirty.add(table)
        self._dirty.add("cluster_pods")

    def _forget_pod(self, key: str) -> None:
        pod = self._tables["cluster_pods"].pop(key, None)
        if pod:
            self._unaddress(key, pod)
            self._dirty.add("cluster_pods")

    def _unaddress(self, key: str, pod: ClusterPod) -> None:
        """Addresses go with their pod, unless another one has them by now."""
        mine = self._tables["cluster_pod_by_address"]
        for address in pod.addresses:
            if mine.get(address) == key:
                del mine[address]
                self._dirty.add("cluster_pod_by_address")

    def _slim(self, pod: ClusterPod) -> ClusterPod:
        """The same pod; what it has in common with others is there once."""
        if len(self._shared) > 2 * len(self._tables["cluster_pods"]) + SHARED_SLACK:
            self._shared.clear()
        labels = tuple(sorted(pod.labels.items()))
        return replace(
            pod,
            namespace=sys.intern(pod.namespace),
            node=sys.intern(pod.node),
            labels=self._shared.setdefault(labels, pod.labels),
            owner=self._share(pod.owner) if pod.owner else None,
            ports=self._share(pod.ports),
        )

    def _share(self, value: Any) -> Any:  # noqa: ANN401 - returns what it takes
        return self._shared.setdefault(value, value)


_OWNING = {"replicasets": "ReplicaSet", "jobs": "Job"}
"""Kinds that stand between a pod and what the user made."""


def _owner_key(kind: str) -> Callable[[Json], str]:
    def key(item: Json) -> str:
        return f"{item['metadata']['namespace']}/{kind}/{item['metadata']['name']}"

    return key


def _namespace_labels(item: Json) -> Mapping[str, str]:
    return item["metadata"].get("labels") or {}


_KINDS: dict[str, tuple[str, Callable[[Json], Any], Callable[[Json], str]]] = {
    # resource of the API: field of the view, reader, key
    "pods": ("cluster_pods", parse.pod, parse.key_of),
    "services": ("services", parse.service, parse.key_of),
    "endpointslices": ("endpoint_slices", parse.endpoint_slice, parse.key_of),
    "networkpolicies": ("network_policies", parse.network_policy, parse.key_of),
    "namespaces": ("namespace_labels", _namespace_labels, parse.key_of),
    **{kind: ("owners", parse.controller, _owner_key(name)) for kind, name in _OWNING.items()},
}


def key_of(kind: str, item: Json) -> str:
    """The key of an object in its table."""
    return _KINDS[kind][2](item)
