"""What `ipset save` prints → sets by name."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.model import Set

if TYPE_CHECKING:
    from collections.abc import Sequence


def sets(text: str) -> dict[str, Set]:
    """Every ipset; an element is its words, as `10.0.0.1,tcp:80 nomatch`."""
    kinds: dict[str, Sequence[str]] = {}
    elements: dict[str, list[str]] = {}
    for line in text.splitlines():
        verb, _, rest = line.partition(" ")
        name, _, words = rest.partition(" ")
        if verb == "create":
            kinds[name], elements[name] = words.split(), []
        elif verb == "add":
            elements[name].append(_without_comment(words))
    return {name: _set(name, words, elements[name]) for name, words in kinds.items()}


def _set(name: str, words: Sequence[str], elements: Sequence[str]) -> Set:
    kind, *options = words
    family = "ip6" if "inet6" in options else "ip"
    # `timeout 0` is a set whose elements may get one: those that have one vanish by themselves.
    expires = any(" timeout " in element and " timeout 0" not in element for element in elements)
    default = options[options.index("timeout") + 1] if "timeout" in options else "0"
    flags = {"timeout"} if expires or default != "0" else set()
    return Set(family, "", name, (kind,), tuple(elements), flags=frozenset(flags))


def _without_comment(words: str) -> str:
    if '"' not in words:
        return words
    split = shlex.split(words)
    at = split.index("comment") if "comment" in split else len(split)
    return " ".join(split[:at] + split[at + 2 :])
