"""On standby: the few network namespaces in which what is asked for passes netfilter, once."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.analysis.selection import PodSelection
    from tracer.model import Device, Node


def watched(
    node: Node, selection: PodSelection, passes_netfilter: Callable[[Device], bool]
) -> list[int]:
    """Namespaces to watch. Of selected pods their own: the packets of others cost nothing then.

    Of everything the node's, and all others but those from which each packet comes into one of
    these: by a veth whose other end, as `passes_netfilter` says, hands it to netfilter.
    """
    if not selection.everything:
        chosen = [pod for pod in node.pods.values() if selection.matches(pod) and not pod.gone]
        return sorted({node.netns if pod.host_network else pod.netns or 0 for pod in chosen} - {0})
    devices = _devices(node)
    living = [netns for netns, namespace in node.namespaces.items() if not namespace.gone]
    living.sort(key=lambda netns: (netns != node.netns, -len(devices[netns]), netns))
    taken: list[int] = []
    for netns in living:
        ends = [node.devices.get(device.peer or (0, 0)) for device in devices[netns]]
        leads = [end and end.netns in taken and passes_netfilter(end) for end in ends]
        if not leads or not all(leads):
            taken.append(netns)
    return taken


def _devices(node: Node) -> defaultdict[int, list[Device]]:
    """Of each namespace the devices that lead out of it."""
    found: defaultdict[int, list[Device]] = defaultdict(list)
    for device in node.devices.values():
        if device.name != "lo":
            found[device.netns].append(device)
    return found
