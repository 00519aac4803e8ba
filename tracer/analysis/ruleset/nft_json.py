"""What `nft -a -j list ruleset` prints → tables (libnftables-json(5)).

Rules keep libnftables' own expressions: `steps` makes sense of them when one is met.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from tracer.analysis.ruleset.model import Base, Body, Chain, Rule, Set, Table
from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Json = dict[str, Any]

_TABLE = re.compile(rb'\{"table":\s*\{')
"""Begins what belongs to one table. It cannot stand in a string: quotes are escaped there."""
_HEAD = re.compile(
    rb'\{"table":\s*\{"family":\s*"([^"]+)",\s*"name":\s*"((?:[^"\\]|\\.)*)"'
    rb'(?:,\s*"handle":\s*(\d+))?.*?\}\}(?=,\s*\{"|\s*$)',
    re.DOTALL,
)
"""A table itself. Its flags may be broken (`_flags`), so that it is read word by word."""
_STRING = rb'"(?:[^"\\]|\\.)*"'
_CHAIN = re.compile(rb'\{"chain":\s*(\{(?:[^{}"]|' + _STRING + rb")*\})\}")
_RULE_HEAD = re.compile(
    rb'\{"rule":\s*\{"family":\s*"[^"]*",\s*"table":\s*'
    + _STRING
    + rb',\s*"chain":\s*"((?:[^"\\]|\\.)*)",\s*"handle":\s*(\d+)'
)
UNREADABLE = "unreadable"
"""A flag that was not told: `dormant`, `owner` or `persist`."""
_PLACED = {"metainfo", "table", "chain", "rule", "set", "map", "element"}
_PRIORITIES = {
    "raw": -300,
    "mangle": -150,
    "dstnat": -100,
    "filter": 0,
    "security": 50,
    "srcnat": 100,
}


def breaks_off(data: bytes) -> bool:
    """Whether the listing ends in the middle.

    nft 1.0.6 prints other memory for the flags of a table, and stops where that is no text.
    """
    return bool(data.strip()) and not data.rstrip().endswith(b"]}")


def sections(data: bytes) -> Iterator[bytes]:
    """The text of each table with all that is in it, in the order printed; whole ones only."""
    starts = [found.start() for found in _TABLE.finditer(data)]
    ends = [*starts[1:], data.rfind(b"]")] if starts else []
    if breaks_off(data):
        starts, ends = starts[:-1], ends[:-1]
    for start, end in zip(starts, ends, strict=True):
        yield data[start:end].rstrip(b", \n")


def place(section: bytes) -> tuple[str, str]:
    """(family, name) of the table that a section is of; TracerError where it has none."""
    family, name, _ = _head(section).groups()
    return family.decode(), name.decode()


def _head(section: bytes) -> re.Match[bytes]:
    if (found := _HEAD.match(section)) is None:
        raise TracerError("nft: a table without family and name", "look at: nft -j list ruleset")
    return found


def _flags(head: bytes) -> frozenset[str]:
    """Flags of a table: nft 1.0.6 prints other memory instead of them, if there are some."""
    if b'"flags"' not in head:
        return frozenset()
    known = {word for word in ("dormant", "owner", "persist") if f'"{word}"'.encode() in head}
    return frozenset(known or {UNREADABLE})


def table(section: bytes, known: Table | None = None) -> Table:
    """One section as a table. Of `known`, an older reading, rules that stayed are taken."""
    head = _head(section)
    family, name, handle = head[1].decode(), head[2].decode(), int(head[3] or 0)
    objects = loads(section)
    # Under one handle a rule never changes, unless the table is another one.
    bodies = _by_handle(known) if known and known.handle == handle else {}
    rules: dict[str, list[Rule]] = {}
    for item in objects:
        if (found := item.get("rule")) is not None:
            listed = rules.setdefault(found["chain"], [])
            listed.append(_rule(found, len(listed), bodies.get(found["handle"])))
    chains = (item["chain"] for item in objects if "chain" in item)
    named = (item.get("set") or item.get("map") for item in objects)
    return Table(
        family=family,
        name=name,
        handle=handle,
        chains={item["name"]: _chain(item, rules.get(item["name"], ())) for item in chains},
        sets={item["name"]: _set(item) for item in named if item},
        objects=_objects(objects),
        flags=_flags(head[0]),
    )


@dataclass(frozen=True, slots=True)
class Outline:
    """Handles and hooks of a table whose rules iptables-save tells better."""

    handle: int
    chains: Mapping[str, Chain]
    """Without their rules."""
    rules: Mapping[str, Sequence[int]]
    """Handles of each chain's rules, in order."""


