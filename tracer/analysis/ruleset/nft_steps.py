"""libnftables' JSON expressions of a rule → its steps (libnftables-json(5))."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

from tracer.analysis.ruleset import values
from tracer.analysis.ruleset.render import expression as expression_text
from tracer.analysis.ruleset.render import statement as statement_text
from tracer.analysis.ruleset.steps import (
    Assign,
    Binary,
    Concat,
    Constant,
    Elements,
    Expression,
    Field,
    Interval,
    Listed,
    Lookup,
    Match,
    Merged,
    Named,
    Nowhere,
    Part,
    Scalar,
    Step,
    Take,
    TakeMapped,
    Translate,
    Unknowable,
)

Json = Any

_CATCH_ALL = "*"
"""The element that holds what no other does; it has no parts."""
_BINARY = frozenset({"&", "|", "^", "<<", ">>"})
_NEIGHBOURS = {"sport": "dport", "type": "code", "ttl": "protocol", "nexthdr": "hoplimit"}
"""Field of a header → the field right behind it."""
_NO_STEP = frozenset({
    "counter", "log", "dup", "flow", "last", "ct helper", "ct timeout", "ct expectation",
    "secmark",
})  # fmt: skip
_UNKNOWABLE = frozenset({"limit", "quota", "ct count", "tproxy", "meter"})
_PLAIN = frozenset({"accept", "drop", "return", "continue"})
_XT_TRUE = frozenset({"comment", "nfacct"})
_XT_CONTINUES = frozenset({"LOG", "NFLOG", "TRACE", "CHECKSUM", "TCPMSS", "CLASSIFY", "AUDIT"})
_XT_NAT = {"DNAT": "dnat", "SNAT": "snat", "MASQUERADE": "masquerade", "REDIRECT": "redirect"}


def steps(expressions: Sequence[Json]) -> tuple[Step, ...]:
    """What the rule does, in order."""
    found: list[Step] = []
    for node in expressions:
        for step in _steps(node):
            if found and (merged := _merged(found[-1], step)):
                found[-1] = merged
            else:
                found.append(step)
    return tuple(found)


def _merged(first: Step, second: Step) -> Merged | None:
    """The two as one where nft may have loaded them so."""
    if not isinstance(first, Match) or not isinstance(second, Match):
        return None
    if not isinstance(first.key, Field) or not isinstance(second.key, Field):
        return None
    protocol, _, name = first.key.name.partition(" ")
    neighbour = f"{protocol} {_NEIGHBOURS.get(name)}" == second.key.name
    plain = all(isinstance(match.goal, Listed) and match.negated for match in (first, second))
    if not neighbour or not plain:
        return None
    return Merged((first, second), f"{first.text} {second.text}")


def verdict(node: Json) -> Take:
    """A verdict as maps hold it: `{"goto": {"target": "x"}}`; ValueError when it is none."""
    if isinstance(node, str):
        node = {node: None}
    ((kind, body),) = node.items()
    if kind in {"jump", "goto"}:
        return Take(kind, body["target"])
    if kind in _PLAIN or kind == "queue":
        return Take(kind)
    raise ValueError(kind)


def elements(kinds: Sequence[str], nodes: Sequence[Json], *, mapped: bool = False) -> Listed:
    """Elements of a set, or of a map: [key, value] pairs. ValueError: a word is not known."""
    found: list[tuple[tuple[Part, ...], Any]] = []
    for node in nodes:
        key, data = node if mapped else (node, None)
        if isinstance(key, Mapping) and "elem" in key:
            key = key["elem"]["val"]
        if key == _CATCH_ALL:
            found.append(((), data))
            continue
        concat = isinstance(key, Mapping) and "concat" in key
        parts = key["concat"] if concat else [key]
        pairs = zip(kinds, parts, strict=True)
        found.append((tuple(_part(kind, part) for kind, part in pairs), data))
    return Listed(tuple(found))


def _steps(node: Json) -> Sequence[Step]:
    if isinstance(node, str):
        node = {node: None}
    ((kind, body),) = node.items()
    if kind in _NO_STEP:
        return ()
    if kind in _UNKNOWABLE:
        return (Unknowable(statement_text(node)),)
    try:
        return _COMPILERS[kind](body, statement_text(node))
    except (KeyError, ValueError, TypeError):
        # A word or an expression of a later nftables: what it does is not known, so it is
        # shown as such. A match can but say no; a statement may do anything.
        text = statement_text(node)
        return (Unknowable(text),) if kind == "match" else (Take("unknown", text),)


def _match(body: Json, text: str) -> Sequence[Step]:
    key = _expression(body["left"])
    kinds, operator, right = _kinds(key), body["op"], body["right"]
    if operator in {"<", ">", "<=", ">="}:
        return (Match(key, Constant(_word(kinds[0], right)), operator, text=text),)
    named = isinstance(right, str) and right.startswith("@")
    flags = kinds[0] in values.FLAGS and len(kinds) == 1 and _is_literal(right) and not named
    if flags and operator in {"in", "!"}:
        goal = Constant(_word(kinds[0], right))
        return (Match(key, goal, "bits", negated=operator == "!", text=text),)
    return (Match(key, _goal(kinds, right), negated=operator == "!=", text=text),)


def _goal(kinds: Sequence[str], node: Json) -> Elements | Expression:
    """What stands on the right of a match without order."""
    if isinstance(node, str) and node.startswith("@"):
        return Named(node[1:])
    if isinstance(node, Mapping):
        if "set" in node:
            members = node["set"]
            return elements(kinds, members if isinstance(members, list) else [members])
        if "concat" in node or "elem" in node:
            return elements(kinds, [node])
        if not {"prefix", "range", "|"} & node.keys():
            return _expression(node)
    return Listed((((_part(kinds[0], node),), None),))


def _part(kind: str, node: Json) -> Part:
    if isinstance(node, Mapping):
        if "prefix" in node:
            body = node["prefix"]
            if isinstance(body["addr"], int):
                raise ValueError(node)
            return values.network(f"{body['addr']}/{body['len']}")
        if "range" in node:
            low, high = (values.literal(kind, word) for word in node["range"])
            return Interval(low, high)
        if "elem" in node:
            return _part(kind, node["elem"]["val"])
    if isinstance(node, str | int) and not isinstance(node, bool):
        return values.part(kind, node)
    value = _word(kind, node)
    return Interval(value, value)


def _word(kind: str, node: Json) -> Scalar:
    """A literal, or flags joined by a list or by `|`; ValueError when it is neither."""
    if isinstance(node, bool):
        return int(node)
    if isinstance(node, Mapping) and "|" in node:
        node = node["|"]
    if isinstance(node, list):
        return reduce(or_, (_number(kind, word) for word in node), 0)
    if isinstance(node, str | int):
        return values.literal(kind, node)
    raise ValueError(node)


def _number(kind: str, node: Json) -> int:
    value = _word(kind, node)
    return value if isinstance(value, int) else int(value, 0)


def _expression(node: Json, kind: str = "") -> Expression:
    if not isinstance(node, Mapping):
        return Constant(_word(kind, node) if kind else constant(node))
    ((word, body),) = node.items()
    if word in _BINARY:
        left = _expression(body[0], kind)
        return Binary(word, left, _right(body[1], _kinds(left)[0]))
    handler = _EXPRESSIONS.get(word)
    return handler(body) if handler else Nowhere(expression_text(node))


def _right(node: Json, kind: str) -> Expression:
    """The right side of an operation: flags of its left side's type, or again an expression."""
    return Constant(_word(kind, node)) if _is_literal(node) else _expression(node, kind)


