"""Packets to which conntrack gave no entry: left alone by a rule, or invalid to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.branches import HOP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_STATES = {"conntrack untracked": "untracked", "conntrack invalid (inferred)": "invalid"}
"""What is told of a packet without an entry → its `conntrack.state`."""
UNTRACKED, INVALID = _STATES
_TRACKING = (0, 3)
"""NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT: where conntrack looks at packets."""
_FAMILIES = (2, 10)
"""NFPROTO_IPV4 and NFPROTO_IPV6."""


class Tracking:
    """Where conntrack has been seen at work; there, who leaves it without an entry is invalid.

    Whether it looks at a namespace's packets at all no hop tells: of packets that came before any
    that got an entry there, and the same family, nothing is said.
    """

    def __init__(self) -> None:
        self._since: dict[int, int] = {}
        """Namespace and family, in one number → time of the first entry."""

    def invalid(self, rows: np.ndarray) -> NDArray[np.int64]:
        """Of sorted `struct hop_event` the rows where conntrack had just found a packet invalid."""
        left = (rows["hop"] == HOP.HOP_NF_LEAVE) & np.isin(rows["nf_hook"], _TRACKING)
        row = np.flatnonzero(left & np.isin(rows["nf_family"], _FAMILIES))
        if not len(row):
            return row
        entries, times = rows["ct"], rows["time_ns"][row]
        places = rows["netns"][row].astype(np.uint64) << 8 | rows["nf_family"][row]
        has, info = entries["present"][row] > 0, entries["info"][row]
        bare = ~has & (info == 0)
        for place in np.unique(places[has]).tolist():
            first_ns = int(times[has & (places == place)].min())
            self._since[place] = min(first_ns, self._since.get(place, first_ns))
        row, times, places = row[bare], times[bare], places[bare].tolist()
        never = np.iinfo(np.uint64).max
        since = np.array([self._since.get(place, never) for place in places], np.uint64)
        invalid: NDArray[np.int64] = row[times > since]
        return invalid


def state_without_entry(changes: Mapping[int, Sequence[str]], start: int, stop: int) -> str:
    """`untracked`, `invalid`, or empty: by what is told of the hops from `start` on."""
    for row in range(start, stop):
        for text in changes.get(row, ()):
            if text in _STATES:
                return _STATES[text]
    return ""
