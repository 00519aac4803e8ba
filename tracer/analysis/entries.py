"""Which of the conntrack entries that a packet carried tells its flow; in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.conntrack import IP_CT_IS_REPLY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracer.analysis.branches import Order

_IP_CT_RELATED_REPLY = 4
_IPS_NAT_MASK = 0x30


def conntrack_rows(rows: np.ndarray, order: Order, inner: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each packet the row whose conntrack entry is nearest to the connection's opener.

    Namespaces have an entry each. A translated one is preferred; of several the first that a
    packet of the opener met, as it was in the end, and the last that an answer met.
    """
    count, first = len(rows), order.starts[:-1]
    entry = rows["ct"]
    info = entry["info"]
    usable = inner & (entry["present"] > 0) & (info <= _IP_CT_RELATED_REPLY)
    usable &= entry["orig"]["ethertype"] > 0
    translated = usable & (entry["status"] & _IPS_NAT_MASK > 0)
    index = np.arange(count)

    def ends(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        earliest = np.minimum.reduceat(np.where(mask, index, count), first)
        return earliest, np.maximum.reduceat(np.where(mask, index, -1), first)

    any_first, any_last = ends(usable)
    nat_first, nat_last = ends(translated)
    has_nat = nat_last >= 0
    opening = np.where(has_nat, nat_first, any_first)
    closing = np.where(has_nat, nat_last, any_last)
    opening = _at_its_end(rows, order, translated, opening)
    known = opening < count
    is_reply = info[np.where(known, opening, 0)] >= IP_CT_IS_REPLY
    return np.where(known, np.where(is_reply, closing, opening), -1)


def _at_its_end(
    rows: np.ndarray,
    order: Order,
    translated: NDArray[np.bool_],
    opening: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Of each packet the last row with the entry of its row `opening`, where that is translated.

    DNAT is settled before SNAT: until then the entry does not tell how answers look.
    """
    count = len(rows)
    row = np.flatnonzero(translated)
    packet = np.searchsorted(order.starts, row, "right") - 1
    chosen = opening[packet]
    row, packet, chosen = (part[chosen < count] for part in (row, packet, chosen))
    same = (rows["ct"]["orig"][row] == rows["ct"]["orig"][chosen]) & (
        rows["netns"][row] == rows["netns"][chosen]
    )
    settled: NDArray[np.int64] = opening.copy()
    np.maximum.at(settled, packet[same], row[same])
    return settled