def outline(section: bytes) -> Outline:
    """One section without what its rules say; of those but the head is looked at."""
    rules: dict[str, list[int]] = {}
    for chain, handle in _RULE_HEAD.findall(section):
        rules.setdefault(chain.decode(), []).append(int(handle))
    chains = (_chain(orjson.loads(found), ()) for found in _CHAIN.findall(section))
    return Outline(int(_head(section)[3] or 0), {c.name: c for c in chains}, rules)


def loads(section: bytes) -> list[Json]:
    """The objects of a section but the table itself; TracerError where it is no JSON."""
    rest = section[_head(section).end() :].lstrip(b", ")
    try:
        found: list[Json] = orjson.loads(b"[" + rest + b"]")
    except orjson.JSONDecodeError as error:
        raise TracerError(
            f"nft: its JSON cannot be read: {error}", "look at: nft -a -j list ruleset"
        ) from error
    return found


def _by_handle(table: Table) -> dict[int, Body]:
    rules = (rule for chain in table.chains.values() for rule in chain.rules)
    return {rule.handle: rule.body for rule in rules}


def _rule(item: Json, index: int, body: Body | None) -> Rule:
    expressions = item["expr"]
    packets = size = None
    for expression in expressions:
        if isinstance(expression, dict) and isinstance(expression.get("counter"), dict):
            counter = expression["counter"]
            packets, size = counter.get("packets"), counter.get("bytes")
    known = body or Body(expressions, item.get("comment", ""))
    at = item["family"], item["table"], item["chain"]
    return Rule(*at, index, item["handle"], known, packets, size)


def _chain(item: Json, rules: Sequence[Rule]) -> Chain:
    base = None
    if "hook" in item:
        devices = item.get("dev", [])
        priority = item.get("prio", 0)
        base = Base(
            item.get("type", "filter"),
            item["hook"],
            _PRIORITIES.get(priority, 0) if isinstance(priority, str) else priority,
            item.get("policy", "accept"),
            (devices,) if isinstance(devices, str) else tuple(devices),
        )
    at = item["family"], item["table"], item["name"]
    return Chain(*at, tuple(rules), base, item.get("handle", 0))


def _set(item: Json) -> Set:
    types = item["type"]
    return Set(
        family=item["family"],
        table=item["table"],
        name=item["name"],
        types=_types(types),
        elements=item.get("elem", ()),
        maps_to=_types(item["map"])[0] if "map" in item else "",
        flags=_words(item.get("flags")) | ({"timeout"} if "timeout" in item else frozenset()),
        comment=item.get("comment", ""),
        handle=item.get("handle", 0),
    )


def _types(found: Any) -> tuple[str, ...]:  # noqa: ANN401 - JSON
    """Type names; of `typeof` sets (an expression) as libnftables spells them."""
    if isinstance(found, str):
        return (found,)
    if isinstance(found, list):
        return tuple(word for item in found for word in _types(item))
    if "typeof" in found:
        return _types(found["typeof"])
    if "concat" in found:
        return _types(found["concat"])
    ((kind, body),) = found.items()
    return (f"{body.get('protocol', kind)} {body.get('field') or body.get('key', '')}".strip(),)


def _objects(items: Sequence[Json]) -> dict[str, Json]:
    named = ((kind, body) for item in items for kind, body in item.items() if kind not in _PLACED)
    return {f"{kind} {body.get('name', '')}": body for kind, body in named}


def _words(found: Any) -> frozenset[str]:  # noqa: ANN401 - a word, a list of words or nothing
    return frozenset([found] if isinstance(found, str) else found or ())
