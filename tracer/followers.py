"""The hooks behind the one that chooses packets: attached always, or only while some are chosen."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tracer.analysis.bursts import GRACE_NS, LEAST_SAMPLE, SHARE, Burst, Schedule
from tracer.analysis.watch import ALWAYS, AUTO, NEVER, QUIET_NS, Look, Traffic, received, stands_by
from tracer.inventory.softnet import receptions
from tracer.kernel.hooks import NETFILTER, hooks_of
from tracer.kernel.maps import Map
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


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


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
        self, loaded: Loaded, selection: PodSelection, when: str, *, ip_only: bool, sample: int
    ) -> None:
        """`when`: on standby, as `stands_by` understands it.

        `ip_only`: what may be chosen is IPv4 or IPv6, of which alone netfilter tells.
        `sample`: one packet of so many is chosen; on busy nodes in bursts, where `when` allows.
        """
        self._loaded, self._selection, self._when = loaded, selection, when
        ways = {way.hook: way.way for way in loaded.attached}
        around = loaded.programs if ways.get("nf-hook") == NETFILTER else {}
        self._cover = NetfilterCover(around)
        self._may_watch = WATCHING in ways and ip_only
        self._watch = NetfilterCover(loaded.programs, WATCH)
        self._version: int | None = None
        self._hooks = [
            hook for hook, way in ways.items() if hook not in ATTACHED and way != NETFILTER
        ]
        self._chosen_ns = self._looked_ns = _now_ns()
        self._traffic = Traffic()
        self.whole_since_ns = -1 if when == ALWAYS else 0
        """CLOCK_BOOTTIME since when every hook is attached, or -1 (on standby)."""
        self._resting = when == ALWAYS
        self._warned: set[str] = set()
        self._sample = sample
        in_bursts = when == AUTO and sample >= LEAST_SAMPLE
        self.bursts = Schedule(sample) if in_bursts else None
        """When to look, instead of standby."""
        self._choose(sample)

    @property
    def due_s(self) -> float:
        """Seconds until `attend` has something to do, whatever happens."""
        if not self.bursts or not self._resting:
            return float("inf")
        return max(0, self.bursts.due_ns - _now_ns()) / 1e9

    def attend(self, node: Node, *, chosen: bool) -> list[str]:
        """Attach and detach as packets are `chosen`, traffic grows and namespaces come and go.

        Returns what is to be said of it.
        """
        resting = self._resting
        rest = self._resting = self._judge(resting=resting, chosen=chosen)
        is_new, self._version = node.version != self._version, node.version
        if rest != resting:
            warnings = self._rest(node) if rest else self._rise(node)
        elif rest and self.bursts:
            warnings = self._burst(node, self.bursts)
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
        now_ns = _now_ns()
        if chosen:
            self._chosen_ns = now_ns
        if self._when == AUTO and now_ns - self._looked_ns >= LOOK_NS:
            self._look(now_ns, resting=resting)
        # To be sampled in bursts, packets need not be quiet.
        quiet_ns = QUIET_NS + 1 if self.bursts else now_ns - self._chosen_ns
        return stands_by(self._when, resting=resting, quiet_ns=quiet_ns, per_s=self._traffic.per_s)

    def _look(self, now_ns: int, *, resting: bool) -> None:
        self._looked_ns = now_ns
        self._traffic.add(Look(now_ns, receptions()))
        if self.bursts and resting:
            self.bursts.received += self._traffic.newly

    def _why(self, *, rest: bool, chosen: bool) -> list[str]:
        """What is said of a change that nobody asked for and no packet shows."""
        if self._when != AUTO or (chosen and not self.bursts):
            return []
        if not rest:
            what = "no more bursts" if self.bursts else "off standby"
            return [f"{what}: the node receives few packets now"]
        why = f"the node receives {self._traffic.per_s or 0:,.0f} packets/s"
        if self.bursts:
            what = "sampling in bursts"
            then = f"hooks are attached 1/{SHARE} of the time, and sample more packets then"
        else:
            what = "on standby"
            why += f", and none was chosen for {QUIET_NS // 10**9} s"
            then = "the next that is chosen brings all hooks back"
        return [f"{what}: {why}; {then} (--standby=never keeps them)"]

    def _choose(self, rate: int) -> None:
        """Let one packet of `rate` be chosen, or none if it is 0; without --sample all are."""
        if "sample_rates" in self._loaded.maps:
            rates = Map(*self._loaded.maps["sample_rates"], "<u4", "<u4")
            rates.update(bytes(4), rate.to_bytes(4, sys.byteorder))

    def _rise(self, node: Node) -> list[str]:
        """Attach all that is on standby."""
        warnings = self._attach(node)
        if self.bursts:
            self._choose(self._sample)
            return warnings
        self._watch.close()
        self.whole_since_ns = _now_ns()
        return warnings

    def _rest(self, node: Node) -> list[str]:
        """On standby, or until the first burst."""
        if self.bursts:
            self._choose(0)
            self._detach()
            self.bursts.begin(_now_ns())
            return []
        warnings = self._watch_over(node)
        self._detach(but=INSTEAD)
        self.whole_since_ns = -1
        return warnings

    def _burst(self, node: Node, bursts: Schedule) -> list[str]:
        """If it is time: attach, let packets be chosen, let them reach their ends, detach."""
        begin_ns = _now_ns()
        if begin_ns < bursts.due_ns:
            return []
        rate, chosen_ns = bursts.plan()
        warnings = self._attach(node)
        self._choose(rate)
        before, open_ns = receptions(), _now_ns()
        time.sleep(chosen_ns / 1e9)
        self._choose(0)
        closed_ns, after = _now_ns(), receptions()
        time.sleep(GRACE_NS / 1e9)
        self._detach()
        count = received(before, after) if len(before) == len(after) else 0
        bursts.note(Burst(rate, begin_ns, open_ns, closed_ns, _now_ns(), count))
        news = [warning for warning in warnings if warning not in self._warned]
        self._warned.update(news)
        return news

    def _attach(self, node: Node) -> list[str]:
        warnings = self._cover.update(node, followed(self._selection, node))
        for hook in self._hooks:
            self._loaded.attach(hook)
        return warnings

    def _detach(self, but: str = "") -> None:
        self._loaded.withdraw(*(hook for hook in self._hooks if hook != but))
        self._cover.close()

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
        """Detach from every namespace's hooks; what was received until now is known then."""
        if self.bursts and self._resting:
            self._look(_now_ns(), resting=True)
        self._cover.close()
        self._watch.close()
