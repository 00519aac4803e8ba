"""Handles of the rules of one chain, where a ruleset is too large to have nft list them all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.inventory.namespaces import run_in
from tracer.inventory.sysctl import netns_path
from tracer.netfilter import nfnl, nft_table

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import Ruleset
    from tracer.attribution.readings import Reading
    from tracer.model import Node

MAX_CHAINS = 256


class Handles:
    """Puts handles into the rules of the chains that are asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, str, str, str], tuple[int, ...]] = {}

    def put(self, node: Node, netns: int, reading: Reading, chain: tuple[str, str, str]) -> Ruleset:
        """The ruleset, the rules of this (family, table, chain) with their handles.

        As it is where it has them already, and where the rules have changed since it was read.
        """
        family, name, chain_name = chain
        table = reading.ruleset.tables.get((family, name, False))
        own = table.chains.get(chain_name) if table else None
        if reading.handles or table is None or own is None or family not in nft_table.NFPROTO:
            return reading.ruleset
        handles = self._read(node, netns, reading.generation, chain)
        if len(handles) != len(own.rules):
            return reading.ruleset
        rules = (replace(rule, handle=it) for rule, it in zip(own.rules, handles, strict=True))
        chains = {**table.chains, chain_name: replace(own, rules=tuple(rules))}
        tables = {**reading.ruleset.tables, table.key: replace(table, chains=chains)}
        return replace(reading.ruleset, tables=tables)

    def _read(
        self, node: Node, netns: int, generation: int, chain: tuple[str, str, str]
    ) -> tuple[int, ...]:
        key = netns, generation, *chain
        if key not in self._known:
            path = netns_path(node.namespaces.get(netns), netns)
            try:
                sock = run_in(path, netns, nfnl.open_socket) if path else None
                if sock is None:
                    return ()
                with sock:
                    found = nft_table.rule_handles(sock, *chain)
                    if nft_table.generation(sock) != generation:
                        return ()
            except OSError:  # the namespace, or the chain, has gone meanwhile: without handles
                return ()
            if len(self._known) >= MAX_CHAINS:
                self._known.clear()
            self._known[key] = found
        return self._known[key]
