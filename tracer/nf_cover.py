"""Which network namespaces have our netfilter links: the node's and those of the pods followed.

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
"""Each takes 20 links; more than this is said, not done."""


class NetfilterCover:
    """Keeps `nf_enter` and `nf_leave` around the hooks of the chosen namespaces."""

    def __init__(self, programs: Mapping[str, int], selection: PodSelection) -> None:
        """`programs`: function → fd; without the netfilter programs nothing is ever attached."""
        self._programs = programs if "nf_enter" in programs else {}
        self._selection = selection
        self._links: dict[int, list[int]] = {}
        self._failed: set[int] = set()

    def update(self, node: Node) -> list[str]:
        """Attach where a namespace has come, detach where one has gone; returns warnings."""
        if not self._programs:
            return []
        wanted = self._wanted(node)
        warnings = []
        for netns in self._links.keys() - wanted:
            self._detach(netns)
        for netns in wanted - self._links.keys() - self._failed:
            if len(self._links) >= MAX_NAMESPACES:
                self._failed.add(netns)
                warnings.append(f"nf-hook: netns {netns} is not covered: {MAX_NAMESPACES} are")
                continue
            path = netns_path(node.namespaces.get(netns), netns)
            links, problem = nf_links.attach(self._programs, path) if path else ([], "")
            self._links[netns] = links
            if problem:
                self._failed.add(netns)
                warnings.append(f"nf-hook: netns {netns}: {problem}")
        return warnings

    def _wanted(self, node: Node) -> set[int]:
        """The node's namespace, those of selected pods, or all when nothing is selected."""
        if self._selection.everything:
            chosen = {netns for netns, space in node.namespaces.items() if not space.gone}
        else:
            chosen = {
                netns
                for netns, uid in node.pod_by_netns.items()
                if self._selection.matches(node.pods[uid]) and not node.pods[uid].gone
            }
        return chosen | {node.netns}

    def _detach(self, netns: int) -> None:
        for link in self._links.pop(netns):
            os.close(link)

    def close(self) -> None:
        """Detach everywhere."""
        for netns in list(self._links):
            self._detach(netns)