def _is_literal(node: Json) -> bool:
    """Whether it is a word, or flags: words in a list or joined by `|`."""
    if isinstance(node, Mapping):
        return "|" in node and _is_literal(node["|"])
    return all(map(_is_literal, node)) if isinstance(node, list) else True


def _kinds(key: Expression) -> tuple[str, ...]:
    """Types of what an expression yields, one for each value."""
    if isinstance(key, Field):
        return (values.field_type(key.name),)
    if isinstance(key, Binary):
        return _kinds(key.left)
    if isinstance(key, Concat):
        return tuple(_kinds(part)[0] for part in key.parts)
    return ("integer",)


def constant(node: Json) -> Scalar:
    """A literal that stands alone, as the address of a NAT; ValueError when it is none."""
    is_address = isinstance(node, str) and ("." in node or ":" in node)
    return _word("address" if is_address else "integer", node)


def _fib(body: Json) -> Expression:
    flags = body.get("flags", [])
    listed = [flags] if isinstance(flags, str) else flags
    return Field(f"fib {' '.join(listed)} {body['result']}")


def _ct(body: Json) -> Expression:
    words = ("ct", body.get("dir", ""), body.get("family", ""), body["key"])
    return Field(" ".join(filter(None, words)))


def _payload(body: Json) -> Expression:
    if "protocol" in body:
        return Field(f"{body['protocol']} {body['field']}")
    place = body.get("base"), body.get("offset"), body.get("len")
    return _RAW.get(place) or Nowhere(expression_text({"payload": body}))


