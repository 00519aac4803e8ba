"""Flows that go on are told now and then, flows that ended once: active and inactive timeouts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracer.analysis.connections import pair_codes
from tracer.analysis.flows import sum_flows
from tracer.layout import layout
from tracer.wall_time import NS_PER_S


@dataclass(frozen=True, slots=True)
class Timeouts:
    """When a flow is told; None: at once."""

    active_s: float | None = None
    """After its first packet that is not told yet."""
    inactive_s: float | None = None
    """After its last packet."""


class FlowCache:
    """Counts of flows that wait to be told, summed."""

    def __init__(self, timeouts: Timeouts, most: int, *, both_ways: bool = False) -> None:
        """`most` flows wait; where there are more all are told.

        With `both_ways` a flow is told with what goes the other way, when one of them is due.
        """
        self._timeouts, self._most, self._both_ways = timeouts, most, both_ways
        self._keys: np.ndarray | None = None
        self._counts: np.ndarray | None = None

    def __len__(self) -> int:
        """How many flows wait."""
        return 0 if self._keys is None else len(self._keys)

    @property
    def keys(self) -> np.ndarray:
        """(n,) flow_key: those that wait."""
        return np.zeros(0, layout().structs["flow_key"]) if self._keys is None else self._keys

    def due(
        self, keys: np.ndarray, counts: np.ndarray, now_ns: int, *, everything: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add (n,) `keys` and `counts`; return those of flows that are due, and forget them.

        `now_ns` is the clock of the counts.
        """
        if self._timeouts == Timeouts():
            return keys, counts
        if self._keys is not None and self._counts is not None:
            keys = np.concatenate((self._keys, keys))
            counts = np.concatenate((self._counts, counts))
        keys, counts = sum_flows(keys, counts)
        told = np.full(len(keys), everything or len(keys) > self._most)
        for since, timeout_s in (
            (counts["first_ns"], self._timeouts.active_s),
            (counts["last_ns"], self._timeouts.inactive_s),
        ):
            if timeout_s is not None:
                told |= since.astype(np.int64) <= now_ns - int(timeout_s * NS_PER_S)
        if self._both_ways:
            pairs = pair_codes(keys)
            told = np.isin(pairs, pairs[told])
        self._keys, self._counts = keys[~told], counts[~told]
        return keys[told], counts[told]
