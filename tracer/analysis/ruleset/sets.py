"""Whether values are in a set, and what a map holds for them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from tracer.analysis.ruleset import nft_steps
from tracer.analysis.ruleset.steps import Interval, Listed, Part, Wildcard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracer.analysis.ruleset.fields import Value
    from tracer.analysis.ruleset.model import Set

_Made = TypeVar("_Made")
Element = tuple[tuple[Part, ...], Any]


@dataclass(frozen=True, slots=True)
class Members:
    """Elements, ordered so that one is found quickly."""

    single: Mapping[tuple[Any, ...], Element]
    """Elements of single values."""
    lows: Sequence[Any]
    ordered: Sequence[Element]
    """Intervals of one value each that do not overlap, by their lows."""
    others: Sequence[Element]
    """What is looked through one by one; an element without parts holds everything else."""

    @property
    def all(self) -> list[Element]:
        """Every element."""
        return [*self.single.values(), *self.ordered, *self.others]


def of_rule(listed: Listed) -> Members:
    """Elements that a rule itself brings."""
    return remembered(listed.memo, lambda: members(listed.elements))


def of_set(named: Set) -> Members | None:
    """Elements of a named set or map; None where one of them is not understood."""

    def make() -> Members | None:
        try:
            mapped = bool(named.maps_to)
            listed = nft_steps.elements(named.types, named.elements, mapped=mapped)
        except (ValueError, KeyError, TypeError):
            return None
        return members(listed.elements)

    return remembered(named.memo, make)


def members(elements: Sequence[Element]) -> Members:
    """Elements, ordered."""
    single: dict[tuple[Any, ...], Element] = {}
    intervals: list[Element] = []
    others: list[Element] = []
    catch_all: list[Element] = []
    for element in elements:
        parts = element[0]
        if not parts:
            catch_all.append(element)
        elif all(isinstance(part, Interval) and part.low == part.high for part in parts):
            single[tuple(part.low for part in parts)] = element  # type: ignore[union-attr]
        elif len(parts) == 1 and isinstance(parts[0], Interval):
            intervals.append(element)
        else:
            others.append(element)
    intervals.sort(key=_low)
    if any(_high(first) >= _low(second) for first, second in pairwise(intervals)):
        others, intervals = others + intervals, []
    return Members(single, [_low(element) for element in intervals], intervals, others + catch_all)


def find(among: Members, looked: Sequence[Value]) -> Element | None:
    """The element that holds these values, all of which are numbers or words."""
    exact = among.single.get(tuple(looked))
    if exact is not None:
        return exact
    if among.lows and type(looked[0]) is type(among.lows[0]):
        at = bisect_right(among.lows, looked[0]) - 1
        if at >= 0 and holds(among.ordered[at][0], looked):
            return among.ordered[at]
    return next((element for element in among.others if holds(element[0], looked)), None)


def possible(among: Members, looked: Sequence[Value]) -> list[Element]:
    """Elements that may hold these values, of which some are not known."""
    return [element for element in among.all if holds(element[0], looked)]


def holds(parts: Sequence[Part], looked: Sequence[Value]) -> bool:
    """Whether an element's parts hold, or may hold, the values."""
    return all(map(_holds, parts, looked))


def _holds(part: Part, value: Value) -> bool:
    if value is None:
        return True
    if isinstance(value, frozenset):
        return any(_holds(part, one) for one in value)
    if isinstance(part, Wildcard):
        return isinstance(value, str) and value.startswith(part.prefix)
    if isinstance(value, int) and isinstance(part.low, int) and isinstance(part.high, int):
        return part.low <= value <= part.high
    return part.low == value


def _low(element: Element) -> Any:  # noqa: ANN401 - numbers or words
    return element[0][0].low  # type: ignore[union-attr]


def _high(element: Element) -> Any:  # noqa: ANN401 - same
    return element[0][0].high  # type: ignore[union-attr]


def remembered(memo: dict[str, Any], make: Callable[[], _Made]) -> _Made:
    """The members that `make` makes, once for each `memo`."""
    if "members" not in memo:
        memo["members"] = make()
    found: _Made = memo["members"]
    return found
