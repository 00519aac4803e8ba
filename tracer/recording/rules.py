"""The rules that a recorder found behind events: read from its file, and believed little.

What names a rule comes later than the event, up to the end of the file.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from tracer.recording import blocks
from tracer.recording.node_json import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.model import Record

EventKey = tuple[int, int]
"""(time_ns, skb) of an event: no two have the same."""

_NUMBERS = frozenset(("netfilter.handle", "netfilter.priority", "handle", "priority"))
_LISTS = frozenset(("netfilter.path", "netfilter.changes", "path", "changes", "assumed"))
_CANDIDATES = "netfilter.candidates"


class Rules:
    """The fields of drops, and the lists of rules of hops, by event."""

    def __init__(self, told: Iterable[blocks.Block] = ()) -> None:
        """Read them all; where the file is cut or damaged they end, as the events do."""
        self._fields: dict[int, Record | list[Record]] = {}
        self._of: dict[EventKey, int] = {}
        self.nonsense = ""
        """What a block said that nobody understands, and the rules in it are not known."""
        with suppress(blocks.CutError, blocks.DamageError):
            for block in told:
                self._add(block)

    def _add(self, block: blocks.Block) -> None:
        try:
            told = orjson.loads(block.payload)
            for number, fields in told["fields"].items():
                many = isinstance(fields, list)
                self._fields[int(number)] = list(map(_rule, fields)) if many else _rule(fields)
            self._of.update({(int(at), int(skb)): int(number) for at, skb, number in told["of"]})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.nonsense = f"byte {block.at}: {error}"

    def __bool__(self) -> bool:
        return bool(self._of)

    def of_drop(self, key: EventKey) -> Record:
        """The fields that a drop has by them; empty where nothing is known."""
        found = self._fields.get(self._of.get(key, -1))
        return found if isinstance(found, dict) else {}

    def of_hop(self, key: EventKey) -> list[Record]:
        """The rules that took a packet in a netfilter hop."""
        found = self._fields.get(self._of.get(key, -1))
        return found if isinstance(found, list) else []


def _rule(fields: Any) -> Record:  # noqa: ANN401 - JSON
    return {printable(str(name)): _value(name, value) for name, value in fields.items()}


def _value(name: str, value: Any) -> Any:  # noqa: ANN401 - JSON
    if name == _CANDIDATES:
        return [_rule(one) for one in value]
    if name in _LISTS:
        return [_text(one) for one in value]
    if name in _NUMBERS:
        return int(value)
    return value if isinstance(value, int) else _text(value)


def _text(value: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(value, str):
        raise TypeError("not a text")
    return printable(value)
