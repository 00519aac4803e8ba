"""Why a conntrack entry ended: told by the kernel, or inferred and said to be.

Since 5.13 (86d21fc74745) a destroy event has the time that was left: an entry that ran out has
none. Who asked for a removal by netlink is in the event's header. All else is inferred from the
entry's last state and, for early drop, from the counter of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.ct_layout import Event, Has, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TCP = 6
_TIME_WAIT, _CLOSE = 7, 8
"""enum tcp_conntrack."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why one entry ended."""

    reason: str
    """`timeout`, `deleted`, `early-drop`, `reset`, `reopened` or `removed`."""
    inferred: bool
    """False where the kernel tells it."""


TIMEOUT, SUPPOSED_TIMEOUT = Death("timeout", inferred=False), Death("timeout", inferred=True)
"""Its time was over; the second where the kernel does not tell what was left."""
DELETED = Death("deleted", inferred=False)
"""A program asked for it by netlink (`conntrack -D`, kube-proxy)."""
EARLY_DROP = Death("early-drop", inferred=True)
"""The table was full, and it was not assured: it made room for another."""
RESET = Death("reset", inferred=True)
"""The first answer to its SYN was a reset."""
REOPENED = Death("reopened", inferred=True)
"""A SYN with the same ports came after the connection had closed."""
REMOVED = Death("removed", inferred=False)
"""Before its time, and nothing tells why: its masquerading device went down, a module went."""


def tells_timeout(rows: NDArray[np.void]) -> bool:
    """Whether a destroy event among `rows` (ENTRY) proves that this kernel tells what was left."""
    told = rows["present"][rows["event"] == Event.DESTROY] & (Has.TIMEOUT | Has.PROTO_STATE)
    return bool(told.any())


def maybe_early_dropped(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which rows ended before their time, nobody asked, and were what early drop takes."""
    early = (rows["event"] == Event.DESTROY) & (rows["present"] & Has.TIMEOUT > 0)
    return np.asarray(early & (rows["portid"] == 0) & (rows["status"] & Status.ASSURED == 0))


def deaths(rows: NDArray[np.void], *, told: bool, early_dropped: bool) -> dict[int, Death]:
    """Row → why it ended, of the destroy events among `rows`.

    `told`: the kernel tells what time was left (`tells_timeout`); `early_dropped`: the kernel
    has counted more early drops than have been told.
    """
    some = np.flatnonzero(rows["event"] == Event.DESTROY)
    columns = ("portid", "present", "status", "proto_state")
    values = [rows[name][some].tolist() for name in columns]
    protocols = rows["orig"]["protocol"][some].tolist()
    return {
        row: _death(portid, status, state * (protocol == _TCP),
                    has_left=bool(present & Has.TIMEOUT), told=told, early_dropped=early_dropped)
        for row, portid, present, status, state, protocol
        in zip(some.tolist(), *values, protocols, strict=True)
    }  # fmt: skip


def _death(
    portid: int, status: int, tcp_state: int, *, has_left: bool, told: bool, early_dropped: bool
) -> Death:
    if portid:
        return DELETED
    if not has_left:
        return TIMEOUT if told else SUPPOSED_TIMEOUT
    if tcp_state == _CLOSE and not status & Status.SEEN_REPLY:
        return RESET
    if early_dropped and not status & Status.ASSURED:
        return EARLY_DROP
    if tcp_state in (_TIME_WAIT, _CLOSE):
        return REOPENED
    return REMOVED
