"""Kubernetes label selectors: `app=web,tier!=db,env in (a,b),track notin (x),zone,!gpu`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Matcher = Callable[[Mapping[str, str]], bool]

HINT = "examples: app=web  tier!=db  'env in (test,prod)'  'track notin (canary)'  zone  '!gpu'"

_KEY = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?/)?[A-Za-z0-9](?:[-\w.]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-\w.]*[A-Za-z0-9])?)?"
_VALUES = rf"\s*{_VALUE}\s*(?:,\s*{_VALUE}\s*)*"
_REQUIREMENT = re.compile(
    rf"""\s*(?:
        !\s*(?P<absent>{_KEY})
      | (?P<set_key>{_KEY})\s+(?P<set_op>in|notin)\s*\((?P<values>{_VALUES})\)
      | (?P<key>{_KEY})\s*(?P<op>==|=|!=)\s*(?P<value>{_VALUE})
      | (?P<present>{_KEY})
    )\s*(?:,|$)""",
    re.VERBOSE | re.ASCII,
)


def parse_selector(text: str) -> Matcher:
    """Read a selector as kubectl does; every requirement must hold. TracerError if it is none.

    As in Kubernetes, `!=` and `notin` also hold where the label is absent.
    """
    requirements: list[Matcher] = []
    at = 0
    while at < len(text) or not requirements:
        found = _REQUIREMENT.match(text, at)
        if not found:
            raise TracerError(f"selector '{text}': not understood at '{text[at:].strip()}'", HINT)
        requirements.append(_matcher(found))
        at = found.end()
    if text.rstrip().endswith(","):
        raise TracerError(f"selector '{text}': ends with a comma", HINT)
    return lambda labels: all(requirement(labels) for requirement in requirements)


def _matcher(found: re.Match[str]) -> Matcher:
    if key := found["absent"]:
        return lambda labels: key not in labels
    if key := found["present"]:
        return lambda labels: key in labels
    key = found["set_key"] or found["key"]
    if found["set_key"]:
        values = {value.strip() for value in found["values"].split(",")}
        is_wanted = found["set_op"] == "in"
    else:
        values = {found["value"]}
        is_wanted = found["op"] != "!="
    if is_wanted:
        return lambda labels: labels.get(key) in values
    return lambda labels: labels.get(key) not in values
