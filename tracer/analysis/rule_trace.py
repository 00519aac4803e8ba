"""What the kernel's trace told of a packet in one base chain → an `End` of the ruleset's terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.ruleset.model import Body, Chain, End, Passed, Rule, Ruleset, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

_DECIDED = ("accept", "drop", "queue", "stolen")


def knows(
    ruleset: Ruleset, place: tuple[str, str, str], steps: Sequence[tuple[str, int, str]]
) -> bool:
    """Whether the ruleset has the base chain and the last rule of a visit, by their handles."""
    family, name, base = place
    table = ruleset.tables.get((family, name, False))
    if table is None or base not in table.chains:
        return False
    return not steps or _rule(table, *steps[-1][:2]).index >= 0


def traced_end(
    ruleset: Ruleset,
    place: tuple[str, str, str],
    steps: Sequence[tuple[str, int, str]],
    verdict: str,
    *,
    by_policy: bool,
) -> End:
    """One base chain's visit.

    `place` is (family, table, base chain); `steps` are (chain, handle, verdict). A rule that is
    not in `ruleset` any more, or not yet, keeps its place and handle, without text.
    """
    family, name, base_name = place
    table = ruleset.tables.get((family, name, False)) or Table(family, name)
    base = table.chains.get(base_name) or Chain(family, name, base_name)
    walk = tuple(Passed(_rule(table, *step[:2]), step[2]) for step in steps)
    if by_policy or not walk or walk[-1].verdict.partition(" ")[0] not in _DECIDED:
        return End(base, verdict, None, walk)
    last = walk[-1].rule
    return End(base, "reject" if verdict == "drop" and rejects(last) else verdict, last, walk)


def rejects(rule: Rule) -> bool:
    """Whether a rule answers what it drops; to the kernel's trace that is a drop."""
    words = f" {rule.text} "
    return " -j REJECT " in words or " reject " in words


def _rule(table: Table, chain_name: str, handle: int) -> Rule:
    chain = table.chains.get(chain_name)
    known = (rule for rule in (chain.rules if chain else ()) if rule.handle == handle)
    return next(known, Rule(table.family, table.name, chain_name, -1, handle, Body("")))
