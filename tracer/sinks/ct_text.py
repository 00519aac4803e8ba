"""Conntrack for a person: a line an event, sentences for failures, tables of who fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from tracer.sinks.terminal import (
    BOLD,
    CYAN,
    GREEN,
    RED,
    YELLOW,
    Lines,
    Terminal,
    clock,
    print_table,
    span,
    terminal_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.model import Record
    from tracer.sinks.output import Output

_COLOURS = {"new": GREEN, "found": GREEN, "update": CYAN, "destroy": YELLOW}
_INDENT = " " * 13


class ConntrackText(Lines):
    """Events as they come; a run of counts becomes tables."""

    def __init__(self, output: Output, terminal: Terminal) -> None:
        super().__init__(output, terminal)
        self._shown: dict[str, Callable[[Record], list[str]]] = {
            "conntrack": self._event,
            "failure": self._failure,
            "invalid": self._invalid,
            "resync": self._resync,
            "end": lambda record: [_end(record)],
        }

    def _lines(self, records: Sequence[Record]) -> list[str]:
        lines: list[str] = []
        for record in records:
            show = self._shown.get(record["type"])
            lines += show(record) if show else []
        for make, kinds in ((_tables, ("table",)), (_tops, ("top",)), (_stats, ("stats", "cpu"))):
            some = [record for record in records if record["type"] in kinds]
            if some:
                lines += [print_table(made, self._terminal).rstrip() for made in make(some)]
        return lines

    def _event(self, record: Record) -> list[str]:
        event = record["event"]
        head = self._terminal.paint(f"{event:<8}", _COLOURS.get(event, ""))
        tail = " ".join(word for word in _words(record) if word)
        return [f"{clock(record['time'])} {head} {_flow(record)}  {tail}".rstrip()]

    def _failure(self, record: Record) -> list[str]:
        name = record["failure"]
        lines = [f"{clock(record['time'])} {self._terminal.paint(name, BOLD + RED)}"]
        lines += self._terminal.wrap(record["explanation"], _INDENT)
        return lines + self._hint(record["hint"], _INDENT, cause=name)

    def _invalid(self, record: Record) -> list[str]:
        head = self._terminal.paint(f"{'invalid':<8}", RED)
        flow = f"{_flow(record)}  {record.get('tcp.flags', '')}".rstrip()
        lines = [f"{clock(record['time'])} {head} {flow}"]
        return lines + self._terminal.wrap(f"{record['explanation']} ({record['why']})", _INDENT)

    def _resync(self, record: Record) -> list[str]:
        text = (
            f"{record['lost']} events were lost {where(record)}: the table was read again,"
            f" {record['entries']} entries are alive, {record['births_lost']} births and"
            f" {record['deaths_lost']} deaths had been missed"
        )
        return self._terminal.wrap(text, f"{clock(record['time'])} ", _INDENT)


def open_sink(output: Output) -> ConntrackText:
    """Write text to `output`: coloured on a terminal, unless NO_COLOR is set."""
    return ConntrackText(output, terminal_of(output))


def where(record: Record) -> str:
    """`on the node`, `in shop/web-0` or `in NETNS`."""
    name = record.get("netns.name", record.get("netns", "?"))
    if name == "node":
        return "on the node"
    return f"in {_pod(record, 'k8s.pod.') or name}"


def _pod(record: Record, prefix: str) -> str:
    """`namespace/name` of the fields under `prefix`; empty without."""
    end = prefix if prefix == "k8s.pod." else f"{prefix}pod."
    name = record.get(f"{end}name", "")
    return f"{record.get(f'{prefix}namespace', '')}/{name}".lstrip("/")


def _endpoint(address: str, port: int | None) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _side(record: Record, end: str, name: str = "") -> str:
    """`10.244.0.5:80 (shop/web-0)`."""
    field = name or end
    text = _endpoint(record[f"{field}.address"], record.get(f"{field}.port"))
    pod = _pod(record, f"k8s.{end}.")
    return f"{text} ({pod})" if pod else text


def _flow(record: Record) -> str:
    """Who talks to whom, and what NAT made of it."""
    words = [f"{record['transport']:<6}", _side(record, "src")]
    if "nat.src.address" in record:
        words.append(f"as {_endpoint(record['nat.src.address'], record.get('nat.src.port'))}")
    if "nat.dst.address" in record:
        asked = _endpoint(record["dst.address"], record.get("dst.port"))
        if service := record.get("service.name"):
            asked += f" (Service {record.get('service.namespace', '')}/{service})"
        words += ["→", asked, "⇒", _side(record, "dst", "nat.dst")]
    else:
        words += ["→", _side(record, "dst")]
    return " ".join(words)


def _words(record: Record) -> list[str]:
    """State, why it ended, NAT, zone, counters: what there is to say."""
    status = record.get("conntrack.status", ())
    words = [
        record.get("conntrack.tcp.state", "") or record.get("conntrack.sctp.state", ""),
        "" if not status or "seen-reply" in status else "[UNREPLIED]",
        "[ASSURED]" if "assured" in status else "",
        record.get("nat", ""),
        "hairpin" if record.get("nat.hairpin") else "",
    ]
    reason = record.get("conntrack.destroy.reason")
    if reason:
        words.append(f"{reason}{' (inferred)' if record.get('inferred') else ''}")
    if "duration_ns" in record:
        words.append(f"after {span(record['duration_ns'])}")
    elif "conntrack.timeout_s" in record:
        words.append(f"{record['conntrack.timeout_s']} s")
    for name in ("zone", "mark", "helper"):
        value = record.get(f"conntrack.{name}")
        words.append(f"{name} {value}" if value else "")
    if "conntrack.orig.packets" in record:
        packets, size = (
            "/".join(str(record[f"conntrack.{way}.{what}"]) for way in ("orig", "reply"))
            for what in ("packets", "bytes")
        )
        words += [f"{packets} packets", f"{size} B"]
    return [*words, where(record)]


def _end(record: Record) -> str:
    text = (
        f"{record['births']} births, {record['deaths']} deaths, {record['shown']} events shown;"
        f" {record['alive']} entries are alive"
    )
    lost = record.get("lost", {})
    if not lost:
        return text
    told = ", ".join(f"{count} of {source}" for source, count in lost.items())
    return f"{text}; lost: {told}"


def _table(*names: str) -> Table:
    """A table whose last columns, of lower-case names, are numbers."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in names:
        is_number = name.islower()
        table.add_column(
            name.lower(), justify="right" if is_number else "left", no_wrap=is_number,
            overflow="ellipsis" if is_number else "fold",
        )  # fmt: skip
    return table


