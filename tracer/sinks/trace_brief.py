"""Packets for a person in a hurry: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.sinks.terminal import terminal_of
from tracer.sinks.trace_text import Brief

if TYPE_CHECKING:
    from tracer.sinks.output import Output


def open_sink(output: Output) -> Brief:
    """Write lines to `output`: coloured on a terminal, unless NO_COLOR is set."""
    return Brief(output, terminal_of(output))
