"""Allow and deny lists of flow records: JSON filters as those of Hubble's exporter.

A filter is an object of fields, each with a list of values. A flow passes one if every field has a
value that holds; it is kept if it passes one filter of the allow list (or there is none) and no
filter of the deny list. Field names and the meaning of values are those of Hubble's FlowFilter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.analysis.labels import parse_selector
from tracer.analysis.packet import TCP_FLAGS, transport
from tracer.errors import TracerError, like

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tracer.flow_table import FlowTable
    from tracer.model import Node

    Mask = NDArray[np.bool_]
    Words = Callable[[str], bool]

_VERDICTS = {"FORWARDED": "forwarded", "DROPPED": "dropped"}
_DIRECTIONS = {"INGRESS": "ingress", "EGRESS": "egress"}
_VERSIONS = {"IPv4": "ipv4", "IPv6": "ipv6"}
_ENDS = {"source": "src", "destination": "dst"}
_PORTS = range(1 << 16)
_OBJECTS = {
    **{f"{word}_workload": {"name", "kind"} for word in _ENDS},
    "tcp_flags": {*TCP_FLAGS},
}
"""Fields whose values are objects, and what may be in those."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """What filters look at."""

    table: FlowTable
    node: Node

    def text(self, name: str, holds: Words) -> Mask:
        """Where a column of text holds; each word is looked at once."""
        column = self.table.columns.get(name)
        if column is None:
            return np.zeros(self.table.rows, bool)
        good = np.array([*map(holds, column.words or ()), False], bool)
        return np.asarray(good[column.values.astype(np.int64)])

    def number(self, name: str, values: Sequence[int]) -> Mask:
        """Where a column of numbers has one of `values`."""
        column = self.table.columns.get(name)
        if column is None:
            return np.zeros(self.table.rows, bool)
        return np.asarray(np.isin(column.values, values) & column.present)


def parse_filter(text: str, option: str) -> Callable[[_Rows], Mask]:
    """One filter, such as `{"source_pod":["shop/"],"verdict":["DROPPED"]}`; TracerError if none."""
    hint = 'example: \'{"destination_pod":["shop/web-"],"destination_port":["80"]}\''
    try:
        fields = json.loads(text)
    except ValueError:
        raise TracerError(f"{option} '{text}': not JSON", hint) from None
    if not isinstance(fields, dict) or not fields:
        raise TracerError(f"{option} '{text}': not an object of fields", hint)
    tests = []
    for name, values in fields.items():
        if name not in _TESTS:
            raise TracerError(f"{option}: no field '{name}' to filter by", like(name, _TESTS))
        many = values if isinstance(values, list) else [values]
        try:
            tests.append(_TESTS[name](_checked(name, many)))
        except ValueError as error:
            raise TracerError(f"{option}: {name}: {json.dumps(values)}: {error}", hint) from None
    return lambda rows: np.logical_and.reduce([test(rows) for test in tests])


def _checked(name: str, values: list[Any]) -> list[Any]:
    """`values`, if they are of the kind that field `name` takes; ValueError."""
    if not values:
        raise ValueError("no value")
    for value in values:
        if name in _OBJECTS:
            if not isinstance(value, dict) or not value or not _OBJECTS[name] >= value.keys():
                raise ValueError(f"not an object of {', '.join(sorted(_OBJECTS[name]))}")
        elif not isinstance(value, str) and not (_is_port(name) and type(value) is int):
            raise ValueError("not a text")
    return values


def _is_port(name: str) -> bool:
    return name.endswith("_port")


@dataclass(frozen=True, slots=True)
class Lists:
    """An allow list and a deny list."""

    allow: tuple[Callable[[_Rows], Mask], ...] = ()
    deny: tuple[Callable[[_Rows], Mask], ...] = ()

    def keep(self, table: FlowTable, node: Node) -> Mask:
        """(n,): which records are kept; those that tell of losses always are."""
        rows = _Rows(table, node)
        kept = np.full(table.rows, not self.allow)
        for one in self.allow:
            kept |= one(rows)
        for one in self.deny:
            kept &= ~one(rows)
        return np.asarray(kept | rows.text("type", "lost".__eq__))


def parse_lists(allow: Iterable[str], deny: Iterable[str]) -> Lists:
    """Lists of filters, one JSON object each."""
    return Lists(
        tuple(parse_filter(text, "--allow") for text in allow),
        tuple(parse_filter(text, "--deny") for text in deny),
    )


def _any(rows: _Rows, masks: Iterable[Mask]) -> Mask:
    found = np.zeros(rows.table.rows, bool)
    for mask in masks:
        found |= mask
    return found


def _any_word(name: str, holds: Words) -> Callable[[_Rows], Mask]:
    return lambda rows: rows.text(name, holds)


def _one_of(name: str, known: Mapping[str, str], values: Sequence[Any]) -> Callable[[_Rows], Mask]:
    for value in values:
        if value not in known:
            raise ValueError(f"not one of {', '.join(known)}")
    wanted = {known[value] for value in values}
    return _any_word(name, wanted.__contains__)


def _address(end: str, values: Sequence[str]) -> Callable[[_Rows], Mask]:
    networks = [ip_network(value, strict=False) for value in values]
    return _any_word(
        f"{end}.address", lambda text: any(ip_address(text) in network for network in networks)
    )


def _port(end: str, values: Sequence[Any]) -> Callable[[_Rows], Mask]:
    ports = [int(value) if str(value).isdecimal() else -1 for value in values]
    if any(port not in _PORTS for port in ports):
        raise ValueError(f"not a port, 0 to {_PORTS[-1]}")
    return lambda rows: rows.number(f"{end}.port", ports)


def _pod(end: str, values: Sequence[str]) -> Callable[[_Rows], Mask]:
    """`shop/web-`: begin of a name in a namespace; `shop/`: all of it; `web-`: in any."""
    parted = [value.rpartition("/") for value in values]
    wanted = [(namespace, name) for namespace, _, name in parted]

    def one(rows: _Rows, namespace: str, begin: str) -> Mask:
        named = rows.text(f"k8s.{end}.pod.name", lambda text: text.startswith(begin))
        if namespace:
            named &= rows.text(f"k8s.{end}.namespace", namespace.__eq__)
        return named

    return lambda rows: _any(rows, [one(rows, *pair) for pair in wanted])


def _labels(end: str, values: Sequence[str]) -> Callable[[_Rows], Mask]:
    selectors = [parse_selector(value.removeprefix("k8s:")) for value in values]

    def test(rows: _Rows) -> Mask:
        chosen: dict[str, set[str]] = {}
        for pod in rows.node.pods.values():
            if any(selector(pod.labels) for selector in selectors):
                chosen.setdefault(pod.namespace, set()).add(pod.name)
        masks = [
            rows.text(f"k8s.{end}.namespace", namespace.__eq__)
            & rows.text(f"k8s.{end}.pod.name", names.__contains__)
            for namespace, names in chosen.items()
        ]
        return _any(rows, masks)

    return test


def _workload(end: str, values: Sequence[dict[str, str]]) -> Callable[[_Rows], Mask]:
    wanted = [(value.get("name", ""), value.get("kind", "")) for value in values]

    def one(rows: _Rows, name: str, kind: str) -> Mask:
        named = rows.text(f"k8s.{end}.owner.name", lambda text: name in ("", text))
        return named & rows.text(f"k8s.{end}.owner.kind", lambda text: kind in ("", text))

    return lambda rows: _any(rows, [one(rows, *pair) for pair in wanted])


def _service(values: Sequence[str]) -> Callable[[_Rows], Mask]:
    """`shop/web`: asked or answering."""
    wanted = [value.partition("/") for value in values]
    if not all(namespace and name for namespace, _, name in wanted):
        raise ValueError("write it as namespace/name")

    def one(rows: _Rows, namespace: str, name: str) -> Mask:
        named = rows.text("service.name", name.__eq__)
        return named & rows.text("service.namespace", namespace.__eq__)

    return lambda rows: _any(rows, [one(rows, of, name) for of, _, name in wanted])


def _flags(values: Sequence[dict[str, bool]]) -> Callable[[_Rows], Mask]:
    """`{"SYN":true}`: all that are true must have been seen."""
    wanted = [{name for name, on in value.items() if on} for value in values]
    return _any_word("tcp.flags", lambda text: any(one <= {*text.split(",")} for one in wanted))


def _name(name: str, values: Sequence[str]) -> Callable[[_Rows], Mask]:
    """A name that may hold `*` and `?`; what Hubble puts before a slash is left out."""
    patterns = [value.rpartition("/")[2] for value in values]
    return _any_word(name, lambda text: any(fnmatchcase(text, pattern) for pattern in patterns))


def _fqdn(end: str, values: Sequence[str]) -> Callable[[_Rows], Mask]:
    """A DNS name that may hold `*`; of several names of an address one."""
    patterns = [value.lower().rstrip(".") for value in values]

    def holds(names: str) -> bool:
        return any(fnmatchcase(one, pattern) for one in names.split(",") for pattern in patterns)

    return _any_word(f"{end}.dns.name", holds)


def _protocol(values: Sequence[str]) -> Callable[[_Rows], Mask]:
    wanted = {value.lower().replace("icmpv4", "icmp") for value in values}
    unknown = wanted - {transport(number) for number in range(1 << 8)}
    if unknown:
        raise ValueError(f"'{min(unknown)}' is no protocol; those without a name go by number")
    return _any_word("transport", wanted.__contains__)


_TESTS: Mapping[str, Callable[[Any], Callable[[_Rows], Mask]]] = {
    **{f"{word}_ip": partial(_address, end) for word, end in _ENDS.items()},
    **{f"{word}_port": partial(_port, end) for word, end in _ENDS.items()},
    **{f"{word}_pod": partial(_pod, end) for word, end in _ENDS.items()},
    **{f"{word}_label": partial(_labels, end) for word, end in _ENDS.items()},
    **{f"{word}_workload": partial(_workload, end) for word, end in _ENDS.items()},
    **{f"{word}_fqdn": partial(_fqdn, end) for word, end in _ENDS.items()},
    "verdict": partial(_one_of, "verdict", _VERDICTS),
    "traffic_direction": partial(_one_of, "direction", _DIRECTIONS),
    "ip_version": partial(_one_of, "network.type", _VERSIONS),
    "protocol": _protocol,
    "service": _service,
    "tcp_flags": _flags,
    "node_name": partial(_name, "k8s.node.name"),
    "interface": partial(_name, "interface.name"),
    "drop_reason": partial(_name, "drop.reason"),
}
"""Hubble's fields, and `service`; but `drop_reason` has the kernel's names."""
