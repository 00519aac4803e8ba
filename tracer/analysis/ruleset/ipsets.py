"""Elements of ipsets, and what of a packet is looked up in one (ipset(8))."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.ruleset import values
from tracer.analysis.ruleset.sets import Element, Members, members, remembered
from tracer.analysis.ruleset.steps import Interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.analysis.ruleset.model import Set
    from tracer.analysis.ruleset.steps import Part

_UNKNOWN = "unknown"
_ADDRESSES = frozenset({"ip", "net"})


def key(named: Set, ways: Sequence[str], family: str) -> list[str] | None:
    """Fields that `--match-set NAME src,dst` looks at; None where that is not modelled."""
    _, _, dimensions = named.types[0].partition(":")
    words = dimensions.split(",")
    if len(ways) < len(words):
        return None
    fields: list[str] = []
    for word, way in zip(words, ways, strict=False):
        source = way == "src"
        fields += {
            "ip": [f"{family} {'saddr' if source else 'daddr'}"],
            "net": [f"{family} {'saddr' if source else 'daddr'}"],
            "port": ["meta l4proto", f"th {'sport' if source else 'dport'}"],
            "mac": [f"ether {'saddr' if source else 'daddr'}"],
            "iface": [f"meta {'iifname' if source else 'oifname'}"],
            "mark": ["meta mark"],
        }.get(word, [_UNKNOWN])
    return None if _UNKNOWN in fields else fields


def of_ipset(named: Set) -> Members | None:
    """Elements of an ipset; the data of one is whether it is a `nomatch`.

    None where one of them is not understood.
    """

    def make() -> Members | None:
        words = named.types[0].partition(":")[2].split(",")
        try:
            elements = [_element(words, element) for element in named.elements]
        except (ValueError, KeyError):
            return None
        return members(elements)

    return remembered(named.memo, make)


def _element(words: Sequence[str], element: str) -> Element:
    text, _, options = element.partition(" ")
    parts: list[Part] = []
    for word, item in zip(words, text.split(","), strict=True):
        if word in _ADDRESSES:
            parts.append(_addresses(item))
        elif word == "port":
            protocol, colon, port = item.rpartition(":")
            number = values.literal("inet_proto", protocol.lower() if colon else "tcp")
            first, _, last = port.partition("-")
            parts += [Interval(number, number), Interval(int(first), int(last or first))]
        elif word == "mark":
            parts.append(values.part("mark", item))
        else:
            parts.append(Interval(item.lower(), item.lower()))
    return tuple(parts), "nomatch" in options.split()


def _addresses(text: str) -> Interval:
    low, dash, high = text.partition("-")
    return Interval(values.address(low), values.address(high)) if dash else values.network(text)
