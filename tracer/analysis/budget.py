"""How many packets are to be counted, so that counting them stays within a budget."""

from __future__ import annotations

import math

MAX_RATE = 256
"""Counted less often, small flows are hardly ever seen."""
MAX_STEP = 8
"""One interval says little about the next: no more than this many times coarser at once."""
ROOM = 0.8
"""What is to be used of the budget, so that it is kept when the load moves a little."""


def next_rate(rate: int, used: float, budget: float) -> int:
    """Of how many packets one is to be counted, when with one of `rate` so much was `used`.

    `used` and `budget` are of one unit, any. What is used is taken to fall as the rate grows;
    what does not (reading, writing) is met by the next steps. Finer again only where less than
    half would be used otherwise, and by half: else every interval would have a rate of its own.
    """
    wanted = max(1, math.ceil(rate * used / (ROOM * budget)))
    if used > budget:
        return min(max(wanted, rate + 1), rate * MAX_STEP, MAX_RATE)
    if wanted <= rate // 2:
        return max(wanted, rate // 2)
    return rate
