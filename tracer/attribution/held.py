"""Packets that a rule may have dropped, held back until the rule is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.drops import drop_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.analysis.drops import Context
    from tracer.analysis.paths import Path
    from tracer.attribution.naming import RuleNaming
    from tracer.model import Record

_TOLD = ("netfilter.", "service.", "policy.", "explanation", "hint")


class HeldPaths:
    """Hands paths through, those that netfilter ended only once their rule is known."""

    def __init__(self, rules: RuleNaming, explain: Callable[[Record], Record]) -> None:
        """`rules` names the rules, `explain` puts the explanation into a drop record."""
        self._rules, self._explain = rules, explain
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
        return through

    def named(self, *, last: bool = False) -> list[Path]:
        """Paths whose rule is known by now; with `last` all that are left."""
        return self._named(self._rules.last() if last else self._rules.named())

    def complete(self, paths: Sequence[Path], records: Sequence[Record]) -> None:
        """Put the rules into the records of these paths."""
        for path, record in zip(paths, records, strict=True):
            death = self._deaths.pop(id(path), None)
            if death and record["verdict"] == "dropped":
                told = self._explain(death)
                record.update({key: told[key] for key in told if key.startswith(_TOLD)})

    def _named(self, deaths: Sequence[Record]) -> list[Path]:
        """The paths of these deaths."""
        paths = []
        for death in deaths:
            path = self._waiting.pop(id(death))
            self._deaths[id(path)] = death
            paths.append(path)
        return paths
