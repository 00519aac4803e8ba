"""The errors that a user sees: one line, a hint, an exit code."""

from __future__ import annotations

from enum import IntEnum


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
