"""New namespaces: read again while they are being set up, a few times and no more (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

LOOKS_S = (0.1, 0.3, 0.7, 1.3, 2.0)
"""Ages at which a new namespace is looked at again: devices and addresses come after it."""


@dataclass(slots=True)
class Settling:
    """When each namespace that is not settled yet was first seen, in the caller's clock."""

    births: dict[int, float] = field(default_factory=dict)
    _known: frozenset[int] | None = None

    def look(self, unheard: Collection[int], present: Collection[int], now: float) -> None:
        """Note who is there now, and forget who has settled.

        Of those that were there at the first look, only the `unheard` may be unsettled: to
        read all of a big node again and again would cost its start.
        """
        new = set(unheard) if self._known is None else set(present) - self._known
        self._known = frozenset(present)
        births = dict.fromkeys(new, now) | self.births
        self.births = {
            inode: birth
            for inode, birth in births.items()
            if inode in self._known and now - birth < LOOKS_S[-1]
        }

    def next_s(self, now: float) -> float:
        """When to look again for the sake of the new ones; infinity where there is none."""
        looks = (birth + age for birth in self.births.values() for age in LOOKS_S)
        return min((look for look in looks if look > now), default=float("inf"))
