"""nftables' own notation of what libnftables' JSON says (libnftables-json(5)).

What is not known here is shown as its JSON: nothing is left out, nothing raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Json = Any

_BARE_META = {
    "iif", "oif", "iifname", "oifname", "skuid", "skgid", "iiftype", "oiftype", "iifgroup",
    "oifgroup", "rtclassid",
}  # fmt: skip
"""What nft writes without `meta`."""
_QUOTED_META = {"iif", "oif", "iifname", "oifname", "ibrname", "obrname", "sdif", "sdifname"}
_BINARY = ("&", "|", "^", "<<", ">>")
_VERDICTS = {"accept", "drop", "return", "continue", "notrack"}


def rule_text(expressions: Sequence[Json], comment: str = "") -> str:
    """The rule as `nft --stateless list ruleset` shows it: no handle, no counts."""
    words = [statement(expression) for expression in expressions]
    if comment:
        words.append(f'comment "{comment}"')
    return " ".join(filter(None, words))


def statement(node: Json) -> str:
    """One statement or match of a rule."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return value(node)
    ((kind, body),) = node.items()
    if kind in _VERDICTS:
        return str(kind)
    handler = _STATEMENTS.get(kind)
    return handler(body) if handler else expression(node)


def value(node: Json) -> str:
    """A literal, a set or a range, as it stands on the right of a match."""
    if isinstance(node, list):
        return ",".join(map(value, node))
    if isinstance(node, Mapping):
        return expression(node)
    return str(node)


def expression(node: Json) -> str:
    """What a match looks at: `ip saddr`, `meta mark & 0x1`, `ip daddr . th dport`."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return value(node)
    ((kind, body),) = node.items()
    handler = _EXPRESSIONS.get(kind)
    return handler(body) if handler else json.dumps(node)


def _match(body: Json) -> str:
    left, right, operator = body["left"], body["right"], body["op"]
    shown = "" if operator in {"==", "in"} else f"{operator} "
    key = expression(left)
    computed = isinstance(left, Mapping) and any(word in left for word in _BINARY)
    if operator == "==" and (computed or key in {"tcp flags", "ct status", "ct event"}):
        shown = "== "
    return f"{key} {shown}{_operand(left, right)}"


def _operand(left: Json, right: Json) -> str:
    meta = left.get("meta", {}).get("key", "") if isinstance(left, Mapping) else ""
    if meta in _QUOTED_META:
        return _quoted(right)
    if _is_mark(left):
        return _hexadecimal(right)
    return value(right)


def _is_mark(node: Json) -> bool:
    """Whether the value is one that nft writes in hexadecimal."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return False
    ((kind, body),) = node.items()
    if kind in _BINARY:
        return _is_mark(body[0])
    return kind in {"meta", "ct"} and body.get("key") == "mark"


def _hexadecimal(node: Json) -> str:
    if isinstance(node, int):
        return f"0x{node:08x}"
    if isinstance(node, Mapping) and len(node) == 1:
        ((kind, body),) = node.items()
        if kind == "set":
            return _braces(_hexadecimal, body)
        if kind == "range":
            return "-".join(map(_hexadecimal, body))
        if kind in _BINARY:
            return _binary(kind, body, _hexadecimal)
    return value(node)


def _quoted(node: Json) -> str:
    if isinstance(node, Mapping) and "set" in node:
        return _braces(_quoted, node["set"])
    text = value(node)
    return text if text.startswith("@") else f'"{text}"'


def _braces(show: Callable[[Json], str], elements: Json) -> str:
    if not isinstance(elements, list):
        return show(elements)
    return "{ " + ", ".join(_element(show, element) for element in elements) + " }"


def _element(show: Callable[[Json], str], node: Json) -> str:
    if isinstance(node, list):
        key, data = node
        return f"{_element(show, key)} : {statement(data)}"
    return show(node)


def _binary(operator: str, operands: Json, show: Callable[[Json], str]) -> str:
    left, right = operands
    return f"{show(left)} {operator} {show(right)}"


def _operation(operator: str) -> Callable[[Json], str]:
    def show(operands: Json) -> str:
        marked = _is_mark({operator: operands})
        return _binary(operator, operands, _hexadecimal if marked else expression)

    return show


def _payload(body: Json) -> str:
    if "protocol" in body:
        return f"{body['protocol']} {body['field']}"
    return f"@{body['base']},{body['offset']},{body['len']}"


def _meta(body: Json) -> str:
    key = body["key"]
    return str(key) if key in _BARE_META else f"meta {key}"


def _ct(body: Json) -> str:
    key = f"{body['family']} {body['key']}" if "family" in body else body["key"]
    return f"ct {body['dir']} {key}" if "dir" in body else f"ct {key}"


def _numgen(body: Json) -> str:
    offset = f" offset {body['offset']}" if body.get("offset") else ""
    return f"numgen {body['mode']} mod {body['mod']}{offset}"


def _hash(kind: str) -> Callable[[Json], str]:
    def show(body: Json) -> str:
        over = f" {expression(body['expr'])}" if "expr" in body else ""
        seed = f" seed {body['seed']:#x}" if body.get("seed") else ""
        offset = f" offset {body['offset']}" if body.get("offset") else ""
        return f"{kind}{over} mod {body['mod']}{seed}{offset}"

    return show


def _fib(body: Json) -> str:
    flags = body["flags"]
    return f"fib {' . '.join([flags] if isinstance(flags, str) else flags)} {body['result']}"


