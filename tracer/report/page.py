"""The report as one HTML page that needs nothing else: charts, tables, what is missing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING

from tracer import __version__
from tracer.report import charts
from tracer.report.style import STYLE
from tracer.report.tables import is_number, shown_columns
from tracer.report.words import cell, heading, size
from tracer.sinks.terminal import cut, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.report.store import Answer
    from tracer.report.tables import Section

CHARTED = 15
"""Bars in a chart; the table below has all rows."""
MATRIX_ENDS = 10
PATH_CHARACTERS = 16
DAY_S, MINUTE_S = 86400, 60
SENT, RECEIVED, DROPPED = ("sent", "sent"), ("received", "received"), ("dropped", "dropped")


def page(
    sections: Sequence[Section], steps: Answer, width_s: int, notes: Sequence[str], read: str
) -> str:
    """`sections` with charts where there is one, `steps` of the timeline, warnings first.

    `read` says what it is a report of.
    """
    title = f"tracer report: {read}"
    body = [
        f"<header><h1>Flow report</h1><p>{escape(read)}. Times are in UTC.",
        f" Made by tracer {__version__}.</p></header>",
    ]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body.append(
            f'<section class="notes" role="alert"><h2>Missing</h2><ul>{items}</ul></section>'
        )
    body += ["<main>", _time(steps, width_s)]
    body += [_section(section) for section in sections]
    body.append("</main>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _time(steps: Answer, width_s: int) -> str:
    if not steps.rows:
        return ""
    span_s = steps.rows[-1][0] + width_s - steps.rows[0][0]

    day = "%m-%d " if span_s > DAY_S else ""
    form = f"{day}%H:%M" if width_s % MINUTE_S == 0 else "%H:%M:%S"

    def when(at_s: int) -> str:
        return datetime.fromtimestamp(at_s, timezone.utc).strftime(form)

    parts = ["<section><h2>Over time</h2>"]
    about = f"Bytes every {width_s} s, at each pod that sent or received them"
    sent = [(row[0], float(row[1])) for row in steps.rows]
    parts += [f"<p>{about}.</p>", charts.columns(about, sent, width_s, "sent", size, when)]
    died = [(row[0], float(row[2])) for row in steps.rows]
    if any(value for _, value in died):
        about = f"Dropped packets every {width_s} s"
        chart = charts.columns(about, died, width_s, "dropped", lambda value: f"{value:,.0f}", when)
        parts += [f"<p>{about}.</p>", chart]
    return "".join([*parts, "</section>"])


def _section(section: Section) -> str:
    summary, answer = section.summary, section.answer
    parts = [f'<section id="{summary.name}"><h2>{escape(summary.title)}</h2>']
    parts.append(f"<p>{escape(summary.about)}</p>")
    if not answer.rows:
        return "".join([*parts, f'<p class="none">{escape(summary.none)}.</p></section>'])
    draw = _CHARTS.get(summary.name)
    if draw:
        parts += [draw(answer), "<details><summary>Table</summary>", _table(answer), "</details>"]
    else:
        parts.append(_table(answer))
    return "".join([*parts, "</section>"])


def _table(answer: Answer) -> str:
    shown = shown_columns(answer)
    numbers = {at for at in shown if any(is_number(row[at]) for row in answer.rows)}
    head = "".join(
        f'<th scope="col"{_look(at in numbers)}>{escape(heading(answer.columns[at]))}</th>'
        for at in shown
    )
    lines = []
    for row in answer.rows:
        cells = (
            f"<td{_look(at in numbers)}>{escape(cell(answer.columns[at], row[at]))}</td>"
            for at in shown
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _look(number: bool) -> str:  # noqa: FBT001 - private
    return ' class="number"' if number else ""


def _values(answer: Answer, label: str, *columns: str) -> list[tuple[str, list[float]]]:
    at = [answer.columns.index(column) for column in (label, *columns)]
    return [
        (str(row[at[0]]), [float(row[index] or 0) for index in at[1:]])
        for row in answer.rows[:CHARTED]
    ]


def _talkers(answer: Answer) -> str:
    rows = _values(answer, "pod", "sent_bytes", "received_bytes")
    return charts.bars("Bytes sent and received by pod", rows, (SENT, RECEIVED), size)


def _reasons(answer: Answer) -> str:
    rows = _values(answer, "reason", "packets")
    return charts.bars("Dropped packets by reason", rows, (DROPPED,), lambda one: f"{one:,.0f}")


def _conversations(answer: Answer) -> str:
    """The ends that say most, those that also receive beside those that send."""
    pairs = {(str(row[0]), str(row[1])): float(row[2]) for row in answer.rows}
    sources = list(dict.fromkeys(source for source, _ in pairs))[:MATRIX_ENDS]
    kept = {ends: value for ends, value in pairs.items() if ends[0] in sources}
    destinations = list(dict.fromkeys(destination for _, destination in kept))[:MATRIX_ENDS]
    about = "Bytes from each row to each column, of the largest conversations"
    return charts.matrix(about, (sources, destinations), kept, size)


def _slow(answer: Answer) -> str:
    """Those with round trips, where there are any, else those that were timed in the node."""
    column, what = "rtt_p50_ns", "round trip, median"
    at = answer.columns.index(column)
    if all(row[at] is None for row in answer.rows):
        column, what = "transit_mean_ns", "transit of the node, mean"
        at = answer.columns.index(column)
    timed = sorted((row for row in answer.rows if row[at] is not None), key=lambda row: -row[at])
    told = replace(answer, rows=tuple(timed))
    goals = [str(row[answer.columns.index("destination")]) for row in timed]
    rows = [
        (f"{cut(source, PATH_CHARACTERS)} → {cut(goal, PATH_CHARACTERS)}", value)
        for (source, value), goal in zip(_values(told, "source", column), goals, strict=False)
    ]
    series = ((what, "received"),)
    return charts.bars("Slowest paths", rows, series, lambda one: span(int(one)))


_CHARTS = {
    "top_talkers": _talkers,
    "drop_reasons": _reasons,
    "slowest_paths": _slow,
    "conversations": _conversations,
}
