"""When `trace` goes on standby, and where it looks then.

That is in the few network namespaces in which what is asked for passes netfilter, once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.analysis.selection import PodSelection
    from tracer.model import Device, Node

AUTO, ALWAYS, NEVER = "auto", "always", "never"
"""`--standby`: as `stands_by` judges, whenever nothing is chosen, or not at all."""
QUIET_NS = 10_000_000_000
"""On standby when no packet has been chosen for so long, and traffic has been heavy meanwhile."""
HEAVY_PER_S = 50_000
"""Receptions a second that are heavy traffic: with all hooks they cost 2 % of a CPU more. A packet
from pod to pod is received twice and runs 23 programs, for 790 ns by `benchmarks/overhead`."""
LIGHT_PER_S = HEAVY_PER_S // 2
"""Traffic that has been heavy is light again below: it may waver without changing anything."""
WRAPS_AT = 1 << 32


@dataclass(frozen=True, slots=True)
class Look:
    """What a node had received at a moment."""

    time_ns: int
    receptions: tuple[int, ...]
    """Of each CPU, modulo WRAPS_AT."""


def received(before: Sequence[int], after: Sequence[int]) -> int:
    """Packets received between two looks at the same CPUs."""
    return sum((now - then) % WRAPS_AT for then, now in zip(before, after, strict=True))


class Traffic:
    """The mean rate at which a node receives packets, over QUIET_NS or a little more."""

    def __init__(self) -> None:
        """Begin without a look."""
        self._looks: deque[Look] = deque()
        self.newly = 0
        """Receptions between the last two looks."""

    def add(self, look: Look) -> None:
        """Take a look into account. When CPUs come or go, counting begins anew."""
        if self._looks and len(self._looks[-1].receptions) != len(look.receptions):
            self._looks.clear()
        self.newly = received(self._looks[-1].receptions, look.receptions) if self._looks else 0
        self._looks.append(look)
        while len(self._looks) > 1 and look.time_ns - self._looks[1].time_ns >= QUIET_NS:
            self._looks.popleft()

    @property
    def per_s(self) -> float | None:
        """Receptions a second; None before QUIET_NS were watched, or where nothing tells."""
        if not self._looks or not self._looks[-1].receptions:
            return None
        first, last = self._looks[0], self._looks[-1]
        if last.time_ns - first.time_ns < QUIET_NS:
            return None
        count = received(first.receptions, last.receptions)
        return count * 1e9 / (last.time_ns - first.time_ns)


def stands_by(when: str, *, resting: bool, quiet_ns: int, per_s: float | None) -> bool:
    """Whether to be on standby from now on; `when` is AUTO, ALWAYS or NEVER.

    `resting`: it is now; `quiet_ns`: since a packet was chosen, 0 if one has just been;
    `per_s`: of `Traffic`.
    """
    if when == NEVER or quiet_ns == 0:
        return False
    if when == ALWAYS:
        return resting or quiet_ns > QUIET_NS
    if per_s is None:
        return resting
    return per_s >= LIGHT_PER_S if resting else per_s >= HEAVY_PER_S and quiet_ns > QUIET_NS


def watched(
    node: Node, selection: PodSelection, passes_netfilter: Callable[[Device], bool]
) -> list[int]:
    """Namespaces to watch. Of selected pods their own: the packets of others cost nothing then.

    Of everything the node's, and all others but those from which each packet comes into one of
    these: by a veth whose other end, as `passes_netfilter` says, hands it to netfilter.
    """
    if not selection.everything:
        chosen = [pod for pod in node.pods.values() if selection.matches(pod) and not pod.gone]
        return sorted({node.netns if pod.host_network else pod.netns or 0 for pod in chosen} - {0})
    devices = _devices(node)
    living = [netns for netns, namespace in node.namespaces.items() if not namespace.gone]
    living.sort(key=lambda netns: (netns != node.netns, -len(devices[netns]), netns))
    taken: list[int] = []
    for netns in living:
        ends = [node.devices.get(device.peer or (0, 0)) for device in devices[netns]]
        leads = [end and end.netns in taken and passes_netfilter(end) for end in ends]
        if not leads or not all(leads):
            taken.append(netns)
    return taken


def _devices(node: Node) -> defaultdict[int, list[Device]]:
    """Of each namespace the devices that lead out of it."""
    found: defaultdict[int, list[Device]] = defaultdict(list)
    for device in node.devices.values():
        if device.name != "lo":
            found[device.netns].append(device)
    return found
