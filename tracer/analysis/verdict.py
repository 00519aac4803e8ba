"""What became of a packet, by its last hops."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from tracer.analysis.branches import BARE, ENDS, HOP, NF_INET_LOCAL_IN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.analysis.assemble import Path
    from tracer.analysis.columns import Columns
    from tracer.analysis.drops import Context
    from tracer.model import Device

_INSIDE = frozenset(("veth", "bridge", "dummy", "ifb", "bond", "team", "vlan", "macvlan", "ipvlan"))
"""Kinds of device behind which the packet is still on this node."""
_TAKEN = frozenset((HOP.HOP_TCP_RECEIVE, HOP.HOP_COPIED))
_BARE = frozenset(BARE)
_FREED_LATER = frozenset(("skb_defer_free_flush", "skb_attempt_defer_free"))
"""The kernel frees what was read when it suits it, up to a second later (net/core/skbuff.c)."""
_ENDS_SAY = {
    **dict.fromkeys(_FREED_LATER, "was done with before"),
    "skb_release_data": "was merged into another",
}
"""What it means to be freed there: of the last, with the one that GRO or reassembly made."""
_VERDICTS = ("delivered", "forwarded", "dropped", "consumed", "unknown")


@lru_cache(maxsize=4096)
def is_freed_later(location: str) -> bool:
    """Whether what was freed there had been done with before."""
    return location.partition("+")[0] in _FREED_LATER


@lru_cache(maxsize=4096)
def end_note(location: str) -> str:
    """What is worth telling of a packet that was freed there."""
    return _ENDS_SAY.get(location.partition("+")[0], "")


def duration_ns(path: Path, context: Context) -> int:
    """From a packet's first hop to its last, not counting that it is freed later."""
    columns = path.batch.columns
    for row in range(path.stop - 1, path.start, -1):
        free = columns.hop[row] == HOP.HOP_CONSUMED
        if not free or not is_freed_later(context.symbol(int(columns.location[row]))):
            return columns.time_ns[row] - path.begin_ns
    return 0


def verdict_of(path: Path, context: Context) -> tuple[str, int]:
    """What became of the packet, and the row that tells; of its branches the best that came."""
    columns = path.batch.columns
    hop = columns.hop
    rows: Sequence[int] = range(path.start, path.stop)
    if not _BARE.isdisjoint(hop[path.start : path.stop]):
        rows = [row for row in rows if hop[row] not in _BARE]
    if not columns.branched[path.number]:
        return (_of_branch(rows, columns, context), rows[-1]) if rows else ("unknown", path.start)
    branches: dict[int, list[int]] = {}
    for row in rows:
        branches.setdefault(columns.branch[row], []).append(row)
    told = [(_of_branch(some, columns, context), some[-1]) for some in branches.values()]
    return min(told, key=lambda one: _VERDICTS.index(one[0]))


def _of_branch(rows: Sequence[int], columns: Columns, context: Context) -> str:
    hop = columns.hop
    hops = [hop[row] for row in rows]
    if not _TAKEN.isdisjoint(hops):
        is_tap = len(rows) == 1 and columns.branch[rows[0]] > 0
        return "consumed" if is_tap else "delivered"
    if hops[-1] == HOP.HOP_DROPPED and not _purged(rows[-1], columns, context):
        return "dropped"
    row = rows[-2] if hops[-1] in ENDS and len(rows) > 1 else rows[-1]
    netns, ifindex, kind, _, hook, _ = columns.place[row]
    if kind == HOP.HOP_NF_LEAVE and hook == NF_INET_LOCAL_IN:
        return "delivered"
    node = context.node
    if kind == HOP.HOP_DEV_XMIT and _leaves_node(
        node.devices.get((netns, ifindex)), is_node=netns == node.netns
    ):
        return "forwarded"
    return "consumed" if hops[-1] == HOP.HOP_CONSUMED else "unknown"


def _purged(row: int, columns: Columns, context: Context) -> bool:
    """Whether it had reached its socket, which was closed before it was read."""
    before = columns.state[row]
    if before < 0:
        return False
    _, _, kind, _, hook, _ = columns.place[before]
    return (
        kind == HOP.HOP_NF_LEAVE
        and hook == NF_INET_LOCAL_IN
        and context.reason(int(columns.argument[row])) == "QUEUE_PURGE"
    )


def _leaves_node(device: Device | None, *, is_node: bool) -> bool:
    if device is None:
        return is_node
    return device.kind not in _INSIDE and device.name != "lo"
