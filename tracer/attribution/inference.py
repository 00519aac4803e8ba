"""Which rules took a packet in a hook that it passed, by the rules as they read: inferred."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.analysis.rule_fields import INFERRED, rule_fields
from tracer.analysis.rule_hops import changes_by, decisions, packets_of
from tracer.analysis.rule_infer import passed_ends
from tracer.analysis.rule_packet import host_of
from tracer.analysis.ruleset.model import XT_LEGACY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.analysis.paths import Path
    from tracer.analysis.rule_hops import HookHop
    from tracer.analysis.ruleset.model import End, Packet, Ruleset
    from tracer.attribution.behind import Behind
    from tracer.attribution.readings import Reading
    from tracer.model import Node, Record

SHARE = 1 / 4
"""Most of the time that evaluating rules may take: of 10,000s of them, one packet takes a while."""
BURST_S = 1.0
"""That much of it may be taken at once."""
MAX_KEPT = 4096
"""Most packets are like others: what was worked out for one is kept for the next."""
_FAMILIES = ("ip", "ip6")


class Inference:
    """Evaluates rules for the packets of hops, as far as there is time."""

    def __init__(self, node: Callable[[], Node], behind: Behind) -> None:
        """`node` gives the latest snapshot."""
        self._node, self._behind = node, behind
        self._kept: dict[tuple[object, ...], tuple[Ruleset, list[Record]]] = {}
        self._left_s, self._since_s = BURST_S, time.monotonic()
        self.skipped = 0

    @staticmethod
    def can(hop: HookHop) -> bool:
        """Whether a hop tells enough: the packet came, and left again."""
        return hop.leave >= 0 and hop.family in _FAMILIES

    def entries(
        self, path: Path, hop: HookHop, reading: Reading, *, only_legacy: bool
    ) -> list[Record]:
        """How each base chain ended, as far as the rules tell it; `only_legacy`: xtables' own."""
        node = self._node()
        packet, left = packets_of(path, hop, node)
        key = hop.netns, hop.hook, node.version, packet, left, only_legacy
        known = self._kept.get(key)
        if known is None or known[0] is not reading.ruleset:
            began_s = time.monotonic()
            self._left_s = min(BURST_S, self._left_s + (began_s - self._since_s) * SHARE)
            self._since_s = began_s
            if self._left_s < 0:
                self.skipped += 1
                return []
            ends = passed_ends(reading.ruleset, hop.hook, packet, left, host_of(node, hop.netns))
            entries = [
                entry
                for end in ends
                if not only_legacy or end.base.backend == XT_LEGACY
                for entry in entries_of(end, packet, reading, self._behind, INFERRED, hop.netns)
            ]
            self._left_s -= time.monotonic() - began_s
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            known = self._kept[key] = reading.ruleset, entries
        return known[1]


def entries_of(
    end: End, packet: Packet, reading: Reading, behind: Behind, source: str, netns: int = 0
) -> list[Record]:
    """The entries of a hop's `rules` for the end of one base chain.

    With `netns`, handles that a reading lacks are looked up there.
    """
    entries = []
    for one in decisions(end):
        placed = behind.with_handle(one, netns, reading) if netns else one
        entry, changes = rule_fields(placed, source), changes_by(placed.rule)
        entry |= {"netfilter.changes": changes} if changes else {}
        if placed.rule or placed.verdict == "drop":
            entry |= behind.object(placed, packet, reading)
        entries.append(entry)
    return entries
