"""Names of the gone: a pod's last packets are told of after the pod has gone (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracer.model import DeviceKey, Node

LINGER_S = 90.0
"""Events arrive within seconds; a minute is promised."""
MAX_GONE = 8192
"""Of each kind of entry: what churn may cost in memory."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class Lingering:
    """When each gone entry of each mapping is forgotten, in seconds of the caller's clock."""

    deadlines: dict[str, dict[Any, float]] = field(default_factory=dict)

    def keep(
        self,
        name: str,
        now_there: Mapping[K, V],
        before: Mapping[K, V],
        now: float,
        is_theirs: Callable[[K, V], bool] = lambda _key, _value: True,
    ) -> dict[K, V]:
        """Join `now_there` with what of `before` is still to be remembered."""
        missing = before.keys() - now_there.keys()
        known = self.deadlines.get(name, {})
        until = {key: known.get(key, now + LINGER_S) for key in missing}
        kept = [k for k in missing if until[k] > now and is_theirs(k, before[k])]
        kept = sorted(kept, key=until.__getitem__)[-MAX_GONE:]
        self.deadlines[name] = {key: until[key] for key in kept}
        return {**now_there, **{key: before[key] for key in kept}}


def linger(fresh: Node, previous: Node, lingering: Lingering, now: float) -> Node:
    """`fresh` plus what `previous` knew and it lacks, for `LINGER_S`; the living win."""
    reused = _reused(fresh, previous)
    holders = {a: d.netns for d in fresh.devices.values() for a in d.addresses}

    def is_same_device(key: DeviceKey, _value: object) -> bool:
        old, new = previous.devices.get(key), fresh.devices.get(key)
        return key[0] not in reused and not (old and new and old.name != new.name)

    def is_same_holder(address: str, uid: str) -> bool:
        netns = previous.pods[uid].netns if uid in previous.pods else None
        return holders.get(address, netns) == netns

    keep = lingering.keep
    pods = keep("pods", fresh.pods, previous.pods, now)
    spaces = keep("namespaces", fresh.namespaces, previous.namespaces, now)
    return replace(
        fresh,
        pods={k: v if k in fresh.pods else replace(v, gone=True) for k, v in pods.items()},
        namespaces={
            k: v if k in fresh.namespaces else replace(v, gone=True) for k, v in spaces.items()
        },
        devices=keep("devices", fresh.devices, previous.devices, now, is_same_device),
        pod_by_netns=keep(
            "netns",
            fresh.pod_by_netns,
            previous.pod_by_netns,
            now,
            lambda inode, _uid: inode not in reused,
        ),
        pod_by_device=keep(
            "pod devices", fresh.pod_by_device, previous.pod_by_device, now, is_same_device
        ),
        pod_by_address=keep(
            "addresses", fresh.pod_by_address, previous.pod_by_address, now, is_same_holder
        ),
        pod_by_cgroup=keep("cgroups", fresh.pod_by_cgroup, previous.pod_by_cgroup, now),
    )


def _reused(fresh: Node, previous: Node) -> set[int]:
    """Namespaces whose inode belonged to another one: the kernel gives out the lowest free."""
    return {
        inode
        for inode, space in fresh.namespaces.items()
        if (old := previous.namespaces.get(inode)) is None or old.gone or old.name != space.name
    }
