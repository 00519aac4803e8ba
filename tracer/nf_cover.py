"""Which network namespaces have our netfilter links.

A link keeps its namespace alive, so the links of a namespace go as soon as it is seen to be gone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tracer.analysis.watch import watched
from tracer.inventory import rtnl, tc
from tracer.inventory.sysctl import netns_path, read_sysctls
from tracer.kernel import nf_links, tcx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracer.analysis.selection import PodSelection
    from tracer.model import Device, Node

MAX_NAMESPACES = 64
"""To follow packets each takes 20 links; that more are not covered is said."""
_OF_BRIDGES = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


class NetfilterCover:
    """Keeps programs at the netfilter hooks of some namespaces: the first MAX_NAMESPACES."""

    def __init__(
        self, programs: Mapping[str, int], points: Sequence[nf_links.Point] = nf_links.AROUND
    ) -> None:
        """`programs`: function → fd; without those of `points` nothing is ever attached."""
        self._programs = programs if points[0][1] in programs else {}
        self._points = points
        self._links: dict[int, list[int]] = {}
        self._crowded = False

    def update(self, node: Node, wanted: Sequence[int]) -> list[str]:
        """Attach where a namespace has come, detach where one has gone; returns warnings.

        `wanted`: inodes, what matters most first.
        """
        if not self._programs:
            return []
        warnings = []
        if len(wanted) > MAX_NAMESPACES and not self._crowded:
            self._crowded = True
            left_out = len(wanted) - MAX_NAMESPACES
            warnings.append(f"nf-hook: {left_out} network namespaces are not covered")
        covered = wanted[:MAX_NAMESPACES]
        for netns in self._links.keys() - set(covered):
            self._detach(netns)
        for netns in covered:
            if netns in self._links:
                continue
            path = netns_path(node.namespaces.get(netns), netns)
            if not path:
                continue  # not to be opened yet, or any more
            self._links[netns], problem = nf_links.attach(self._programs, path, self._points)
            if problem:
                warnings.append(f"nf-hook: netns {netns}: {problem}")
        return warnings

    def _detach(self, netns: int) -> None:
        for link in self._links.pop(netns):
            os.close(link)

    def close(self) -> None:
        """Detach everywhere."""
        for netns in list(self._links):
            self._detach(netns)


def followed(selection: PodSelection, node: Node) -> list[int]:
    """Every living namespace, the node's and those of selected pods first.

    Others too: an answer comes from a pod that was not selected.
    """
    first = {node.netns} | {
        netns for netns, uid in node.pod_by_netns.items() if selection.matches(node.pods[uid])
    }
    living = [netns for netns, namespace in node.namespaces.items() if not namespace.gone]
    return sorted(living, key=lambda netns: netns not in first)


def standing_by(selection: PodSelection, node: Node) -> list[int]:
    """Namespaces where packets are chosen on standby."""
    known: dict[int, tuple[bool, bool]] = {}

    def passes_netfilter(device: Device) -> bool:
        if device.netns not in known:
            known[device.netns] = _steers(node, device.netns), _filters_bridges(node, device.netns)
        steers, filters_bridges = known[device.netns]
        return device.kind == "veth" and not steers and (device.master is None or filters_bridges)

    return watched(node, selection, passes_netfilter)


def _filters_bridges(node: Node, netns: int) -> bool:
    """Whether br_netfilter shows netfilter what a bridge forwards."""
    values = read_sysctls(node, netns, _OF_BRIDGES)
    return [values.get(name) for name in _OF_BRIDGES] == ["1", "1"]


def _steers(node: Node, netns: int) -> bool:
    """Whether tc may send a packet of a veth elsewhere, past netfilter; true where not known."""
    veths = {
        device.ifindex
        for device in node.devices.values()
        if device.netns == netns and device.kind == "veth"
    }
    classified: set[int] = set()

    def work() -> None:
        with rtnl.open_socket() as sock:
            classified.update(tc.read_classified(sock))
        classified.update(tcx.with_ingress(veths))

    path = netns_path(node.namespaces.get(netns), netns)
    try:
        if path:
            nf_links.in_netns(path, work)
    except OSError:
        return True
    return not path or bool(veths & classified)
