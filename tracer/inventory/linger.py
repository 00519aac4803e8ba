"""Names of the gone: a pod's last packets are told of after the pod has gone (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable, Mapping, TypeVar

if TYPE_CHECKING:
    from tracer.model import DeviceKey, Node

LINGER_S = 90.0
"""Events arrive within seconds; a minute is promised."""
MAX_GONE = 8192
"""Of each kind of entry: what churn may cost in memory."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class Deadlines:
    """Until when each gone entry stays, by the name of its mapping in `Node`."""

    until: dict[str, dict[Any, float]] = field(default_factory=dict)


def linger(fresh: Node, previous: Node | None, deadlines: Deadlines, now: float) -> Node:
    """`fresh` plus what `previous` knew and `fresh` lacks, for `LINGER_S` (now: seconds)."""
    if previous is None:
        return fresh

    def keep(name: str, mark: Callable[[Any], Any], ours: Callable[[Any, Any], bool]) -> Any:
        until = deadlines.until.setdefault(name, {})
        return _keep(getattr(fresh, name), getattr(previous, name), until, now, mark, ours)

    def gone(value: Any) -> Any:
        return value if value.gone else replace(value, gone=True)

    def same(value: Any) -> Any:
        return value

    reused = {
        inode
        for inode, space in fresh.namespaces.items()
        if (before := previous.namespaces.get(inode)) is None
        or before.gone
        or before.name != space.name
    }
    taken = {
        address: device.netns for device in fresh.devices.values() for address in device.addresses
    }

    def device_is_theirs(key: DeviceKey, _uid: str) -> bool:
        before, now_there = previous.devices.get(key), fresh.devices.get(key)
        is_same = not (before and now_there) or before.name == now_there.name
        return key[0] not in reused and is_same

    def address_is_theirs(address: str, uid: str) -> bool:
        return taken.get(address) in (None, previous.pods[uid].netns if uid in previous.pods else 0)

    return replace(
        fresh,
        pods=keep("pods", gone, lambda _key, _value: True),
        namespaces=keep("namespaces", gone, lambda _key, _value: True),
        devices=keep("devices", same, lambda key, _value: key[0] not in reused),
        pod_by_netns=keep("pod_by_netns", same, lambda key, _uid: key not in reused),
        pod_by_device=keep("pod_by_device", same, device_is_theirs),
        pod_by_address=keep("pod_by_address", same, address_is_theirs),
        pod_by_cgroup=keep("pod_by_cgroup", same, lambda _key, _uid: True),
    )


def _keep(
    fresh: Mapping[K, V],
    previous: Mapping[K, V],
    until: dict[K, float],
    now: float,
    mark: Callable[[V], V],
    ours: Callable[[K, V], bool],
) -> Mapping[K, V]:
    missing = previous.keys() - fresh.keys()
    for key in until.keys() - missing:
        del until[key]
    kept: dict[K, V] = dict(fresh)
    for key in missing:
        deadline = until.setdefault(key, now + LINGER_S)
        if deadline > now and ours(key, previous[key]):
            kept[key] = mark(previous[key])
    if len(kept) - len(fresh) > MAX_GONE:
        for key in sorted(missing & kept.keys(), key=until.__getitem__)[:-MAX_GONE]:
            del kept[key]
    return kept
