"""Whether one test of a rule says yes, no, or neither; what an expression yields."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from tracer.analysis.ruleset import ipsets, nft_steps, sets
from tracer.analysis.ruleset.fields import ABSENT, Absent, Value, View, field
from tracer.analysis.ruleset.steps import (
    Binary,
    Concat,
    Constant,
    Either,
    Expression,
    Field,
    Listed,
    Lookup,
    Match,
    Merged,
    Named,
    Nowhere,
    Take,
    TakeMapped,
    Test,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracer.analysis.ruleset.model import Set
    from tracer.analysis.ruleset.steps import Elements

_BINARY: dict[str, Callable[[int, int], int]] = {
    "&": operator.and_, "|": operator.or_, "^": operator.xor, "<<": operator.lshift,
    ">>": operator.rshift,
}  # fmt: skip
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
    "bits": lambda value, goal: bool(value & goal),
}  # fmt: skip
_MANY = 1024
"""A random number out of more than so many is not looked at one by one."""


class Judge:
    """Judges tests by the sets of one table and the ipsets of its namespace."""

    def __init__(self, named: Mapping[str, Set], ipsets: Mapping[str, Set]) -> None:
        self._sets = named
        self._ipsets = ipsets

    def test(self, test: Test, view: View) -> bool | None:
        """Yes, no, or None: it cannot be known."""
        if isinstance(test, Match):
            return self._match(test, view)
        if isinstance(test, Either):
            answers = [self._match(match, view) for match in test.matches]
            found = True if True in answers else None if None in answers else False
            return _negated(found, negated=test.negated)
        if isinstance(test, Merged):
            both = {self._match(match, view) for match in test.matches}
            return both.pop() if len(both) == 1 else None
        return None

    def value(self, expression: Expression, view: View) -> Value:
        """What an expression of one value yields."""
        if isinstance(expression, Field):
            return field(expression.name, view)
        if isinstance(expression, Constant):
            return expression.value
        if isinstance(expression, Binary):
            return self._binary(expression, view)
        if isinstance(expression, Nowhere):
            low, count = expression.low, expression.count
            return frozenset(range(low, low + count)) if 0 < count <= _MANY else None
        if isinstance(expression, Lookup):
            return self._looked_up(expression, view)
        return None

    def values(self, expression: Expression, view: View) -> list[Value]:
        """What an expression yields, one for each of its parts."""
        parts = expression.parts if isinstance(expression, Concat) else (expression,)
        return [self.value(part, view) for part in parts]

    def verdicts(self, step: TakeMapped, view: View) -> tuple[list[Take], bool]:
        """(verdicts that the map may hold for the key, whether it may hold none)."""
        looked = self.values(step.key, view)
        among = self._members(step.data)
        if among is None:
            return [Take("unknown", step.text)], True
        elements, maybe_none = _among(among, looked)
        found = {_hashable(data): nft_steps.verdict(data) for _, data in elements}
        return list(found.values()), maybe_none

    def _match(self, match: Match, view: View) -> bool | None:
        goal = match.goal
        if isinstance(goal, Named) and goal.ipset:
            return _negated(self._ipset(match, goal.name, view), negated=match.negated)
        looked = self.values(match.key, view)
        # What the packet does not have ends the rule, however the question is put.
        if any(isinstance(value, Absent) for value in looked):
            return False
        if isinstance(goal, Listed | Named):
            return _negated(self._member(goal, looked), negated=match.negated)
        found = _compared(match.operator, looked[0], self.value(goal, view))
        return _negated(found, negated=match.negated)

    def _member(self, goal: Elements, looked: Sequence[Value]) -> bool | None:
        among = self._members(goal)
        if among is None or (isinstance(goal, Named) and self._sets[goal.name].changing):
            return None
        elements, maybe_none = _among(among, looked)
        return bool(elements) and (None if maybe_none else True)

    def _members(self, data: Elements) -> sets.Members | None:
        """None for a set that was not read, or is not understood."""
        if isinstance(data, Listed):
            return sets.of_rule(data)
        named = self._sets.get(data.name)
        return sets.of_set(named) if named else None

    def _ipset(self, match: Match, name: str, view: View) -> bool | None:
        named = self._ipsets.get(name)
        if named is None or named.changing:
            return None
        if named.types[0].startswith("list:"):
            answers = [self._ipset(match, member.split()[0], view) for member in named.elements]
            return True if True in answers else None if None in answers else False
        if named.family != view.packet.family and named.types[0] != "bitmap:port":
            return False
        ways = [str(part.value) for part in _constants(match)]
        keys = ipsets.key(named, ways, view.packet.family)
        among = ipsets.of_ipset(named)
        if keys is None or among is None:
            return None
        return _in_ipset(among, [field(key, view) for key in keys])

    def _binary(self, expression: Binary, view: View) -> Value:
        left = self.value(expression.left, view)
        right = self.value(expression.right, view)
        if isinstance(left, Absent) or isinstance(right, Absent):
            return ABSENT
        function = _BINARY[expression.operator]
        if isinstance(left, int) and isinstance(right, int):
            return function(left, right)
        if isinstance(left, frozenset) and isinstance(right, int):
            return frozenset(function(one, right) for one in left)
        return None

    def _looked_up(self, lookup: Lookup, view: View) -> Value:
        among = self._members(lookup.data)
        elements, maybe_none = _among(among, self.values(lookup.key, view)) if among else ([], True)
        found = [data for _, data in elements]
        if maybe_none or any(data != found[0] for data in found):
            return None
        only = found[0]
        # An address with its port: whoever asks for one value asks for the address.
        first = only["concat"][0] if isinstance(only, dict) and "concat" in only else only
        return nft_steps.constant(first)


def _among(among: sets.Members, looked: Sequence[Value]) -> tuple[list[sets.Element], bool]:
    """(elements that may hold these values, whether maybe none does)."""
    if any(isinstance(value, Absent) for value in looked):
        return [], True
    if all(isinstance(value, int | str) for value in looked):
        found = sets.find(among, looked)
        return ([found], False) if found else ([], True)
    options = looked[0]
    if len(looked) == 1 and isinstance(options, frozenset):
        each = [sets.find(among, [option]) for option in sorted(options)]
        return [element for element in each if element], None in each
    return sets.possible(among, looked), True


def _in_ipset(among: sets.Members, looked: Sequence[Value]) -> bool | None:
    if any(isinstance(value, Absent) for value in looked):
        return False
    if not among.others and not among.lows and None not in looked:
        found = sets.find(among, looked)
        return found is not None and not found[1]
    elements = sets.possible(among, looked)
    if not elements:
        return False
    if None in looked:
        return None
    # Of overlapping networks the smallest decides; whether it is a `nomatch` is its data.
    smallest = min(elements, key=lambda element: sum(_size(part) for part in element[0]))
    return not smallest[1]


def _hashable(data: Any) -> str:  # noqa: ANN401 - JSON
    return repr(data)


def _size(part: Any) -> int:  # noqa: ANN401 - an interval; words have no size
    return part.high - part.low if isinstance(part.low, int) else 0


def _constants(match: Match) -> list[Constant]:
    parts = match.key.parts if isinstance(match.key, Concat) else ()
    return [part for part in parts if isinstance(part, Constant)]


def _compared(word: str, value: Value, goal: Value) -> bool | None:
    if isinstance(value, frozenset):
        answers = {_compared(word, one, goal) for one in value}
        return answers.pop() if len(answers) == 1 else None
    if type(value) is not type(goal) or not isinstance(value, int | str):
        return None
    return value == goal if word == "in" else _ORDER[word](value, goal)


def _negated(answer: bool | None, *, negated: bool) -> bool | None:  # noqa: FBT001 - three values
    return answer if answer is None else answer is not negated
