"""Columns of hop records as Python lists: what records of many packets are made from, fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.changes import changes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tracer.analysis.branches import Order


@dataclass(frozen=True, slots=True)
class Columns:
    """One list a column, one element a row; the names are those of `struct hop_event`."""

    hop: list[int]
    time_ns: list[int]
    netns: list[int]
    ifindex: list[int]
    nf: list[tuple[int, int]]
    """(nf_family, nf_hook)."""
    previous: list[int]
    """As in branches.Order, and so are the next four."""
    branch: list[int]
    state: list[int]
    leave: list[int]
    following: list[int]
    absorbed: list[bool]
    """True for a HOP_NF_LEAVE that is told together with its HOP_NF_ENTER."""
    changes: Mapping[int, list[str]]
    """Row → what changed there."""


def columns(rows: np.ndarray, order: Order, netns: NDArray[np.uint32]) -> Columns:
    """Take the columns of sorted hop records."""
    absorbed = np.zeros(len(rows), bool)
    absorbed[order.leave[order.leave >= 0]] = True
    return Columns(
        hop=rows["hop"].tolist(),
        time_ns=rows["time_ns"].tolist(),
        netns=netns.tolist(),
        ifindex=rows["ifindex"].tolist(),
        nf=list(zip(rows["nf_family"].tolist(), rows["nf_hook"].tolist(), strict=True)),
        previous=order.previous.tolist(),
        branch=order.branch.tolist(),
        state=order.state.tolist(),
        leave=order.leave.tolist(),
        following=order.following.tolist(),
        absorbed=absorbed.tolist(),
        changes=changes(rows, order),
    )
