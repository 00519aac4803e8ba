"""`flows --dns`: what name servers answer the pods, read from the ring and kept as names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.dns import MalformedError, parse_answer
from tracer.analysis.dns_names import DnsNames
from tracer.analysis.flows import NODE_ONLY, UNKNOWN, at_pods
from tracer.kernel.ring import open_ring
from tracer.layout import layout
from tracer.session import say
from tracer.wall_time import NS_PER_S

if TYPE_CHECKING:
    from tracer.session import Session

PLACE_S = 10
MOST_UNPLACED = 4096
"""How long answers wait for word of the device they came by, and how many."""


class DnsAnswers:
    """Reads answers, and has the names they tell."""

    tick_s = 0.5
    """How often `read` is to be called: the kernel wakes nobody, the ring has room for as long."""

    def __init__(self, session: Session) -> None:
        """Begin with none."""
        self.names = DnsNames()
        self._session = session
        info, fd = session.loaded.maps["dns_answers"]
        dtype = layout().structs["dns_answer"]
        self._ring, warning = open_ring(fd, dtype, info.max_entries)
        if warning:
            say(f"warning: {warning}")
        self._waiting = np.empty(0, dtype)
        self._lost = {"dns_answers_malformed": 0, "dns_answers_cut": 0, "dns_answers_unplaced": 0}

    def losses(self) -> dict[str, int]:
        """What is not known, by source; sources without loss are left out."""
        lost = {**self._lost, "dns_names": self.names.evicted}
        return {source: count for source, count in lost.items() if count}

    def read(self, *, last: bool = False) -> None:
        """Learn what has come since; what came by a device nobody knows yet waits."""
        events = np.concatenate((self._waiting, self._ring.take()))
        node = self._session.inventory.node
        places, known = at_pods(events[["netns", "ifindex"]], node)
        waits = (known == UNKNOWN) & (events["netns"] == node.netns)
        for netns, event in zip(
            places["netns"][~waits & (known != NODE_ONLY)].tolist(),
            events[~waits & (known != NODE_ONLY)],
            strict=True,
        ):
            self._learn(netns, event)
        self._wait(events[waits], last=last)

    def _learn(self, netns: int, event: np.void) -> None:
        captured = int(event["captured_bytes"])
        cut = captured < int(event["message_bytes"])
        try:
            answer = parse_answer(event["message"][:captured].tobytes(), cut=cut)
        except MalformedError:
            self._lost["dns_answers_malformed"] += 1
            return
        self._lost["dns_answers_cut"] += not answer.whole
        self.names.learn(netns, answer, int(event["time_ns"]))

    def _wait(self, events: np.ndarray, *, last: bool) -> None:
        if len(events):
            self._session.inventory.poke()
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        young = events["time_ns"].astype(np.int64) > now_ns - PLACE_S * NS_PER_S
        self._waiting = events[young & (not last)][:MOST_UNPLACED]
        self._lost["dns_answers_unplaced"] += len(events) - len(self._waiting)

    def close(self) -> None:
        """Give the ring's memory back."""
        self._ring.close()
