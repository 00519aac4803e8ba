"""A rule → its steps, worked out when the rule is first met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.ruleset import nft_steps, xt_steps

if TYPE_CHECKING:
    from tracer.analysis.ruleset.model import Rule
    from tracer.analysis.ruleset.steps import Step


def steps(rule: Rule) -> tuple[Step, ...]:
    """What the rule does, step by step; remembered with its body."""
    memo = rule.body.memo
    if "steps" not in memo:
        source = rule.body.source
        memo["steps"] = (
            xt_steps.steps(source, rule.family)
            if isinstance(source, str)
            else nft_steps.steps(source)
        )
    found: tuple[Step, ...] = memo["steps"]
    return found
