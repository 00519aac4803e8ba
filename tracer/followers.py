"""The hooks behind the one that chooses packets: attached always, or only while some are chosen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracer.analysis.watch import ALWAYS, AUTO, NEVER, QUIET_NS, Look, Traffic, stands_by
from tracer.inventory.softnet import receptions
from tracer.kernel.hooks import NETFILTER, hooks_of
from tracer.kernel.nf_links import WATCH
from tracer.nf_cover import MAX_NAMESPACES, NetfilterCover, followed, standing_by

if TYPE_CHECKING:
    from tracer.analysis.selection import PodSelection
    from tracer.kernel.loader import Loaded
    from tracer.model import Node

WATCHING = "nf-watch"
"""Attached on standby alone, namespace by namespace."""
ATTACHED = ("skb-drop", WATCHING)
"""What is attached on standby, and chooses."""
INSTEAD = "dev-queue"
"""Attached on standby where `nf-watch` will not do: nearly every packet passes a transmit queue,
those between pods two."""
LOOK_NS = 1_000_000_000
"""How often traffic is looked at."""


def deferred(when: str) -> tuple[str, ...]:
    """Hooks of `trace` that are not attached as soon as they are loaded; `when` as `stands_by`."""
    names = [hook.name for hook in hooks_of("trace")]
    return {
        ALWAYS: tuple(name for name in names if name not in ATTACHED),
        AUTO: (WATCHING,),
        NEVER: (),
    }[when]


def wanted_hooks(when: str) -> tuple[str, ...]:
    """Hooks of `trace` that are to be loaded."""
    return tuple(h.name for h in hooks_of("trace") if when != NEVER or not h.spare)


class Followers:
    """Attaches what follows a packet, in every namespace that matters."""

    def __init__(
        self, loaded: Loaded, selection: PodSelection, when: str, *, ip_only: bool
    ) -> None:
        """`when`: on standby, as `stands_by` understands it.

        `ip_only`: what may be chosen is IPv4 or IPv6, of which alone netfilter tells.
        """
        self._loaded, self._selection, self._when = loaded, selection, when
        ways = {way.hook: way.way for way in loaded.attached}
        around = loaded.programs if ways.get("nf-hook") == NETFILTER else {}
        self._cover = NetfilterCover(around)
        self._may_watch = WATCHING in ways and ip_only
        self._watch = NetfilterCover(loaded.programs, WATCH)
        self._version: int | None = None
        self._followers = [
            hook for hook, way in ways.items() if hook not in ATTACHED and way != NETFILTER
        ]
        self._chosen_ns = self._looked_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._traffic = Traffic()
        self.whole_since_ns = -1 if when == ALWAYS else 0
        """CLOCK_BOOTTIME since when every hook is attached, or -1 (on standby)."""

    def attend(self, node: Node, *, chosen: bool) -> list[str]:
        """Attach and detach as packets are `chosen`, traffic grows and namespaces come and go.

        Returns what is to be said of it.
        """
        resting = self.whole_since_ns < 0
        rest = self._judge(resting=resting, chosen=chosen)
        is_new, self._version = node.version != self._version, node.version
        if rest != resting:
            warnings = self._rest(node) if rest else self._rise(node)
        elif not is_new:
            return []
        elif rest:
            warnings = self._watch_over(node)
        else:
            warnings = self._cover.update(node, followed(self._selection, node))
        said = self._why(rest=rest, chosen=chosen) if rest != resting else []
        return said + [f"warning: {warning}" for warning in warnings]

    def _judge(self, *, resting: bool, chosen: bool) -> bool:
        """Whether to be on standby from now on."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if chosen:
            self._chosen_ns = now_ns
        if self._when == AUTO and now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            self._traffic.add(Look(now_ns, receptions()))
        quiet_ns = now_ns - self._chosen_ns
        return stands_by(self._when, resting=resting, quiet_ns=quiet_ns, per_s=self._traffic.per_s)

    def _why(self, *, rest: bool, chosen: bool) -> list[str]:
        """What is said of a change that nobody asked for and no packet shows."""
        if self._when != AUTO or chosen:
            return []
        if not rest:
            return ["off standby: the node receives few packets now"]
        per_s = round(self._traffic.per_s or 0)
        why = f"no packet chosen for {QUIET_NS // 10**9} s, while {per_s:,} a second are received"
        back = "the next one chosen brings all hooks back (--standby=never keeps them)"
        return [f"on standby: {why}; {back}"]

    def _rise(self, node: Node) -> list[str]:
        """Attach all that is on standby."""
        warnings = self._cover.update(node, followed(self._selection, node))
        for hook in self._followers:
            self._loaded.attach(hook)
        self._watch.close()
        self.whole_since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return warnings

    def _rest(self, node: Node) -> list[str]:
        """On standby."""
        warnings = self._watch_over(node)
        self._loaded.withdraw(*(hook for hook in self._followers if hook != INSTEAD))
        self._cover.close()
        self.whole_since_ns = -1
        return warnings

    def _watch_over(self, node: Node) -> list[str]:
        """On standby: attach what chooses, as namespaces come and go."""
        wanted = standing_by(self._selection, node) if self._may_watch else []
        if self._may_watch and len(wanted) <= MAX_NAMESPACES:
            warnings = self._watch.update(node, wanted)
            self._loaded.withdraw(INSTEAD)
            return warnings
        self._loaded.attach(INSTEAD)
        self._watch.close()
        return []

    def close(self) -> None:
        """Detach from every namespace's hooks."""
        self._cover.close()
        self._watch.close()
