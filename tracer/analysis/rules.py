"""What a rule of explanation is; the rules themselves are in rules_*.py, the use in explain.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tracer.model import Record


@dataclass(frozen=True, slots=True)
class Rule:
    """One cause of drops. Texts are templates over the names of `explain.words`."""

    reason: str
    """Kernel name without `SKB_DROP_REASON_`; a trailing `*` stands for any ending."""
    sentence: str
    hint: str
    at: tuple[str, ...] = ()
    """Functions that free for this cause, trailing `*` as above; empty: any function."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Record field → values of which it must have one; `None` stands for its absence."""
    evidence: tuple[str, ...] = ()
    """Sysctls that prove or refute it, templates as well."""
    proof: Callable[[Record, Mapping[str, str]], bool] | None = None
    """Whether record and evidence bear it out; where not, a later rule is taken."""
