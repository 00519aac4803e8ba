"""Answers from the files that tracer wrote: who talks most, what dies and why, what is slow.

PATH is a Parquet or JSON-lines file (.jsonl, also .gz and .zst), or a directory of them, from one
node or many. The records are the view `flows` for one's own questions in SQL; names with dots
stand in double quotes. Nothing is written, and nothing but PATH is read.

examples:
  tracer report /var/log/tracer                            summaries, as text
  tracer report -o html flows/ > report.html               one page with charts
  tracer report --since 1h --only drops flows.jsonl        one summary of the last hour
  tracer report flows/ --sql 'SELECT "drop.reason", sum(packets) FROM flows GROUP BY ALL'

exit code: 0 done; 1 something could not be read or was lost; 2 wrong use, or nothing to read.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.commands import options
from tracer.errors import ExitCode, TracerError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from tracer.report.store import Store
    from tracer.report.tables import Section
    from tracer.sinks.terminal import Terminal

DEFAULT_TOP = 20
MATRIX_PAIRS = 100


def moment(text: str) -> str:
    """RFC 3339, a date, or a duration ago → the same in UTC, without zone; no zone means UTC."""
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        try:
            at = datetime.now(timezone.utc) - timedelta(seconds=options.duration_s(text))
        except TracerError:
            raise TracerError(
                f"time '{text}': not understood", "2026-01-31T12:00:00Z, 2026-01-31, or 2h (ago)"
            ) from None
    at = at.replace(tzinfo=at.tzinfo or timezone.utc).astimezone(timezone.utc)
    return at.replace(tzinfo=None).isoformat(sep=" ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tracer report`."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, directories")
    parser.add_argument("--since", type=moment, metavar="TIME", help="records from then on")
    parser.add_argument("--until", type=moment, metavar="TIME", help="records before then")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sql", metavar="QUESTION", help="one SELECT over the view flows")
    what.add_argument("--only", metavar="NAME,…", help="some summaries; as -o json names them")
    parser.add_argument(
        "--top",
        type=options.positive("--top"),
        default=DEFAULT_TOP,
        metavar="N",
        help=f"rows of each summary (default: {DEFAULT_TOP})",
    )
    parser.add_argument("--memory", default="", metavar="SIZE", help="bound on memory, as 4GB")
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json", "csv", "html"),
        default="text",
        help="json: one object a row; csv: of one summary or question; html: a page",
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Read, ask, print."""
    if args.sql is None and args.output == "csv" and (not args.only or "," in args.only):
        raise TracerError("-o csv: one table only", "choose one with --only NAME, or use --sql")
    if args.sql is not None and args.output == "html":
        raise TracerError("-o html: is of the summaries", "use -o text, json or csv with --sql")
    try:
        from tracer.report.inputs import find_inputs  # noqa: PLC0415 - DuckDB may be missing
        from tracer.report.store import Period, Store  # noqa: PLC0415 - same
    except ModuleNotFoundError as error:
        raise TracerError(
            f"report: python module {error.name} is not installed",
            "pip install node-packet-tracer[report]",
        ) from error
    with Store(find_inputs(args.paths), Period(args.since, args.until), args.memory) as store:
        notes = _notes(store)
        asked = args.sql is not None
        lines = _question(store, args) if asked else _report(store, args, notes)
        sys.stdout.writelines(lines)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)  # noqa: T201 - stderr is where messages go
    return ExitCode.PARTIAL if notes else ExitCode.DONE


def _notes(store: Store) -> list[str]:
    """What is not in the answers."""
    loaded = store.loaded
    notes = [f"{one.path}: {one.why}; not read" for one in loaded.skipped]
    if loaded.torn_lines:
        torn = _many(loaded.torn_lines, "line")
        notes.append(f"{torn} cut short or no record of tracer; not read")
    for source, count in store.ask("SELECT source, sum(count) FROM losses GROUP BY 1").rows:
        notes.append(f"tracer lost {_many(int(count), 'event')} of {source} while it ran")
    if not store.ask("SELECT count(*) FROM flows").rows[0][0]:
        files = _many(loaded.files + loaded.empty, "file")
        empty = f", {loaded.empty} of them empty" if loaded.empty else ""
        notes.append(f"no flow or drop records of that time in {files}{empty}")
    return notes


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _question(store: Store, args: argparse.Namespace) -> Iterable[str]:
    from tracer.report import tables  # noqa: PLC0415 - rich alone takes 50 ms

    answer = store.ask_freely(args.sql)
    if args.output == "text":
        return [tables.text_answer(answer, _terminal())]
    return tables.json_lines(answer) if args.output == "json" else tables.csv_lines(answer)


def _report(store: Store, args: argparse.Namespace, notes: list[str]) -> Iterator[str]:
    from tracer.report import tables  # noqa: PLC0415 - as above

    sections = _sections(store, args)
    if args.output == "html":
        yield _page(store, sections, notes)
    elif args.output == "text":
        yield _heading(store) + "\n\n"
        yield from tables.text_report(sections, _terminal())
    elif args.output == "json":
        for section in sections:
            yield from tables.json_lines(section.answer, section.summary.name)
    else:
        yield from tables.csv_lines(sections[0].answer)


def _sections(store: Store, args: argparse.Namespace) -> list[Section]:
    from tracer.report.summaries import CONVERSATIONS, SUMMARIES  # noqa: PLC0415 - as above
    from tracer.report.tables import Section  # noqa: PLC0415 - as above

    known = [summary.name for summary in SUMMARIES]
    wanted = args.only.split(",") if args.only else known
    for name in wanted:
        if name not in known:
            raise TracerError(f"--only '{name}': no such summary", f"known: {', '.join(known)}")
    # The page's matrix wants more pairs than a table.
    top = max(args.top, MATRIX_PAIRS) if args.output == "html" else args.top
    return [
        Section(summary, store.ask(summary.sql(top if summary is CONVERSATIONS else args.top)))
        for summary in SUMMARIES
        if summary.name in wanted
    ]


def _heading(store: Store) -> str:
    """What was read: records, files, from when to when."""
    count, first, last = store.ask(
        "SELECT count(*), min(time), max(coalesce(end_time, time)) FROM flows"
    ).rows[0]
    period = f", {first[:19]}Z to {last[:19]}Z" if first else ""
    return f"{_many(count, 'record')} of {_many(store.loaded.files, 'file')}{period}"


def _page(store: Store, sections: list[Section], notes: list[str]) -> str:
    from tracer.report.page import page  # noqa: PLC0415 - as above
    from tracer.report.summaries import step_s, timeline  # noqa: PLC0415 - as above

    span_s = store.ask("SELECT epoch(max(time)) - epoch(min(time)) FROM flows").rows[0][0]
    width_s = step_s(span_s or 0)
    return page(sections, store.ask(timeline(width_s)), width_s, notes, _heading(store))


def _terminal() -> Terminal:
    from tracer.sinks.output import Output  # noqa: PLC0415 - as above
    from tracer.sinks.terminal import terminal_of  # noqa: PLC0415 - as above

    return terminal_of(Output(None))
