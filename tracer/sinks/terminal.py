"""What the text sinks share: width, colours, times and names for a person's eyes."""

from __future__ import annotations

import os
import shutil
import textwrap
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from tracer.model import Record
    from tracer.sinks.output import Output

MAX_COLUMNS, MIN_COLUMNS = 120, 60
BOLD, DIM, RED, GREEN, YELLOW, CYAN = (f"\033[{code}m" for code in (1, 2, 31, 32, 33, 36))
_RESET = "\033[0m"


@dataclass(frozen=True, slots=True)
class Terminal:
    """How wide the reader's window is, and whether it shows colours."""

    columns: int
    coloured: bool

    def paint(self, text: str, code: str) -> str:
        """`text` in a colour, where colours are shown."""
        return f"{code}{text}{_RESET}" if self.coloured and text else text

    def wrap(self, text: str, indent: str, following: str | None = None) -> list[str]:
        """Lines no wider than the window, the first behind `indent`."""
        return textwrap.wrap(
            text,
            self.columns,
            initial_indent=indent,
            subsequent_indent=indent if following is None else following,
            break_on_hyphens=False,
        )


def terminal_of(output: Output) -> Terminal:
    """Colours only on a terminal, and never with NO_COLOR."""
    columns = shutil.get_terminal_size((MAX_COLUMNS, 24)).columns
    columns = max(MIN_COLUMNS, min(MAX_COLUMNS, columns))
    return Terminal(columns, output.is_terminal and not os.environ.get("NO_COLOR"))


class Lines(ABC):
    """A sink for a person: its records in lines, each hint once."""

    def __init__(self, output: Output, terminal: Terminal) -> None:
        """Write to `output`, as `terminal` shows it."""
        self._output, self._terminal = output, terminal
        self._hinted: set[str] = set()

    @abstractmethod
    def _lines(self, records: Sequence[Record]) -> list[str]:
        """What is written of a batch."""

    def write(self, records: Sequence[Record]) -> None:
        """Write a batch."""
        self._say(self._lines(records))

    def lost(self, source: str, count: int) -> None:
        """Write a line that says so."""
        self._say([self._terminal.paint(f"lost: {count} of {source}", RED)])

    def close(self) -> None:
        """Close the output."""
        self._output.close()

    def _say(self, lines: Sequence[str]) -> None:
        self._output.write("".join(f"{line}\n" for line in lines).encode())

    def _hint(self, hint: str, indent: str, cause: str = "") -> list[str]:
        """Lines with the hint, the first time for its `cause`, which is itself by default."""
        if not hint or (cause or hint) in self._hinted:
            return []
        self._hinted.add(cause or hint)
        return [
            self._terminal.paint(one, DIM) for one in self._terminal.wrap(f"hint: {hint}", indent)
        ]


def print_table(table: Table, terminal: Terminal) -> str:
    """A table as text, no wider than the window."""
    text = StringIO()
    console = Console(
        file=text,
        width=terminal.columns,
        force_terminal=terminal.coloured,
        no_color=not terminal.coloured,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def clock(time: str) -> str:
    """Local time of day with milliseconds, of an RFC 3339 time in UTC."""
    moment = datetime.fromisoformat(f"{time[:19]}+00:00").astimezone()
    return f"{moment:%H:%M:%S}.{time[20:23]}"


def cut(text: str, size: int) -> str:
    """Keep both ends: a pod's name begins with its owner's and ends with what tells it apart."""
    if len(text) <= size:
        return text
    head = (size - 1) // 2
    return f"{text[:head]}…{text[head + 1 - size :]}"


def span(duration_ns: int) -> str:
    """`870 ns`, `14.7 µs`, `3.20 ms`, `12.0 s`: three digits that count."""
    value, unit = float(duration_ns), "ns"
    for larger in ("µs", "ms", "s"):
        if value < 1000:  # noqa: PLR2004 - the step between units
            break
        value, unit = value / 1000, larger
    if unit == "ns":
        return f"{duration_ns} ns"
    digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004 - three digits
    return f"{value:.{digits}f} {unit}"
