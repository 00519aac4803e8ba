"""What a rule does, step by step, whichever tool wrote it.

A step is a test (`Match`, `Either`, `Merged`, `Unknowable`) or an action (`Assign`, `Take`,
`TakeMapped`, `Translate`). The kernel goes through them in order, and a test that says no
ends the rule. What changes neither packet nor verdict (counters, logs) is no step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Scalar = int | str

# Expressions: what yields a value


@dataclass(frozen=True, slots=True)
class Field:
    """Something of the packet, by nftables' name: `ip saddr`, `meta mark`, `ct state`."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that the rule brings."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class Binary:
    """`left OP right`, OP one of & | ^ << >>."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Concat:
    """Several values as one."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a map holds for a key."""

    key: Expression
    data: Elements


@dataclass(frozen=True, slots=True)
class Nowhere:
    """What nothing but the kernel at that moment knows: random numbers, sockets, time."""

    text: str
    low: int = 0
    count: int = 0
    """It is one of so many numbers from `low` on; 0: it may be anything."""


Expression = Field | Constant | Binary | Concat | Lookup | Nowhere

# Elements: what a value may be


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, both included; equal for a single value."""

    low: Scalar
    high: Scalar


@dataclass(frozen=True, slots=True)
class Wildcard:
    """Every name that begins so: `eth*`, in iptables `eth+`."""

    prefix: str


Part = Interval | Wildcard


@dataclass(frozen=True, slots=True)
class Listed:
    """Elements that the rule itself brings: each one part per value, and what it maps to."""

    elements: tuple[tuple[tuple[Part, ...], Any], ...]
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Named:
    """A set or map of the table, or an ipset."""

    name: str
    ipset: bool = False


Elements = Listed | Named

# Steps


@dataclass(frozen=True, slots=True)
class Match:
    """Whether what `key` yields is what `goal` says."""

    key: Expression
    goal: Elements | Expression
    operator: str = "in"
    """`in`: one of the elements. `bits`: any bit of the goal is set. `<` `>` `<=` `>=`."""
    negated: bool = False
    text: str = field(default="", compare=False)
    """As the user reads it in the rule."""


@dataclass(frozen=True, slots=True)
class Either:
    """Whether one of several matches says yes; iptables' `--ports`, `--ctstate NEW,DNAT`."""

    matches: tuple[Match, ...]
    negated: bool = False
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Merged:
    """`!=` of two neighbouring fields: `udp sport != 80 udp dport != 53`.

    Some nft (1.0.6 for one) make one comparison of the two when they load such a rule, so
    that either suffices, and list it like two. Where only one says yes it is not known.
    """

    matches: tuple[Match, Match]
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Unknowable:
    """A match that nobody can repeat: random, limits, recent, sockets, payload."""

    text: str


@dataclass(frozen=True, slots=True)
class Assign:
    """The field gets a value."""

    field: str
    value: Expression
    lenient: bool = False
    """Where the packet has no such value nothing changes, and the rule goes on: iptables'
    CONNMARK. In nftables the rule ends there."""


@dataclass(frozen=True, slots=True)
class Take:
    """A verdict.

    One of `accept`, `drop`, `reject`, `queue`, `stolen`, `return`, `continue`, `jump`, `goto`,
    or `unknown`: what an extension decides that is not modelled.
    """

    verdict: str
    target: str = ""
    """Chain of a jump or goto; the extension's text of an unknown one."""


@dataclass(frozen=True, slots=True)
class TakeMapped:
    """The verdict that a map holds for a key, if it holds one."""

    key: Expression
    data: Elements
    text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Translate:
    """NAT, and accept: the packet goes on with another address."""

    kind: str
    """`dnat`, `snat`, `masquerade`, `redirect`."""
    address: Expression | None = None
    """None: not changed, or for masquerade and redirect the kernel's choice."""
    port: Expression | None = None


Test = Match | Either | Merged | Unknowable
Step = Test | Assign | Take | TakeMapped | Translate


def exactly(*values: Scalar) -> Listed:
    """Elements that are these values."""
    return Listed(tuple(((Interval(value, value),), None) for value in values))


def within(*parts: Part) -> Listed:
    """Elements that are these intervals or wildcards."""
    return Listed(tuple(((part,), None) for part in parts))


def matches(steps: Sequence[Step]) -> tuple[Test, ...]:
    """Of a rule's steps those that test."""
    return tuple(step for step in steps if isinstance(step, Test))
