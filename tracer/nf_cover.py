"""Which network namespaces have our netfilter links: all, up to a limit, the chosen ones first.

A link keeps its namespace alive, so the links of a namespace go as soon as it is seen to be gone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tracer.inventory.sysctl import netns_path
from tracer.kernel import nf_links

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.analysis.selection import PodSelection
    from tracer.model import Node

MAX_NAMESPACES = 64
"""Each takes 20 links; that more are not covered is said."""


class NetfilterCover:
    """Keeps `nf_enter` and `nf_leave` around the hooks of the chosen namespaces."""

    def __init__(self, programs: Mapping[str, int], selection: PodSelection) -> None:
        """`programs`: function → fd; without the netfilter programs nothing is ever attached."""
        self._programs = programs if "nf_enter" in programs else {}
        self._selection = selection
        self._links: dict[int, list[int]] = {}
        self._crowded = False

    def update(self, node: Node) -> list[str]:
        """Attach where a namespace has come, detach where one has gone; returns warnings."""
        if not self._programs:
            return []
        wanted = self._wanted(node)
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
            self._links[netns], problem = nf_links.attach(self._programs, path)
            if problem:
                warnings.append(f"nf-hook: netns {netns}: {problem}")
        return warnings

    def _wanted(self, node: Node) -> list[int]:
        """Every living namespace, the node's and those of selected pods first.

        Others too: an answer comes from a pod that was not selected.
        """
        first = {node.netns} | {
            netns
            for netns, uid in node.pod_by_netns.items()
            if self._selection.matches(node.pods[uid])
        }
        living = [netns for netns, namespace in node.namespaces.items() if not namespace.gone]
        return sorted(living, key=lambda netns: netns not in first)

    def _detach(self, netns: int) -> None:
        for link in self._links.pop(netns):
            os.close(link)

    def close(self) -> None:
        """Detach everywhere."""
        for netns in list(self._links):
            self._detach(netns)
