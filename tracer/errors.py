"""The errors that a user sees: one line, a hint, an exit code."""

from __future__ import annotations

import difflib
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExitCode(IntEnum):
    """What the process tells its caller (documented in docs/cli.md)."""

    DONE = 0
    """Done; nothing is missing."""
    PARTIAL = 1
    """Done, but degraded or incomplete; what was lost is in the output."""
    UNUSABLE = 2
    """Wrong use, or this node cannot run the command."""


class TracerError(Exception):
    """A failure the user can act on: object first, lower case, then a hint.

    `message` is one line ("hook skb-drop: tracepoint kfree_skb is not in BTF"),
    `hint` says what to do about it. Raised anywhere, printed only by `cli`.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def like(name: str, known: Iterable[str]) -> str:
    """The hint for a `name` that is not `known`: the likeliest of them, else all."""
    known = list(known)
    alike = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {alike[0]}?" if alike else f"known: {', '.join(known)}"
