"""The node ↔ JSON: whole the first time, then only what has changed.

Everything of `model.Node` is taken by its type hints: what the model learns, recordings learn.
Fields at their default are left out, unknown ones ignored. Keys of JSON objects are text, so a
device's (netns, ifindex) is `netns/ifindex`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from tracer.model import Node

_UNIONS = (Union, types.UnionType)


def node_patch(old: Node | None, new: Node) -> dict[str, Any]:
    """What makes `new` of `old`; a mapping's key with the value null has gone."""
    patch: dict[str, Any] = {}
    for field in dataclasses.fields(Node):
        before = getattr(old, field.name) if old else None
        now = getattr(new, field.name)
        if before is now or (old and before == now):
            continue
        patch[field.name] = (
            _mapping_patch(before or {}, now) if isinstance(now, Mapping) else _encode(now)
        )
    return patch


def _mapping_patch(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> dict[str, Any]:
    gone = {_key_text(key): None for key in before if key not in now}
    return gone | {
        _key_text(key): _encode(value)
        for key, value in now.items()
        if key not in before or (before[key] is not value and before[key] != value)
    }


class NodeReader:
    """Applies patches, one after the other."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {"name": "", "netns": 0}

    def apply(self, patch: object) -> Node:
        """The node after one more patch; ValueError or TypeError names what is none."""
        if not isinstance(patch, dict):
            raise TypeError("node: not an object")
        hints = _hints(Node)
        for name, raw in patch.items():
            if name not in hints:
                continue
            if get_origin(hints[name]) is not Mapping:
                self._values[name] = _decode(hints[name], raw, name)
                continue
            if not isinstance(raw, dict):
                raise TypeError(f"{name}: not an object")
            key_hint, value_hint = get_args(hints[name])
            entries = dict(self._values.get(name, {}))
            for text, value in raw.items():
                key = _key(key_hint, text, name)
                if value is None:
                    entries.pop(key, None)
                else:
                    entries[key] = _decode(value_hint, value, name)
            self._values[name] = entries
        return Node(**self._values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    # The model imports Mapping for type checkers only.
    return get_type_hints(cls, localns={"Mapping": Mapping})


def printable(text: str) -> str:
    """`text` without what could steer a terminal: a recording may come from anyone."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _encode(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not _is_default(field, getattr(value, field.name))
        }
    if isinstance(value, Mapping):
        return {_key_text(key): _encode(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [_encode(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def _is_default(field: dataclasses.Field[Any], value: object) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return bool(value == field.default)


def _key_text(key: object) -> str:
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _key(hint: object, text: str, where: str) -> object:
    if hint is str:
        return text
    parts = text.split("/")
    wanted = len(get_args(hint)) or 1
    if len(parts) != wanted or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{where}: key '{text}'")
    numbers = tuple(map(int, parts))
    return numbers if get_args(hint) else numbers[0]


def _decode(hint: object, raw: object, where: str) -> object:
    """`raw` as `hint` wants it; ValueError when it is something else."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        inner = next(one for one in args if one is not type(None))
        return None if raw is None else _decode(inner, raw, where)
    if hint is str and isinstance(raw, str):
        return printable(raw)
    if hint in (int, bool, float) and type(raw) is hint:
        return raw
    if origin is tuple and isinstance(raw, list):
        hints = args[:1] * len(raw) if args[1:] == (...,) else args
        if len(hints) == len(raw):
            return tuple(_decode(one, item, where) for one, item in zip(hints, raw, strict=True))
    if origin is Mapping and isinstance(raw, dict):
        return {_key(args[0], key, where): _decode(args[1], raw[key], where) for key in raw}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(raw, dict):
        known = _hints(hint)
        values = {key: _decode(known[key], raw[key], key) for key in raw if key in known}
        try:
            return hint(**values)
        except TypeError as error:
            raise ValueError(f"{where}: {error}") from error
    raise ValueError(f"{where}: unexpected {type(raw).__name__}")
