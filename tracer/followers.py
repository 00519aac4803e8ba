"""The hooks behind the one that chooses packets: attached always, or only while some are chosen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.kernel.hooks import NETFILTER, hooks_of
from tracer.kernel.nf_links import WATCH
from tracer.nf_cover import MAX_NAMESPACES, NetfilterCover, followed, standing_by

if TYPE_CHECKING:
    from tracer.analysis.selection import PodSelection
    from tracer.kernel.loader import Loaded
    from tracer.model import Node

ALWAYS = ("skb-drop", "nf-watch")
"""What stays attached on standby, and chooses: `nf-watch` namespace by namespace."""
INSTEAD = "dev-queue"
"""Attached on standby where `nf-watch` will not do: nearly every packet passes a transmit queue,
those between pods two."""
IDLE_NS = 10_000_000_000
"""Back to standby when no packet has been chosen for so long."""


def followers(*, standby: bool) -> tuple[str, ...]:
    """Hooks of `trace` that are attached only while packets are chosen."""
    return tuple(h.name for h in hooks_of("trace") if h.name not in ALWAYS) if standby else ()


def wanted_hooks(*, standby: bool) -> tuple[str, ...]:
    """Hooks of `trace` that are to be loaded."""
    return tuple(h.name for h in hooks_of("trace") if standby or not h.spare)


class Followers:
    """Attaches what follows a packet, in every namespace that matters."""

    def __init__(
        self, loaded: Loaded, selection: PodSelection, *, standby: bool, ip_only: bool
    ) -> None:
        """On standby nothing is attached before `attend` hears of a chosen packet.

        `ip_only`: what may be chosen is IPv4 or IPv6, of which alone netfilter tells.
        """
        self._loaded, self._selection, self._standby = loaded, selection, standby
        ways = {way.hook: way.way for way in loaded.attached}
        around = loaded.programs if ways.get("nf-hook") == NETFILTER else {}
        self._cover = NetfilterCover(around)
        self._may_watch = "nf-watch" in ways and ip_only
        self._watch = NetfilterCover(loaded.programs, WATCH)
        self._queue = False
        self._version: int | None = None
        self._deferred = [
            hook for hook in followers(standby=standby) if ways.get(hook, NETFILTER) != NETFILTER
        ]
        self._chosen_ns = 0
        self.whole_since_ns = -1 if standby else 0
        """CLOCK_BOOTTIME since when every hook is attached, or -1."""

    def attend(self, node: Node, *, chosen: bool) -> list[str]:
        """Attach and detach as packets are `chosen` and namespaces come and go; gives warnings."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if chosen:
            self._chosen_ns = now_ns
        elif self._standby and self.whole_since_ns > 0 and now_ns - self._chosen_ns > IDLE_NS:
            return self._rest(node)
        is_new, self._version = node.version != self._version, node.version
        if self.whole_since_ns >= 0:
            return self._cover.update(node, followed(self._selection, node)) if is_new else []
        if chosen:
            return self._rise(node)
        return self._watch_over(node) if is_new else []

    def _rise(self, node: Node) -> list[str]:
        """Attach all that is on standby."""
        warnings = self._cover.update(node, followed(self._selection, node))
        for hook in self._deferred:
            if hook != INSTEAD or not self._queue:
                self._loaded.attach(hook)
        self._watch.close()
        self.whole_since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return warnings

    def _rest(self, node: Node) -> list[str]:
        """Back to standby."""
        self._loaded.withdraw()
        self._queue = False
        warnings = self._watch_over(node)
        self._cover.close()
        self.whole_since_ns = -1
        return warnings

    def _watch_over(self, node: Node) -> list[str]:
        """On standby: attach what chooses, as namespaces come and go."""
        wanted = standing_by(self._selection, node) if self._may_watch else []
        if self._may_watch and len(wanted) <= MAX_NAMESPACES:
            warnings = self._watch.update(node, wanted)
            if self._queue:
                self._loaded.withdraw()
                self._queue = False
            return warnings
        if not self._queue:
            self._loaded.attach(INSTEAD)
            self._queue = True
        self._watch.close()
        return []

    def close(self) -> None:
        """Detach from every namespace's hooks."""
        self._cover.close()
        self._watch.close()
