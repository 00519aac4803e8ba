"""Which tc filters the devices have where packets were seen: read then, and again now and then."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.inventory import rtnl, tc
from tracer.inventory.sysctl import netns_path
from tracer.kernel import nf_links, tcx

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.model import Node, TcFilter

FRESH_S = 2.0
"""How long at least what was read is believed: tcx tells nobody of its changes."""
SHARE = 0.01
"""Of a CPU's time: most that reading again may take of each namespace's."""


class TcReader:
    """Knows the filters of the namespaces that `look` was called with, until these are gone."""

    def __init__(self) -> None:
        self._filters: dict[int, tuple[TcFilter, ...]] = {}
        self._due_s: dict[int, float] = {}
        self._told: set[str] = set()
        self._joined: tuple[Node, Node] | None = None

    def look(self, node: Node, namespaces: Iterable[int]) -> list[str]:
        """Read the filters of those that were not read just now; warnings, each once.

        Of a namespace that cannot be opened any more the last reading stays.
        """
        warnings = []
        for netns in namespaces:
            if time.monotonic() < self._due_s.get(netns, 0):
                continue
            begin_s = time.process_time()
            try:
                found = _read(node, netns)
            except OSError as error:
                found = None
                warnings.append(f"tc filters: netns {netns}: {error.strerror}: they are not named")
            took_s = time.process_time() - begin_s
            self._due_s[netns] = time.monotonic() + max(FRESH_S, took_s / SHARE)
            if found is not None and found != self._filters.get(netns):
                self._filters = {**self._filters, netns: found}
                self._joined = None
        if self._due_s.keys() - node.namespaces.keys():
            self._forget(node)
        new = [text for text in warnings if text not in self._told]
        self._told.update(new)
        return new

    def _forget(self, node: Node) -> None:
        """What has gone, and the node no longer remembers either."""
        self._due_s = {n: at for n, at in self._due_s.items() if n in node.namespaces}
        self._filters = {n: one for n, one in self._filters.items() if n in node.namespaces}

    def over(self, node: Node) -> Node:
        """`node` with what was read; the same object as long as neither changes."""
        if self._joined is None or self._joined[0] is not node:
            self._joined = node, replace(node, tc_filters=self._filters)
        return self._joined[1]


def _read(node: Node, netns: int) -> tuple[TcFilter, ...] | None:
    """Every filter of one namespace, None if it cannot be opened; tcx runs before the others."""
    path = netns_path(node.namespaces.get(netns), netns)
    if not path:
        return None
    found: list[TcFilter] = []

    def work() -> None:
        found.extend(tcx.filters(i for space, i in node.devices if space == netns))
        with rtnl.open_socket() as sock:
            found.extend(tc.read_filters(sock))

    nf_links.in_netns(path, work)
    return tuple(found)
