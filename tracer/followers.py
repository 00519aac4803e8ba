"""The hooks behind the one that chooses packets: attached always, or only while some are chosen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.kernel.hooks import NETFILTER, hooks_of
from tracer.nf_cover import NetfilterCover

if TYPE_CHECKING:
    from tracer.analysis.selection import PodSelection
    from tracer.kernel.loader import Loaded
    from tracer.model import Node

WATCHING = ("skb-drop", "dev-queue")
"""What stays attached on standby: nearly every packet passes a transmit queue first of all."""
IDLE_NS = 10_000_000_000
"""Back to standby when no packet has been chosen for so long."""


def followers(*, standby: bool) -> tuple[str, ...]:
    """Hooks of `trace` that are attached only while packets are chosen."""
    return tuple(h.name for h in hooks_of("trace") if h.name not in WATCHING) if standby else ()


class Followers:
    """Attaches what follows a packet, in every namespace that matters."""

    def __init__(self, loaded: Loaded, selection: PodSelection, *, standby: bool) -> None:
        """On standby nothing is attached before `attend` hears of a chosen packet."""
        self._loaded, self._standby = loaded, standby
        self._cover = NetfilterCover(loaded.programs, selection)
        self._version: int | None = None
        attached = {way.hook for way in loaded.attached if way.way != NETFILTER}
        self._deferred = [hook for hook in followers(standby=standby) if hook in attached]
        self._chosen_ns = 0
        self.whole_since_ns = -1 if standby else 0
        """CLOCK_BOOTTIME since when every hook is attached, or -1."""

    def attend(self, node: Node, *, chosen: bool) -> list[str]:
        """Attach and detach as packets are `chosen` and namespaces come and go; gives warnings."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if chosen:
            self._chosen_ns = now_ns
        elif self._standby and self.whole_since_ns > 0 and now_ns - self._chosen_ns > IDLE_NS:
            self._rest()
        if self.whole_since_ns < 0 and not chosen:
            return []
        warnings = []
        if node.version != self._version:
            self._version = node.version
            warnings = self._cover.update(node)
        if self.whole_since_ns < 0:
            for hook in self._deferred:
                self._loaded.attach(hook)
            self.whole_since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return warnings

    def _rest(self) -> None:
        self._loaded.withdraw()
        self._cover.close()
        self._version, self.whole_since_ns = None, -1

    def close(self) -> None:
        """Detach from every namespace's hooks."""
        self._cover.close()
