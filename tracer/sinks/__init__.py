"""What is done with records: text for people, lines of JSON for programs.

A sink never sees the kernel; nothing before it knows which sink it is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

from tracer.errors import TracerError
from tracer.sinks.output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracer.model import Record

_MODULES = {
    "text": "text",
    "tree": "trace_text",
    "brief": "trace_brief",
    "conntrack": "ct_text",
    "json": "json_lines",
    "flat": "json_lines",
    "hubble": "hubble",
}
"""Format → module of this package; `flat` is what `flows` calls JSON lines of flat records."""

FORMATS = tuple(_MODULES)


class Sink(Protocol):
    """Where records go."""

    def write(self, records: Sequence[Record]) -> None:
        """Write a batch, whole lines only, and flush; TracerError when there is no room."""

    def lost(self, source: str, count: int) -> None:
        """Tell that `count` more events of `source` were lost."""

    def close(self) -> None:
        """Release the output; everything is written already."""


def open_sink(format: str, path: Path | None) -> Sink:  # noqa: A002 - the word users know
    """Open a sink of one of `FORMATS`, on stdout when `path` is None.

    Raises TracerError for an unknown format and a path that cannot be written.
    """
    name = _MODULES.get(format)
    if name is None:
        raise TracerError(f"format '{format}': unknown", f"known: {', '.join(FORMATS)}")
    # Only the chosen one is imported: rich alone takes 50 ms to start.
    module = importlib.import_module(f"tracer.sinks.{name}")
    return cast("Sink", module.open_sink(Output(path)))
