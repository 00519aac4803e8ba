"""Which pods the user asked for, and by what the kernel can recognise their packets."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tracer.analysis.addresses import address_bytes, address_text
from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from tracer.model import Node, Pod


@dataclass(frozen=True, slots=True)
class PodSelection:
    """Pods by name, namespace and labels; all given criteria must hold."""

    pods: tuple[str, ...] = ()
    """`name` or `namespace/name`; `*` and `?` as in a shell."""
    namespaces: tuple[str, ...] = ()
    selector: Callable[[Mapping[str, str]], bool] | None = None
    selector_text: str = ""

    @property
    def everything(self) -> bool:
        """True when nothing was asked for in particular."""
        return not (self.pods or self.namespaces or self.selector)

    def matches(self, pod: Pod) -> bool:
        """Whether one pod was asked for."""
        if self.pods and not any(_named(pod, pattern) for pattern in self.pods):
            return False
        if self.namespaces and pod.namespace not in self.namespaces:
            return False
        return self.selector is None or self.selector(pod.labels)

    def describe(self) -> str:
        """For messages: what was asked for, as it was written."""
        parts = [f"pod '{name}'" for name in self.pods]
        parts += [f"namespace '{name}'" for name in self.namespaces]
        if self.selector:
            parts.append(f"selector '{self.selector_text}'")
        return ", ".join(parts)


def _named(pod: Pod, pattern: str) -> bool:
    return fnmatchcase(pod.key if "/" in pattern else pod.name, pattern)


def check_selection(selection: PodSelection, node: Node) -> None:
    """Raise TracerError unless some pod of this node is selected."""
    if selection.everything or any(selection.matches(pod) for pod in node.pods.values()):
        return
    known = sorted(pod.key for pod in node.pods.values() if not pod.gone)
    some = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")  # noqa: PLR2004 - a taste
    raise TracerError(
        f"{selection.describe()}: no such pod on this node",
        f"tracer pods lists them ({some})" if known else "tracer pods says why none is known",
    )


def addresses_of(pods: Iterable[Pod]) -> frozenset[bytes]:
    """Addresses (16 bytes each) that are pods' own, so of none on the node's network."""
    own = (pod.addresses for pod in pods if not pod.host_network)
    return frozenset(address_bytes(address) for addresses in own for address in addresses)


@dataclass(frozen=True, slots=True)
class Marks:
    """The contents of the kernel's selection maps: key bytes → value."""

    addresses: Mapping[bytes, int]
    """Every pod address: 1, or 2 when its pod is selected."""
    places: Mapping[tuple[int, int], int]
    """Every (netns, ifindex) of a pod, likewise; ifindex 0 is the whole namespace."""
    cgroups: frozenset[int]
    """cgroup ids of selected host-network pods."""


def marks(selection: PodSelection, node: Node) -> Marks:
    """What the kernel has to know to recognise the pods, and the selected ones among them."""
    chosen = {
        uid for uid, pod in node.pods.items() if not selection.everything and selection.matches(pod)
    }
    places = {(netns, 0): 1 + (uid in chosen) for netns, uid in node.pod_by_netns.items()}
    places |= {
        (netns, ifindex): 1 + (uid in chosen)
        for (netns, ifindex), uid in node.pod_by_device.items()
        if netns not in node.pod_by_netns
    }
    return Marks(
        addresses={
            address_bytes(text): 1 + (uid in chosen) for text, uid in node.pod_by_address.items()
        },
        places=places,
        cgroups=frozenset(
            cgroup
            for cgroup, uid in node.pod_by_cgroup.items()
            if uid in chosen and node.pods[uid].host_network
        ),
    )


def owner(node: Node, place: Mapping[str, Any] | np.void) -> Pod | None:
    """The pod that a record is charged to, by the first of: namespace, device, address, cgroup.

    `place` has `netns`, `ifindex`, `pod_address` (16 bytes) and `cgroup_id`, as the structs
    drop_event, drop_key and flow_key of bpf/event.h (numpy records serve).
    """
    netns = int(place["netns"])
    uid = node.pod_by_netns.get(netns) or node.pod_by_device.get((netns, int(place["ifindex"])))
    if uid is None:
        address = place["pod_address"].tobytes()
        if any(address):
            uid = node.pod_by_address.get(address_text(address))
    if uid is None and netns == node.netns:
        uid = node.pod_by_cgroup.get(int(place["cgroup_id"]))
    return None if uid is None else node.pods.get(uid)
