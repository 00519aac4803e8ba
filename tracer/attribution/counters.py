"""What the counters of some nf_tables rules of one namespace stood at, time after time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.netfilter import nft_table

if TYPE_CHECKING:
    import socket

RuleKey = tuple[str, str, str, int]
"""(family, table, chain, handle)."""
APART_NS = 100_000_000
"""A packet counts, and dies of it, within this time; so old a reading has not counted it."""
KEPT = 4
"""Readings of one rule that are kept, each `APART_NS` older than the next."""
WATCHED_NS = 5_000_000_000
"""How long a rule is watched that nobody asks for."""
MAX_WATCHED = 64
"""One costs a request with each look at the namespace."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a rule's counter, between two moments of CLOCK_BOOTTIME."""

    began_ns: int
    done_ns: int
    packets: int


class Counters:
    """Watches rules. `want` is any thread's, the rest that of the reader."""

    def __init__(self) -> None:
        self._wanted: dict[RuleKey, int] = {}
        self._samples: dict[RuleKey, tuple[Sample, ...]] = {}
        self._generation = 0

    def want(self, key: RuleKey, now_ns: int) -> bool:
        """Watch this rule from now on; False where too many are watched."""
        if key not in self._wanted and len(self._wanted) >= MAX_WATCHED:
            return False
        self._wanted[key] = now_ns
        return True

    def read(self, sock: socket.socket, generation: int) -> dict[RuleKey, tuple[Sample, ...]]:
        """Each watched rule's last readings, the newest last; empty where it has none."""
        if generation != self._generation:
            # A table that was made anew has other rules under the same handles.
            self._generation, self._samples = generation, {}
        for key, asked_ns in tuple(self._wanted.items()):
            began_ns = _now_ns()
            if began_ns - asked_ns > WATCHED_NS:
                del self._wanted[key]
                self._samples.pop(key, None)
                continue
            packets = nft_table.rule_packets(sock, *key)
            if packets is None:
                self._samples[key] = ()
            else:
                sample = Sample(began_ns, _now_ns(), packets)
                self._samples[key] = _with(self._samples.get(key, ()), sample)
        return dict(self._samples)


def _with(samples: tuple[Sample, ...], new: Sample) -> tuple[Sample, ...]:
    """The newest takes the place of the one before unless that is old enough to be kept."""
    crowded = len(samples) > 1 and samples[-1].began_ns - samples[-2].done_ns < APART_NS
    return (*(samples[:-1] if crowded else samples)[1 - KEPT :], new)


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
