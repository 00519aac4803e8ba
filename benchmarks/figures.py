"""Medians and how sure we are of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Median of `values`, and the interval that resampling them gives (seeded: repeatable)."""
    samples = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(1).choice(samples, (RESAMPLES, len(samples)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return Estimate(float(np.median(samples)), float(low), float(high))
