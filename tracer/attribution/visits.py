"""Base chains that the trace says packets died in, until the drops that belong to them come."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from tracer.analysis.headers import header_key

if TYPE_CHECKING:
    from tracer.netfilter.nft_trace import Visit

KEPT = 16384
"""More wait only where the drops themselves were not chosen, or lost."""
_LETHAL = ("drop", "queue")


class Lethal:
    """Visits that ended in a drop, or in a queue that may drop, by the packet's headers."""

    def __init__(self) -> None:
        self._visits: OrderedDict[tuple[int, bytes], deque[Visit]] = OrderedDict()

    def add(self, netns: int, visit: Visit) -> None:
        """Keep a visit, if a packet may have died of it."""
        if visit.verdict not in _LETHAL:
            return
        key = netns, header_key(visit.network, visit.transport)
        self._visits.setdefault(key, deque()).append(visit)
        if len(self._visits) > KEPT:
            self._visits.popitem(last=False)

    def take(
        self, netns: int, packet: bytes, mechanism: str, families: tuple[str, ...]
    ) -> Visit | None:
        """The visit that a drop ended: same namespace, headers and family, in order of time.

        `packet` is its `packet_key`.
        """
        visits = self._visits.get((netns, packet), deque()) if packet else deque()
        verdict = "queue" if mechanism == "nf_queue" else "drop"
        for visit in visits:
            if visit.verdict == verdict and visit.family in families:
                visits.remove(visit)
                if not visits:
                    del self._visits[netns, packet]
                return visit
        return None
