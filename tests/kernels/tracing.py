"""A live `tracer trace` of one kernel, and what it can tell there."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from lab import runner
from lab import ways as hops
from ways import attached, forced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.runner import Live, Record


@dataclass(frozen=True, slots=True)
class Tracing:
    """A live `tracer trace`."""

    live: Live
    kind: str
    links: bool
    """Whether netfilter links tell the hooks: they do of empty ones, too."""

    def check(self, records: list[Record], way: list[str], verdict: str = "delivered") -> None:
        """Each went this way; to its end unless another verdict is given."""
        for record in records:
            hops.check(record, way, verdict)


@contextmanager
def started(words: str, *options: str) -> Iterator[Live]:
    """`trace`; skips where the emulator is too slow for tracer's own limit of a load."""
    arguments = ("trace", words, "-o", "json", *options)
    with ExitStack() as stack:
        try:
            live = stack.enter_context(runner.running(*arguments))
        except AssertionError as error:
            if "worker: no answer within" in str(error):
                pytest.skip("too slow a machine to compile and verify trace in time")
            raise
        yield live


@contextmanager
def running(words: str, kind: str) -> Iterator[Tracing]:
    """`trace` of what the filter `words` wants, attached in ways of `kind`."""
    with ExitStack() as stack:
        live = stack.enter_context(started(words, *forced("trace", kind)))
        attached(live, "trace", kind)
        made = Tracing(live, kind, "nf-hook (nf_link" in live.err)
        yield made
        done = live.stop()
    # A missing hook makes it a partial answer.
    assert done.code == int("; not told: " in done.err), done.err
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


def ends(record):
    """Addresses before and after translation."""
    names = ("src.address", "dst.address", "nat.src.address", "nat.dst.address")
    return tuple(record.get(name) for name in names)
