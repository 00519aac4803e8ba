"""Exact totals of what died, by whose it was, why and where; pods come and go meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tracer.analysis.drops import place_fields
from tracer.analysis.names import pod_fields
from tracer.analysis.selection import owner
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.analysis.drops import Context
    from tracer.model import Node, Pod, Record

MOST_PLACES = 8192
"""That are named when somebody asks; of others the names of when they died last are kept."""
MOST_GROUPS = 8192
"""Of those others. What was there before them is told by reason and code only."""
SUMS = "packets", "bytes", "shown"

Sums = tuple[int, ...]
Items = tuple[tuple[str, str | int], ...]
"""Fields of a record, to be compared."""


class _Whose(NamedTuple):
    """Whom a key of the kernel's means at one moment."""

    pod: Pod | None
    place: Items
    """Its network namespace."""
    gone: bool

    def may_be(self, before: _Whose) -> bool:
        """Whether it is the same as `before`, of which less may have been known."""
        if before.pod:
            return self.pod is not None and self.pod.uid == before.pod.uid
        return self.place[: len(before.place)] == before.place


class _Place(NamedTuple):
    """What died under one key, and whose it was when it grew last."""

    sums: Sums
    whose: _Whose


class DropTotals:
    """Sums of a whole run, in memory that does not grow for ever.

    Names of what lives are those of the moment of `records`. What has gone is summed under the
    names it had: another pod may get its namespace's number, and its address.
    """

    def __init__(self, most_places: int = MOST_PLACES, most_groups: int = MOST_GROUPS) -> None:
        """Nothing died yet."""
        self._most_places, self._most_groups = most_places, most_groups
        self._places: dict[bytes, _Place] = {}
        """By drop_key; those that grew last come last."""
        self._former: dict[Items, Sums] = {}
        self._node_version = -1

    def add(self, keys: np.ndarray, counts: np.ndarray, context: Context) -> None:
        """Add what died since the last call.

        `keys` is (n,) drop_key, each once, `counts` (n, cpus) drop_count.
        """
        if context.node.version != self._node_version:
            self._node_version = context.node.version
            self._retire((raw for raw in self._places if self._is_gone(raw, context.node)), context)
        sums = np.stack([counts[name].sum(axis=1) for name in SUMS], axis=1)
        for key, row in zip(keys, sums.tolist(), strict=True):
            raw = key.tobytes()
            before = self._places.pop(raw, None)
            grown = _plus(before.sums, row) if before else tuple(row)
            self._places[raw] = _Place(grown, self._whose(raw, before, context.node))
        self._retire(list(self._places)[: max(0, len(self._places) - self._most_places)], context)

    def records(self, context: Context) -> list[Record]:
        """Totals by pod (or else netns) × reason × location, most packets first."""
        table = dict(self._former)
        for raw, place in self._places.items():
            whose = self._whose(raw, place, context.node)
            _sum(table, _group(raw, whose, context), place.sums)
        return [
            {"type": "summary", **dict(group), **dict(zip(SUMS, sums, strict=True))}
            for group, sums in sorted(table.items(), key=lambda item: -item[1][0])
        ]

    def _is_gone(self, raw: bytes, node: Node) -> bool:
        now = _now(raw, node)
        return now.gone or not now.may_be(self._places[raw].whose)

    def _whose(self, raw: bytes, before: _Place | None, node: Node) -> _Whose:
        """By the names of now, unless the key means somebody else by now."""
        now = _now(raw, node)
        return now if before is None or now.may_be(before.whose) else before.whose

    def _retire(self, keys: Iterable[bytes], context: Context) -> None:
        """Sum what is gone under the names that it has, or had."""
        for raw in list(keys):
            place = self._places.pop(raw)
            whose = self._whose(raw, place, context.node)
            _sum(self._former, _group(raw, whose, context), place.sums)
        while len(self._former) > self._most_groups:
            oldest = next(group for group in self._former if len(group) > len(_WHY))
            _sum(self._former, oldest[-len(_WHY) :], self._former.pop(oldest))


_WHY = "drop.reason", "drop.location"


def _key(raw: bytes) -> np.void:
    key: np.void = np.frombuffer(raw, layout().structs["drop_key"])[0]
    return key


def _now(raw: bytes, node: Node) -> _Whose:
    key = _key(raw)
    netns, pod = int(key["netns"]), owner(node, key)
    space = node.namespaces.get(netns)
    place = tuple(place_fields(node, netns, 0).items())
    return _Whose(pod, place, pod.gone if pod else bool(space and space.gone))


def _group(raw: bytes, whose: _Whose, context: Context) -> Items:
    key = _key(raw)
    why = context.reason(int(key["reason"])), context.symbol(int(key["location"]))
    named = tuple(pod_fields("", whose.pod).items()) or whose.place
    return (*named, *zip(_WHY, why, strict=True))


def _plus(one: Iterable[int], other: Iterable[int]) -> Sums:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _sum(table: dict[Items, Sums], group: Items, sums: Sums) -> None:
    table[group] = _plus(table.get(group, (0,) * len(SUMS)), sums)
