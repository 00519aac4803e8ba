"""Answers as text for people, as JSON lines and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracer.report.words import cell, heading
from tracer.sinks.terminal import BOLD, DIM, Terminal, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracer.report.store import Answer
    from tracer.report.summaries import Summary

GAP = 2
"""Blanks between columns."""
LEAST_TEXT = 10
"""Narrower than this, folded texts cannot be read."""


@dataclass(frozen=True, slots=True)
class Section:
    """One summary and what came of it."""

    summary: Summary
    answer: Answer


def shown_columns(answer: Answer) -> list[int]:
    """Columns that are not NULL in every row."""
    return [
        at
        for at in range(len(answer.columns))
        if any(row[at] is not None for row in answer.rows) or not answer.rows
    ]


def is_number(value: object) -> bool:
    """Whether a cell is set flush right."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def text_answer(answer: Answer, terminal: Terminal) -> str:
    """The answer to a question: a table, or where that would be too wide a line for each cell."""
    shown = shown_columns(answer)
    if sum(_least_width(answer, at) + GAP for at in shown) - GAP <= terminal.columns:
        return text_table(answer, terminal, str)
    longest = max(len(answer.columns[at]) for at in shown)
    return "\n".join(
        "".join(
            f"{answer.columns[at]:<{longest}}  {cell(answer.columns[at], row[at])}\n"
            for at in shown
            if row[at] is not None
        )
        for row in answer.rows
    )


def _least_width(answer: Answer, at: int) -> int:
    """What a column needs: a number all of it, a text some of it."""
    longest = max(
        (len(cell(answer.columns[at], row[at])) for row in answer.rows),
        default=0,
    )
    if _has_numbers(answer, at):
        return max(longest, len(answer.columns[at]))
    return min(max(longest, len(answer.columns[at])), LEAST_TEXT)


def _has_numbers(answer: Answer, at: int) -> bool:
    return any(is_number(row[at]) for row in answer.rows)


def text_table(
    answer: Answer,
    terminal: Terminal,
    title: Callable[[str], str] = lambda column: heading(column).upper(),
) -> str:
    """A table no wider than the terminal, with a `title` for each column."""
    from rich.table import Table  # noqa: PLC0415 - 30 ms that the other forms need not pay

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    shown = shown_columns(answer)
    for at in shown:
        right = _has_numbers(answer, at)
        table.add_column(
            title(answer.columns[at]),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right,
        )
    for row in answer.rows:
        table.add_row(*(cell(answer.columns[at], row[at]) for at in shown))
    return print_table(table, terminal)


def text_report(sections: Sequence[Section], terminal: Terminal) -> Iterator[str]:
    """Every section: title, table or why there is none."""
    for section in sections:
        yield terminal.paint(section.summary.title, BOLD) + "\n"
        if section.answer.rows:
            yield text_table(section.answer, terminal)
        else:
            yield terminal.paint(section.summary.none, DIM) + "\n"
        yield "\n"


def json_lines(answer: Answer, summary: str = "") -> Iterator[str]:
    """One object a row, as `tracer report -o json` writes it; NULL is absent."""
    first = {"summary": summary} if summary else {}
    for row in answer.rows:
        known = {
            column: value
            for column, value in zip(answer.columns, row, strict=True)
            if value is not None
        }
        yield json.dumps(first | _finite(known), default=str, ensure_ascii=False) + "\n"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN."""
    return {
        column: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for column, value in row.items()
    }


def csv_lines(answer: Answer) -> Iterator[str]:
    """A header and a line a row (RFC 4180, but with line feeds); NULL is empty."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    for row in (answer.columns, *answer.rows):
        line.seek(0)
        line.truncate()
        writer.writerow("" if value is None else value for value in row)
        yield line.getvalue()
