"""One flat record a line, as JSON; keys in the order in which they were given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.model import Record
    from tracer.sinks.output import Output


class JsonLines:
    """Flat records (docs/formats.md)."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, records: Sequence[Record]) -> None:
        """Write each record as one line."""
        self._output.write(b"".join(encoded(records)))

    def lost(self, source: str, count: int) -> None:
        """Write a record of type `lost`."""
        self.write([{"type": "lost", "source": source, "count": count}])

    def close(self) -> None:
        """Close the output."""
        self._output.close()


def encoded(records: Sequence[Record]) -> list[bytes]:
    """A line of JSON for each."""
    return [orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records]


def open_sink(output: Output) -> JsonLines:
    """Write flat records to `output`."""
    return JsonLines(output)
