"""Drops for a person: two aligned lines each, and a table at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from tracer.sinks.terminal import (
    BOLD,
    DIM,
    RED,
    Lines,
    Terminal,
    clock,
    cut,
    print_table,
    terminal_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.model import Record
    from tracer.sinks.output import Output

_OWNER, _REASON, _PLACE = 22, 16, 20
_INDENT = " " * 13
_DIRECTIONS = {"ingress": "in", "egress": "out"}


class Text(Lines):
    """Drops as they come; a run of summary records becomes one table."""

    def _lines(self, records: Sequence[Record]) -> list[str]:
        lines: list[str] = []
        for record in records:
            if record["type"] == "drop":
                lines += self._drop(record)
        summaries = [record for record in records if record["type"] == "summary"]
        if summaries:
            lines += ["", drops_summary(summaries, self._terminal).rstrip()]
        for record in records:
            if record["type"] == "rule":
                lines += self._terminal.wrap(rule_sum(record), "")
        return lines + [_end(record) for record in records if record["type"] == "end"]

    def _drop(self, record: Record) -> list[str]:
        time, reason = clock(record["time"]), record.get("drop.reason", "")
        direction = _DIRECTIONS.get(record.get("direction", ""), "")
        head = f"{time} {cut(owner(record), _OWNER):<{_OWNER}} {direction:<3}"
        packet = record.get("packet", "")
        plain = f"{head} {reason:<{_REASON}} {packet}"
        first = f"{head} {self._terminal.paint(f'{reason:<{_REASON}}', BOLD + RED)}"
        if len(plain) <= self._terminal.columns:
            lines = [f"{first} {packet}".rstrip()]
        else:
            lines = [first.rstrip(), *self._terminal.wrap(packet, _INDENT)]
        lines += [
            self._terminal.paint(line, DIM)
            for line in self._terminal.wrap(_detail(record), _INDENT)
        ]
        if rule := rule_line(record):
            lines += self._terminal.wrap(rule, _INDENT)
        lines += self._hint(record.get("hint", ""), _INDENT)
        return lines + [f"{_INDENT}  {frame}" for frame in record.get("drop.stack", ())]


def open_sink(output: Output) -> Text:
    """Write text to `output`: coloured on a terminal, unless NO_COLOR is set."""
    return Text(output, terminal_of(output))


def owner(record: Record) -> str:
    """Return the pod the drop is charged to, else the network namespace, else `-`."""
    pod = record.get("k8s.pod.name")
    if pod:
        return f"{record.get('k8s.pod.namespace', '')}/{pod}"
    return str(record.get("netns.name") or record.get("netns") or "-")


def rule_line(record: Record) -> str:
    """The rule that decided, in one line; empty where it is not known, or is a policy."""
    text = record.get("netfilter.rule")
    if not text:
        return ""
    handle = f" # handle {record['netfilter.handle']}" if "netfilter.handle" in record else ""
    inferred = " (inferred)" if record.get("netfilter.rule_source") == "inferred" else ""
    # iptables' notation names the chain but not the table.
    place = f"-t {record['netfilter.table']} " if text.startswith("-A ") else ""
    return f"rule: {place}{text}{handle}{inferred}"


def rule_sum(record: Record) -> str:
    """A `rule` record in one line: how many of its drops were shown, and what it counted."""
    counted = record.get("counter.packets")
    words = f"{record['shown']} shown" + (f" of {counted} by its counter" * (counted is not None))
    return f"{owner(record)}: {words}: {rule_line(record)}"


def drops_summary(records: Sequence[Record], terminal: Terminal) -> str:
    """Return a table of summary records, pod × reason × location, no wider than the window."""
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
    return print_table(table, terminal)


def _end(record: Record) -> str:
    lost = ", ".join(f"{count} of {source}" for source, count in record.get("lost", {}).items())
    text = f"{record.get('packets', 0)} packets dropped, {record.get('shown', 0)} shown"
    return f"{text}; lost: {lost}" if lost else text


def _detail(record: Record) -> str:
    device, netns = record.get("interface.name", ""), str(record.get("netns.name", ""))
    place = cut(f"{device}@{netns}" if device and netns else device or netns, _PLACE)
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
