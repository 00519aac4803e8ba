"""Every drop that the kernel counted, shown or not: exact totals, and what `--metrics` shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.drop_sums import drop_sums
from tracer.analysis.drop_totals import DropTotals
from tracer.kernel.flow_maps import Generations

if TYPE_CHECKING:
    from tracer.commands.metrics import Metrics
    from tracer.model import Record
    from tracer.session import Session


class DropCounts:
    """Takes what the kernel counted out of its map, so that this has room for months."""

    def __init__(self, session: Session, metrics: Metrics | None) -> None:
        """Counting starts here; what is taken is shown by `metrics`, too."""
        self._session, self._metrics = session, metrics
        self._kernel = Generations(session.loaded, "drop_counts", "drop_key", "drop_count")
        self._totals = DropTotals()
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        """Of namespaces that nobody knows yet."""
        self._shown = 0

    def take(self, shown: int) -> None:
        """Add what came since the last call; `shown` drops were shown so far."""
        start_s = time.monotonic()
        keys, counts = self._kernel.turn()
        context = self._session.context()
        self._totals.add(keys, counts, context)
        if self._metrics is None:
            return
        # A pod's first packets are often faster than word of the pod: those wait for the next call.
        unknown = (one not in context.node.namespaces for one in keys["netns"].tolist())
        hold = np.fromiter(unknown, bool, len(keys)) & (keys["netns"] > 0)
        if hold.any():
            self._session.inventory.poke()
        pieces = *self._held, (keys[~hold], counts[~hold])
        told, grown = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        self._held = [(keys[hold], counts[hold])]
        self._metrics.add(drop_sums(told, grown, context))
        self._metrics.turned(time.monotonic() - start_s, shown - self._shown)
        self._shown = shown

    def summary(self) -> list[Record]:
        """Exact totals of the whole run, once the programs are detached."""
        keys, counts = self._kernel.turn()
        context = self._session.context()
        self._totals.add(keys, counts, context)
        return self._totals.records(context)
