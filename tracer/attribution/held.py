"""Packets that a rule may have dropped or changed, held back until the rules are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.drops import drop_record
from tracer.analysis.rule_fields import note_death, told_by_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.analysis.drops import Context
    from tracer.analysis.paths import Path
    from tracer.attribution.naming import RuleNaming
    from tracer.model import Record

    Told = tuple[tuple[int, int], Record | list[Record]]
    """(time_ns, skb) of an event, and the rules behind it."""


class HeldPaths:
    """Hands paths through, those that rules took or ended only once the rules are known."""

    def __init__(self, rules: RuleNaming, explain: Callable[[Record], Record]) -> None:
        """`rules` names the rules, `explain` puts the explanation into a drop record."""
        self._rules, self._explain, self._passed = rules, explain, rules.passed()
        self._waiting: dict[int, Path] = {}
        self._deaths: dict[int, Record] = {}

    def add(self, paths: Sequence[Path], context: Context) -> list[Path]:
        """Take complete paths; those that need not wait are given back."""
        through = []
        for path in paths:
            if path.drop is None:
                through.append(path)
                continue
            death = drop_record(path.drop, context, with_stack=True)
            self._waiting[id(death)] = path
            through += self._named(self._rules.add([death], [path.drop]))
        return self._passed.add(through)

    def named(self, *, last: bool = False) -> list[Path]:
        """Paths whose rules are known by now; with `last` all that are left."""
        ended = self._named(self._rules.last() if last else self._rules.named())
        return self._passed.add(ended) + self._passed.named(last=last)

    def complete(self, paths: Sequence[Path], records: Sequence[Record]) -> list[Told]:
        """Put the rules into the records of these paths; returns them by event."""
        told: list[Told] = []
        for path, record in zip(paths, records, strict=True):
            told += self._passed.complete(path, record)
            death = self._deaths.pop(id(path), None)
            if death and path.drop is not None and record["verdict"] == "dropped":
                key = int(path.drop["time_ns"]), int(path.drop["skb"])
                if fields := told_by_rules(death):
                    told.append((key, fields))
                note_death(record, self._explain(death))
        return told

    def _named(self, deaths: Sequence[Record]) -> list[Path]:
        """The paths of these deaths."""
        paths = []
        for death in deaths:
            path = self._waiting.pop(id(death))
            self._deaths[id(path)] = death
            paths.append(path)
        return paths
