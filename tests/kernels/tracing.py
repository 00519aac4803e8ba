"""A live `tracer trace` of one kernel, and what it can tell there."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import runner
from lab import ways as hops
from ways import forced

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.runner import Live, Record


@dataclass(frozen=True, slots=True)
class Tracing:
    """A live `tracer trace`."""

    live: Live
    kind: str
    netfilter: bool
    """Whether this kernel lets it see the inside of netfilter's hooks."""

    def way(self, way: list[str]) -> list[str]:
        """What can be told of `way` here."""
        return [line for line in way if self.netfilter or " nf " not in line]

    @property
    def delivered(self) -> str:
        """The verdict on what a UDP socket has read: without INPUT only its end is known."""
        return "delivered" if self.netfilter else "consumed"

    def check(self, records: list[Record], way: list[str], verdict: str = "") -> None:
        """Each went this way; to its end unless another verdict is given."""
        for record in records:
            hops.check(record, self.way(way), verdict or self.delivered)


@contextmanager
def running(words: str, kind: str) -> Iterator[Tracing]:
    """`trace` of what the filter `words` wants, attached in ways of `kind`."""
    with runner.running("trace", words, "-o", "json", *forced("trace", kind)) as live:
        assert live.err.count(f"({kind}") == len(forced("trace", kind)), live.err
        made = Tracing(live, kind, "nf-hook (nf_link)" in live.err)
        yield made
        done = live.stop()
    # A missing hook makes it a partial answer.
    assert done.code == (0 if made.netfilter else 1), done.err
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


def ends(record):
    """Addresses before and after translation."""
    names = ("src.address", "dst.address", "nat.src.address", "nat.dst.address")
    return tuple(record.get(name) for name in names)
