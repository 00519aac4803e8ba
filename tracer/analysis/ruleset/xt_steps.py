"""A line of iptables-save → its steps (iptables-extensions(8))."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracer.analysis.ruleset import xt_matches, xt_targets
from tracer.analysis.ruleset.xt_options import Option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.analysis.ruleset.steps import Step

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ONE_WORD = frozenset({"-A", "-m", "-j", "-g", "--comment"})
"""Options of which the next word is the value, whatever it looks like."""
_TARGETS = frozenset({"-j", "-g"})


def steps(line: str, family: str) -> tuple[Step, ...]:
    """What the rule does, in order: all its matches, then its target."""
    modules: list[tuple[str, list[Option]]] = [("", [])]
    target: tuple[Option, list[Option]] | None = None
    for option in _options(line):
        if target:
            target[1].append(option)
        elif option.name in _TARGETS:
            target = option, []
        elif option.name == "-m":
            modules.append((option.words[0], []))
        elif option.name != "-A":
            # What all rules can ask for has one dash, what belongs to a module has two.
            own = modules[-1] if option.name.startswith("--") else modules[0]
            own[1].append(option)
    tests = [test for name, options in modules for test in xt_matches.tests(name, options, family)]
    return (*tests, *(xt_targets.steps(*target) if target else ()))


def _options(line: str) -> Iterator[Option]:
    name, negated, negate_next = "", False, False
    words: list[str] = []
    for quoted, bare in _TOKEN.findall(line):
        if bare == "!":
            negate_next = True
        elif bare.startswith("-") and len(bare) > 1 and not (name in _ONE_WORD and not words):
            if name:
                yield Option(name, tuple(words), negated)
            name, words, negated, negate_next = bare, [], negate_next, False
        else:
            words.append(bare or quoted)
    if name:
        yield Option(name, tuple(words), negated)
