"""What the trace told of packets in base chains, until their drops or ways come."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.analysis.headers import header_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.analysis.rule_hops import HookHop
    from tracer.netfilter.nft_trace import Visit

KEPT = 16384
"""More wait only where the drops themselves were not chosen, or lost."""
KEPT_PASSED = 32768
"""Visits of all packets that are traced; more wait only where the packets were not chosen."""
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


@dataclass(frozen=True, slots=True)
class _Told:
    """A visit, its place in the order of all, and between which moments it ended."""

    number: int
    visit: Visit
    since_ns: int
    until_ns: int


class Passing:
    """Visits of every end by the packet's headers: of packets alike, in the order of time."""

    def __init__(self) -> None:
        self._visits: OrderedDict[tuple[int, bytes], list[_Told]] = OrderedDict()
        self._count = self._number = 0

    def __len__(self) -> int:
        return self._count

    def add(self, netns: int, visit: Visit, since_ns: int, until_ns: int) -> None:
        """Keep a visit that ended between two moments of CLOCK_BOOTTIME."""
        packet = header_key(visit.network, visit.transport)
        if not packet:
            return
        self._number += 1
        told = _Told(self._number, visit, since_ns, until_ns)
        self._visits.setdefault((netns, packet), []).append(told)
        self._count += 1
        while self._count > KEPT_PASSED:
            self._count -= len(self._visits.popitem(last=False)[1])

    def knows(self, netns: int, packets: tuple[bytes, ...]) -> bool:
        """Whether anything was told of such a packet in this namespace."""
        return any((netns, packet) in self._visits for packet in packets)

    def take(self, hop: HookHop, hook_of: Callable[[Visit], str]) -> list[Visit]:
        """The visits of one packet in one hook, in order: no two of the same base chain.

        They have the namespace, family and hook (`hook_of`) of the hop, the headers that the packet
        had before it or after it, and can have ended while it lasted.
        """
        found: dict[tuple[str, str, str], tuple[_Told, bytes]] = {}
        for packet in hop.keys:
            for told in self._visits.get((hop.netns, packet), ()):
                visit = told.visit
                place = visit.family, visit.table, visit.chain
                in_time = told.since_ns <= hop.end_ns and hop.begin_ns <= told.until_ns
                if not in_time or visit.family not in hop.families or hook_of(visit) != hop.hook:
                    continue
                if place not in found or told.number < found[place][0].number:
                    found[place] = told, packet
        for told, packet in found.values():
            self._visits[hop.netns, packet].remove(told)
            if not self._visits[hop.netns, packet]:
                del self._visits[hop.netns, packet]
        self._count -= len(found)
        return [told.visit for told, _ in sorted(found.values(), key=lambda one: one[0].number)]
