"""Sampling in bursts: for a small part of the time every hook is attached, and more packets chosen.

The kernel's way into a program costs the same for a packet that is not sampled. So while traffic
is heavy, `trace --sample 1/N` looks at none most of the time, and at one of fewer than N meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LEAST_SAMPLE = 50
"""1/N from which on that pays: below, the hooks would be attached for too much of the time."""
SHARE = 20
"""The hooks are attached for about one part of so many of the time."""
OPEN_NS = 5_000_000
"""Least time of a burst in which packets are chosen."""
GRACE_NS = 5_000_000
"""The hooks stay for so long after: what was chosen goes to its end."""
EDGE_NS = 1_000_000
"""A packet that is first seen so soon in a burst may have been on its way before."""
_AROUND_NS = 20_000_000
"""How long they are attached around that, before there was a burst."""
_LATEST = 5
"""Bursts whose least is taken for that: now and then one takes long because a CPU was kept busy."""
_KEPT = 64
"""Bursts whose edges are remembered: longer than packets take to be told."""


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst, as planned or as it was; CLOCK_BOOTTIME."""

    rate: int
    """One packet of so many is chosen."""
    begin_ns: int
    """The first hook was attached."""
    open_ns: int
    """All were, and packets began to be chosen."""
    closed_ns: int
    """None was chosen any more."""
    end_ns: int
    """The last hook was detached."""
    received: int
    """Packets that the node received while some were chosen."""

    @property
    def around_ns(self) -> int:
        """How long hooks were attached, and no packet was chosen: GRACE_NS or more."""
        return self.open_ns - self.begin_ns + self.end_ns - self.closed_ns


@dataclass(slots=True)
class Schedule:
    """When to look and at how many packets: in the long run at one of `sample`, by time."""

    sample: int
    begun_ns: int = 0
    count: int = 0
    last: list[Burst] = field(default_factory=list)
    received: int = 0
    """Packets that the node received from the first burst on."""
    _seen: float = 0.0
    """Of them those received in bursts, over the rate, like the next."""
    _looked_ns: float = 0.0
    """Time in which packets were chosen."""

    def begin(self, now_ns: int) -> None:
        """From now on there are bursts, after a time without."""
        self.begun_ns = now_ns - round(self.sample * self._looked_ns)

    @property
    def due_ns(self) -> int:
        """When the next burst is to begin."""
        return self.begun_ns + round(self.sample * self._looked_ns)

    def plan(self) -> tuple[int, int]:
        """(rate, ns in which packets are to be chosen) of the next burst."""
        lately = self.last[-_LATEST:]
        around_ns = min((one.around_ns for one in lately), default=_AROUND_NS)
        # The time is rate / sample of a period, of which it and what is around it are 1 / SHARE.
        rate = -(-self.sample * OPEN_NS // (SHARE * (around_ns + OPEN_NS)))
        return rate, SHARE * around_ns * rate // (self.sample - SHARE * rate)

    def note(self, burst: Burst) -> None:
        """Take into account how a burst went."""
        chosen_ns = (burst.closed_ns - burst.open_ns) / burst.rate
        late_ns = burst.begin_ns - self.due_ns
        if late_ns > self.sample * chosen_ns:
            self.begun_ns += late_ns  # not made good by bursts one after the other
        self._looked_ns += chosen_ns
        self._seen += burst.received / burst.rate
        self.count += 1
        self.last = [*self.last, burst][-_KEPT:]

    @property
    def rate(self) -> float | None:
        """One packet of so many was looked at, by what was received; None if none was.

        More than `sample` where tracing itself slows the traffic down that it looks at.
        """
        return self.received / self._seen if self._seen else None


def cut_by(bursts: list[Burst], begin_ns: int, end_ns: int, *, sent: bool, ended: bool) -> str:
    """What is not known of a packet because hooks were attached for `bursts` only; empty: nothing.

    It was first and last seen then; `sent` by a socket of this node, and seen to have `ended`.
    """
    burst = next((one for one in bursts if one.begin_ns <= begin_ns <= one.end_ns), None)
    if burst is None:
        return ""
    if not sent and begin_ns < burst.open_ns + EDGE_NS:
        return "it may have been on its way before the burst in which it was sampled"
    if not ended or end_ns > burst.end_ns:
        return "it was on its way when the burst in which it was sampled was over"
    return ""
