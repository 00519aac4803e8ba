"""Explanations with evidence: reads the sysctls a rule asks for, in the namespace of the drop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.analysis.explain import explain, wanted_evidence
from tracer.analysis.policies import denial, denial_fields, judge_drop
from tracer.inventory.sysctl import read_sysctls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracer.model import Node, Record

EVIDENCE_S = 1.0
"""How long a sysctl that was read stays believed."""
MAX_PLACES = 1024
MAX_JUDGED = 4096
_JUDGED_BY = (
    "drop.reason", "netfilter.hook", "transport", "src.address", "dst.address", "dst.port",
    "tcp.flags", "conntrack.state", "conntrack.direction", "netfilter.object.does", "policy.name",
)  # fmt: skip
"""What of a record tells whether policies deny it: drops that agree in these are judged once."""


class Explainer:
    """Adds `explanation` and `hint` to drop records."""

    def __init__(
        self,
        node: Callable[[], Node],
        found: Callable[[int, Mapping[str, str]], None] = lambda _netns, _values: None,
    ) -> None:
        """`node` gives the latest snapshot; `found` is told the sysctls read, by netns."""
        self._node, self._found = node, found
        self._judged: dict[tuple[object, ...], tuple[str, Record] | None] = {}
        self._judged_for: Node | None = None
        self._evidence: dict[tuple[int, tuple[str, ...]], tuple[float, dict[str, str]]] = {}

    def explain(self, record: Record) -> Record:
        """Return the record with its explanation; `drop.stack` must still be in it."""
        wanted = wanted_evidence(record)
        evidence = self._read(record.get("netns", 0), wanted) if wanted else {}
        explanation = explain(record, evidence)
        record["explanation"], record["hint"] = explanation.sentence, explanation.hint
        if denied := self._denied(record):
            sentence, fields = denied
            record["explanation"] = f"{explanation.sentence} {sentence}"
            record["hint"] = f"kubectl describe networkpolicy -n {fields['policy.namespace']}"
            record.update(fields)
        return record

    def _denied(self, record: Record) -> tuple[str, Record] | None:
        """Why no NetworkPolicy allows it, where the cluster is known and none does."""
        node = self._node()
        if node is not self._judged_for or len(self._judged) >= MAX_JUDGED:
            self._judged, self._judged_for = {}, node
        key = tuple(record.get(name) for name in _JUDGED_BY)
        if key not in self._judged:
            found = judge_drop(node, record)
            self._judged[key] = (denial(*found, node), denial_fields(*found)) if found else None
        return self._judged[key]

    def _read(self, netns: int, names: tuple[str, ...]) -> dict[str, str]:
        now_s = time.monotonic()
        read_s, evidence = self._evidence.get((netns, names), (-EVIDENCE_S, {}))
        if now_s - read_s >= EVIDENCE_S:
            if len(self._evidence) >= MAX_PLACES:
                self._evidence.clear()
            evidence = read_sysctls(self._node(), netns, names)
            self._evidence[netns, names] = now_s, evidence
            self._found(netns, evidence)
        return evidence