def _named(body: Json, *, show: Callable[[Json], str] = expression) -> str:
    return body if isinstance(body, str) else _braces(show, body.get("set", body))


def _lookup(word: str) -> Callable[[Json], str]:
    def show(body: Json) -> str:
        return f"{expression(body['key'])} {word} {_named(body['data'], show=value)}"

    return show


def _mangle(body: Json) -> str:
    return f"{expression(body['key'])} set {_operand(body['key'], body['value'])}"


def _counter(body: Json) -> str:
    return f'counter name "{body}"' if isinstance(body, str) else "counter"


def _nat(kind: str) -> Callable[[Json], str]:
    def show(body: Json) -> str:
        if not body:
            return kind
        family = f" {body['family']}" if "family" in body else ""
        goal = value(body["addr"]) if "addr" in body else ""
        bracketed = f"[{goal}]" if ":" in goal and "port" in body else goal
        port = f":{value(body['port'])}" if "port" in body else ""
        to = f"{family} to {bracketed}{port}" if goal or port else ""
        flags = body.get("flags", [])
        return " ".join([kind + to, *([flags] if isinstance(flags, str) else flags)])

    return show


def _reject(body: Json) -> str:
    kind, code = (body or {}).get("type", ""), (body or {}).get("expr", "")
    usual = code == "port-unreachable" and kind != "icmpx"
    return "reject" if usual or not kind else f"reject with {kind} {code}".rstrip()


def _limit(body: Json) -> str:
    unit, burst_unit = body.get("rate_unit", ""), body.get("burst_unit", "packets")
    over = "over " if body.get("inv") else ""
    rate = f"{body['rate']} {unit}".strip() if unit else str(body["rate"])
    text = f"limit rate {over}{rate}/{body['per']}"
    return f"{text} burst {body['burst']} {burst_unit}" if body.get("burst") else text


def _log(body: Json) -> str:
    options = (body or {}).items()
    shown = (
        f'{key} "{item}"' if key == "prefix" else f"{key} {value(item)}" for key, item in options
    )
    return " ".join(["log", *shown])


def _set_update(body: Json) -> str:
    inner = " ".join(map(statement, body.get("stmt", [])))
    return f"{body['op']} {body['set']} {{ {expression(body['elem'])}{' ' * bool(inner)}{inner} }}"


def _queue(body: Json) -> str:
    if not body:
        return "queue"
    flags = body.get("flags", [])
    listed = ",".join([flags] if isinstance(flags, str) else flags)
    return " ".join(
        filter(
            None,
            [
                "queue",
                f"flags {listed}" if listed else "",
                f"to {value(body['num'])}" if "num" in body else "",
            ],
        )
    )


def _elem(body: Json) -> str:
    shown = value(body["val"])
    for name, unit in (("timeout", "s"), ("expires", "s")):
        shown += f" {name} {body[name]}{unit}" if name in body else ""
    return shown + (f' comment "{body["comment"]}"' if "comment" in body else "")


def _word(template: str) -> Callable[[Json], str]:
    return lambda body: template.format(value(body))


_EXPRESSIONS: dict[str, Callable[[Json], str]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "numgen": _numgen,
    "jhash": _hash("jhash"),
    "symhash": _hash("symhash"),
    "fib": _fib,
    "set": lambda body: _braces(value, body),
    "prefix": lambda body: f"{body['addr']}/{body['len']}",
    "range": lambda body: "-".join(map(value, body)),
    "concat": lambda body: " . ".join(map(expression, body)),
    "map": _lookup("map"),
    "elem": _elem,
    "exthdr": lambda body: f"{body['name']} {body['field']}" if "field" in body
    else f"exthdr {body['name']}",
    "tcp option": lambda body: f"tcp option {body['name']} {body.get('field', '')}".strip(),
    "rt": lambda body: f"rt {body.get('family', '')} {body['key']}".replace("  ", " "),
    "socket": lambda body: f"socket {body['key']}",
    "osf": lambda body: f"osf {body['key']}",
    **{operator: _operation(operator) for operator in _BINARY},
}  # fmt: skip

_STATEMENTS: dict[str, Callable[[Json], str]] = {
    "match": _match,
    "jump": lambda body: f"jump {body['target']}",
    "goto": lambda body: f"goto {body['target']}",
    "vmap": _lookup("vmap"),
    "mangle": _mangle,
    "counter": _counter,
    "reject": _reject,
    "limit": _limit,
    "log": _log,
    "set": _set_update,
    "queue": _queue,
    "quota": lambda body: f"quota {value(body)}" if not isinstance(body, Mapping)
    else f"quota {'over ' * bool(body.get('inv'))}{body['val']} {body['val_unit']}",
    "ct helper": _word("ct helper set {}"),
    "ct timeout": _word("ct timeout set {}"),
    "ct expectation": _word("ct expectation set {}"),
    "ct count": lambda body: f"ct count {'over ' * bool(body.get('inv'))}{body['val']}",
    "xt": lambda body: f"xt {body['type']} \"{body['name']}\"",
    "flow": lambda body: f"flow add {body['flowtable']}",
    "fwd": lambda body: f"fwd to {value(body.get('dev', body))}",
    "dup": lambda body: f"dup to {value(body.get('addr', body))}",
    **{kind: _nat(kind) for kind in ("dnat", "snat", "masquerade", "redirect")},
}  # fmt: skip
