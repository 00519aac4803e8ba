"""The ways of attaching, read from tracer's own table: a new one is tested without a word here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.kernel.hook_probe import refusal
from tracer.kernel.hooks import HOOKS, hooks_of

if TYPE_CHECKING:
    from lab.runner import Live

CORE = "test_doctor or drops-INT or tp_btf and (test_drop or test_flows or test_pod_to)"
"""For pytest -k: what is worth the time where there is little."""
WAIT_S = 60
"""Until what was sent has been told, on an emulated processor."""


def forced(command: str, kind: str) -> list[str]:
    """Options that attach by ways of `kind` every hook of `command` that has one."""
    return [
        f"--attach={hook.name}={kind}"
        for hook in HOOKS
        if command in hook.commands and kind in {way.kind for way in hook.ways}
    ]


def kinds_of(command: str) -> list[str]:
    """The kinds of ways in which hooks of `command` can attach."""
    ways = (way.kind for hook in HOOKS if command in hook.commands for way in hook.ways)
    return list(dict.fromkeys(ways))


def open_kinds_of(command: str) -> list[str]:
    """Of `kinds_of`, those that are open here and that no run by the kinds before would take."""
    taken: list[str] = []
    for hook in HOOKS:
        if command in hook.commands:
            ways = [way.kind for way in hook.ways if not refusal(way)]
            tracepoint = hook.ways[0].kind == kinds_of(command)[0]
            taken += ways if tracepoint else ways[1:]
    return list(dict.fromkeys(taken))


def closed_hooks() -> set[str]:
    """Those that are missed: this kernel has nothing for them, as tracer sees it."""
    needed = (hook for hook in HOOKS if not hook.spare)
    return {hook.name for hook in needed if all(refusal(way) for way in hook.ways)}


def attached(live: Live, command: str, kind: str) -> None:
    """Wait until `live` has said that every hook of `command` that can is attached by `kind`."""
    ways = (way for hook in hooks_of(command) for way in hook.ways if way.kind == kind)
    wanted = sum(not refusal(way) for way in ways)
    live.wait_for_line(lambda line: line.count(f"({kind}") == wanted, WAIT_S)
