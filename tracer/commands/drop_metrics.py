"""`drops --metrics`: every drop that the kernel counted, whether it was shown or not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.drop_sums import drop_sums
from tracer.kernel.flow_maps import Growing

if TYPE_CHECKING:
    from tracer.commands.metrics import Metrics
    from tracer.session import Session


class DropMetrics:
    """Shows by `metrics` what grew in the kernel's counts."""

    def __init__(self, session: Session, metrics: Metrics) -> None:
        """Begin with all that was counted since the programs were loaded."""
        self._session, self._metrics = session, metrics
        self._counts = Growing(session.loaded, "drop_counts", "drop_key", "drop_count")
        self._held: tuple[np.ndarray, ...] | None = None
        self._shown = 0

    def count(self, shown: int) -> None:
        """Add what came since the last call; `shown` drops were shown so far.

        What died in a namespace that nobody knows yet waits for the next call: a pod's first
        packets are often faster than word of the pod.
        """
        start_s = time.monotonic()
        grown = self._counts.turn()
        context = self._session.context()
        unknown = (one not in context.node.namespaces for one in grown[0]["netns"].tolist())
        hold = np.fromiter(unknown, bool, len(grown[0])) & (grown[0]["netns"] > 0)
        if hold.any():
            self._session.inventory.poke()
        told = [one[~hold] for one in grown]
        if self._held:
            told = [np.concatenate(both) for both in zip(self._held, told, strict=True)]
        self._held = tuple(one[hold] for one in grown)
        keys, packets, sizes = told
        table = drop_sums(keys, packets, sizes, context)
        self._metrics.add(table, time.monotonic() - start_s, shown - self._shown)
        self._shown = shown
