"""Packet filter rules that live for a block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace

TABLE = "tracer-tests"


@contextmanager
def nft(where: Namespace, family: str, hook: str, rule: str, priority: int = 0) -> Iterator[None]:
    """One nft base chain with one rule; `hook` may name a device ("ingress device eth0")."""
    chain = f"type filter hook {hook} priority {priority};"
    where.run(
        "nft", "-f", "-", stdin=f"table {family} {TABLE} {{ chain c {{ {chain} {rule}; }}; }}"
    )
    try:
        yield
    finally:
        where.run("nft", "delete", "table", family, TABLE)


def counted(where: Namespace, family: str) -> int:
    """Packets that the `counter` of the rule in our table has counted."""
    words = where.run("nft", "list", "table", family, TABLE).split()
    return int(words[words.index("packets") + 1])


@contextmanager
def iptables(where: Namespace, tool: str, *rule: str) -> Iterator[None]:
    """One rule at the top of a chain; `tool` is ip[6]tables-nft or ip[6]tables-legacy."""
    where.run(tool, "-w", "-I", *rule)
    try:
        yield
    finally:
        where.run(tool, "-w", "-D", *rule)
