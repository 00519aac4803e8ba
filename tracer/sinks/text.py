"""Drops for a person: two aligned lines each, and a table at the end."""

from __future__ import annotations

import os
import shutil
import textwrap
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.model import Record
    from tracer.sinks.output import Output

MAX_COLUMNS, MIN_COLUMNS = 120, 60
_OWNER, _REASON, _PLACE = 22, 16, 20
_INDENT = " " * 13
_DIRECTIONS = {"ingress": "in", "egress": "out"}
_BOLD, _DIM, _RED, _RESET = "\033[1m", "\033[2m", "\033[31m", "\033[0m"


class Text:
    """Text for people; hints are given once for each cause."""

    def __init__(self, output: Output, columns: int, *, coloured: bool) -> None:
        self._output, self._columns, self._coloured = output, columns, coloured
        self._hinted: set[str] = set()

    def write(self, records: Sequence[Record]) -> None:
        """Write drops as they come; a run of summary records becomes one table."""
        lines: list[str] = []
        for record in records:
            if record["type"] == "drop":
                lines += self._drop(record)
        summaries = [record for record in records if record["type"] == "summary"]
        if summaries:
            lines += ["", drops_summary(summaries, self._columns, coloured=self._coloured).rstrip()]
        lines += [_end(record) for record in records if record["type"] == "end"]
        self._say(lines)

    def lost(self, source: str, count: int) -> None:
        """Write a line that says so."""
        self._say([self._paint(f"lost: {count} of {source}", _RED)])

    def close(self) -> None:
        """Close the output."""
        self._output.close()

    def _say(self, lines: Sequence[str]) -> None:
        self._output.write("".join(f"{line}\n" for line in lines).encode())

    def _paint(self, text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if self._coloured and text else text

    def _drop(self, record: Record) -> list[str]:
        time, reason = _clock(record["time"]), record.get("drop.reason", "")
        direction = _DIRECTIONS.get(record.get("direction", ""), "")
        head = f"{time} {_cut(owner(record), _OWNER):<{_OWNER}} {direction:<3}"
        packet = record.get("packet", "")
        plain = f"{head} {reason:<{_REASON}} {packet}"
        first = f"{head} {self._paint(f'{reason:<{_REASON}}', _BOLD + _RED)}"
        if len(plain) <= self._columns:
            lines = [f"{first} {packet}".rstrip()]
        else:
            lines = [first.rstrip(), *self._wrap(packet)]
        lines += [self._paint(line, _DIM) for line in self._wrap(_detail(record))]
        hint = record.get("hint", "")
        if hint and hint not in self._hinted:
            self._hinted.add(hint)
            lines += [self._paint(line, _DIM) for line in self._wrap(f"hint: {hint}")]
        return lines + [f"{_INDENT}  {frame}" for frame in record.get("drop.stack", ())]

    def _wrap(self, text: str) -> list[str]:
        return textwrap.wrap(text, self._columns, initial_indent=_INDENT, subsequent_indent=_INDENT)


def open_sink(output: Output) -> Text:
    """Write text to `output`: coloured on a terminal, unless NO_COLOR is set."""
    columns = shutil.get_terminal_size((MAX_COLUMNS, 24)).columns
    columns = max(MIN_COLUMNS, min(MAX_COLUMNS, columns))
    coloured = output.is_terminal and not os.environ.get("NO_COLOR")
    return Text(output, columns, coloured=coloured)


def owner(record: Record) -> str:
    """Return the pod the drop is charged to, else the network namespace, else `-`."""
    pod = record.get("k8s.pod.name")
    if pod:
        return f"{record.get('k8s.pod.namespace', '')}/{pod}"
    return str(record.get("netns.name") or record.get("netns") or "-")


def drops_summary(records: Sequence[Record], columns: int, *, coloured: bool = False) -> str:
    """Return a table of summary records, pod × reason × location, no wider than `columns`."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("pod", "reason", "location"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("packets", "bytes", "shown"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        numbers = (str(record.get(name, 0)) for name in ("packets", "bytes", "shown"))
        table.add_row(
            owner(record), record.get("drop.reason", ""), record.get("drop.location", ""), *numbers
        )
    text = StringIO()
    console = Console(
        file=text,
        width=columns,
        force_terminal=coloured,
        no_color=not coloured,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _end(record: Record) -> str:
    lost = ", ".join(f"{count} of {source}" for source, count in record.get("lost", {}).items())
    text = f"{record.get('packets', 0)} packets dropped, {record.get('shown', 0)} shown"
    return f"{text}; lost: {lost}" if lost else text


def _clock(time: str) -> str:
    """Local time of day with milliseconds, of an RFC 3339 time in UTC."""
    moment = datetime.fromisoformat(f"{time[:19]}+00:00").astimezone()
    return f"{moment:%H:%M:%S}.{time[20:23]}"


def _cut(text: str, size: int) -> str:
    """Keep both ends: a pod's name begins with its owner's and ends with what tells it apart."""
    if len(text) <= size:
        return text
    head = (size - 1) // 2
    return f"{text[:head]}…{text[head + 1 - size :]}"


def _detail(record: Record) -> str:
    device, netns = record.get("interface.name", ""), str(record.get("netns.name", ""))
    place = _cut(f"{device}@{netns}" if device and netns else device or netns, _PLACE)
    words = [place, record.get("drop.location", ""), f"{record.get('bytes', 0)} B"]
    if record.get("conntrack.state"):
        words.append(f"ct {record['conntrack.state']}")
        words += _before_nat(record)
    return f"{' '.join(word for word in words if word)}: {record.get('explanation', '')}"


def _before_nat(record: Record) -> list[str]:
    """The destination that the connection's opener wrote, where NAT has changed it."""
    address = record.get("conntrack.orig.dst.address")
    same = address == record.get("dst.address") or record.get("conntrack.direction") == "reply"
    if not address or same:
        return []
    port = record.get("conntrack.orig.dst.port")
    return [f"sent to {address}" + (f" port {port}" if port else "")]
