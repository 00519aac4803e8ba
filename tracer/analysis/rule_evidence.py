"""Whether counters bear out that a rule dropped a packet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.analysis.ruleset.model import Verdict

UNMOVED = "counter did not move"
"""A rule that takes a packet counts it: where the counter stood still, it was not this one."""


def weigh(
    verdicts: Sequence[Verdict], growths: Sequence[int | None]
) -> tuple[tuple[Verdict, ...], str]:
    """(the verdicts that are still possible, what the counters say, in words).

    `growths`: by how much the counter of each verdict's rule grew over the drop; None where that
    is not known. If none of them grew, all are returned, and the words are `UNMOVED`.
    """
    kept = [at for at, growth in enumerate(growths) if growth != 0]
    if not kept:
        return tuple(verdicts), UNMOVED if verdicts else ""
    words = []
    growth = growths[kept[0]] if len(kept) == 1 else None
    if growth:
        words.append(f"counter moved by {growth}")
    still = len(verdicts) - len(kept)
    if still:
        words.append(f"that of {still} other candidate{'s' * (still > 1)} did not move")
    return tuple(verdicts[at] for at in kept), "; ".join(words)