def _map(body: Json) -> Expression:
    key = _expression(body["key"])
    return Lookup(key, _data(key, body["data"]))


def _data(key: Expression, node: Json) -> Elements:
    if isinstance(node, str):
        return Named(node.removeprefix("@"))
    kinds = _kinds(key)
    return elements(kinds, node["set"], mapped=True)


def _vmap(body: Json, text: str) -> Sequence[Step]:
    key = _expression(body["key"])
    return (TakeMapped(key, _data(key, body["data"]), text),)


def _mangle(body: Json, _text: str) -> Sequence[Step]:
    key = _expression(body["key"])
    if not isinstance(key, Field):
        return ()
    return (Assign(key.name, _right(body["value"], _kinds(key)[0])),)


def _translate(kind: str) -> Callable[[Json, str], Sequence[Step]]:
    def compile_nat(body: Json, _text: str) -> Sequence[Step]:
        parts = [_nat_part((body or {}).get(name)) for name in ("addr", "port")]
        return (Translate(kind, *parts),)

    return compile_nat


def _nat_part(node: Json) -> Expression | None:
    if node is None:
        return None
    if isinstance(node, Mapping) and {"range", "prefix"} & node.keys():
        return Nowhere(expression_text(node))
    return _expression(node)


def _set_update(body: Json, text: str) -> Sequence[Step]:
    tested = _UNKNOWABLE & {word for node in body.get("stmt", ()) for word in node}
    return (Unknowable(text),) if tested else ()


def _xt(body: Json, text: str) -> Sequence[Step]:
    """An extension of iptables, of which nft says but the name."""
    name = body["name"]
    if body["type"] == "match":
        return () if name in _XT_TRUE else (Unknowable(text),)
    if name in _XT_NAT:
        return (Translate(_XT_NAT[name], Nowhere(text), Nowhere(text)),)
    if name in {"MARK", "CONNMARK"}:
        return (Assign("meta mark", Nowhere(text)), Assign("ct mark", Nowhere(text)))
    if name == "REJECT":
        return (Take("reject"),)
    return () if name in _XT_CONTINUES else (Take("unknown", text),)


def _take(word: str) -> Callable[[Json, str], Sequence[Step]]:
    return lambda _body, _text: (Take(word),)


def _chosen(word: str) -> Callable[[Json], Expression]:
    def compile_number(body: Json) -> Expression:
        text = expression_text({word: body})
        return Nowhere(text, body.get("offset") or 0, body.get("mod") or 0)

    return compile_number


_SPORT, _DPORT = Field("th sport"), Field("th dport")
_RAW: dict[tuple[Any, ...], Expression] = {
    ("th", 0, 16): _SPORT,
    ("th", 16, 16): _DPORT,
    ("th", 0, 32): Binary("|", Binary("<<", _SPORT, Constant(16)), _DPORT),
}
"""What nft lists by its bits, for want of a protocol."""
_EXPRESSIONS: dict[str, Callable[[Json], Expression]] = {
    **{word: _chosen(word) for word in ("numgen", "jhash", "symhash")},
    "payload": _payload,
    "meta": lambda body: Field(f"meta {body['key']}"),
    "ct": _ct,
    "fib": _fib,
    "concat": lambda body: Concat(tuple(map(_expression, body))),
    "map": _map,
}
_COMPILERS: dict[str, Callable[[Json, str], Sequence[Step]]] = {
    "match": _match,
    "vmap": _vmap,
    "mangle": _mangle,
    "set": _set_update,
    "xt": _xt,
    "jump": lambda body, _text: (Take("jump", body["target"]),),
    "goto": lambda body, _text: (Take("goto", body["target"]),),
    "notrack": lambda _body, _text: (Assign("ct state", Constant(values.CT_STATES["untracked"])),),
    "fwd": _take("stolen"),
    **{word: _take(word) for word in (*_PLAIN, "reject", "queue")},
    **{kind: _translate(kind) for kind in ("dnat", "snat", "masquerade", "redirect")},
}