def _states(record: Record) -> str:
    return ", ".join(f"{name} {count}" for name, count in record.get("states", {}).items())


def _space(record: Record) -> str:
    return where(record).removeprefix("in ").removeprefix("on the ")


def _tables(records: Sequence[Record]) -> list[Table]:
    table = _table("TABLE OF", "entries", "max", "used", "STATES")
    for record in records:
        used = f"{record['used']:.1%}" if "used" in record else ""
        numbers = (str(record["entries"]), str(record.get("conntrack.max", "")), used)
        table.add_row(_space(record), *numbers, _states(record))
    return [table]


def _tops(records: Sequence[Record]) -> list[Table]:
    openers = _table("OPENED BY", "entries", "share", "IN", "STATES")
    goals = _table("OPENED TO", "entries", "share", "IN", "POD")
    for record in records:
        share = f"{record['share']:.1%}"
        if record["top"] == "opener":
            who = _pod(record, "k8s.src.") or record["src.address"]
            cells = (who, str(record["entries"]), share, _space(record), _states(record))
            openers.add_row(*cells)
        else:
            end = _endpoint(record["dst.address"], record.get("dst.port"))
            what = f"{end} {record['transport']}"
            cells = (what, str(record["entries"]), share, _space(record), _pod(record, "k8s.dst."))
            goals.add_row(*cells)
    return [openers, goals]


def _stats(records: Sequence[Record]) -> list[Table]:
    """Counters that are not zero, one column a CPU; and the settings."""
    made = []
    for whole in [record for record in records if record["type"] == "stats"]:
        cpus = [r for r in records if r["type"] == "cpu" and r["netns"] == whole["netns"]]
        table = _table(_space(whole).upper(), "sum", *(f"cpu{cpu['cpu']}" for cpu in cpus))
        for name in [name for name in whole if name.startswith("stats.")]:
            counts = [str(record.get(name, 0)) for record in (whole, *cpus)]
            table.add_row(name.removeprefix("stats."), *counts)
        skipped = ("conntrack.count",)
        for name in [n for n in whole if n.startswith("conntrack.") and n not in skipped]:
            table.add_row(f"nf_{name.replace('.', '_')}", str(whole[name]))
        made.append(table)
    return made
