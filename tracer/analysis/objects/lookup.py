"""The rule and its packet are put to everyone who may know, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.objects import calico, kube_proxy, kube_router, others
from tracer.analysis.objects.answer import Question, Surroundings, policy_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.analysis.objects.answer import RuleObject
    from tracer.analysis.ruleset.model import Chain, Packet, Rule, Ruleset
    from tracer.model import Node

_KNOWING = (kube_proxy.answer, kube_router.answer, calico.answer, others.answer)
"""The first that answers wins: the more particular stand first."""


class RuleObjects:
    """Objects behind the rules of one reading of a ruleset; keep it as long as that is valid."""

    def __init__(self, ruleset: Ruleset, node: Node | None = None) -> None:
        """`node` names pods, and Services and policies where its cluster is known."""
        self._around = Surroundings(ruleset, node)

    def of(
        self, rule: Rule, packet: Packet | None = None, path: Sequence[Rule] = ()
    ) -> RuleObject | None:
        """The object behind the rule that decided about `packet`; None if nobody knows it.

        `packet` is as it was at the rule, before any NAT there; without it, what only the packet
        tells (which element of a set) is missing. `path` are the rules that jumped to it, the
        base chain's first (`Verdict.path`).
        """
        question = Question(rule, packet, path, self._around)
        return next((found for knows in _KNOWING if (found := knows(question))), None)

    def of_policy(self, chain: Chain) -> RuleObject | None:
        """For a packet that no rule of a base chain accepted; None unless its policy is drop."""
        return policy_answer(chain)
