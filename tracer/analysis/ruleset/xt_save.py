"""What `iptables-save -c` and `ip6tables-save -c` print → tables.

Rules keep their line: `steps` makes sense of one when it is met.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from tracer.analysis.ruleset.model import XT_NFT, Base, Body, Chain, Rule, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracer.analysis.ruleset.nft_json import Outline

_SECTION = re.compile(r"^\*(\S+)\n(.*?)^COMMIT$", re.MULTILINE | re.DOTALL)
_CHAIN = re.compile(r"^:(\S+) (\S+)(?: \[(\d+):(\d+)\])?$", re.MULTILINE)
_RULE = re.compile(r"^(?:\[(\d+):(\d+)\] )?(-A (\S+).*)$", re.MULTILINE)
_COMMENT = re.compile(r'--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))')
_ESCAPED = re.compile(r"\\(.)")

_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
_SRC_NAT = 100
"""NF_IP_PRI_NAT_SRC, of the nat table's chains POSTROUTING and INPUT."""


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(table, all its lines) of each table, in the order printed."""
    return (found.groups() for found in _SECTION.finditer(text))  # type: ignore[misc]


def table(
    family: str, name: str, text: str, known: Mapping[str, Body], nft: Outline | None, backend: str
) -> Table:
    """One section as a table; `known` are bodies read before, by their line.

    `nft` is the same table as nft shows it, where iptables-nft keeps it: from there are the
    handles and hooks. Rules of a chain that has another number of rules there get handle 0.
    """
    found = [_rule_parts(parts, known) for parts in _RULE.findall(text)]
    counts = Counter(chain for chain, *_ in found)
    handles = {
        chain: iter(nft.rules[chain])
        for chain, count in counts.items()
        if nft and len(nft.rules.get(chain, ())) == count
    }
    rules: dict[str, list[Rule]] = {chain: [] for chain in counts}
    for chain, body, packets, size in found:
        listed = rules[chain]
        handle = next(handles[chain]) if chain in handles else 0
        place = family, name, chain, len(listed), handle
        listed.append(Rule(*place, body, packets, size, backend))
    chains = {
        words[0]: _chain(family, name, words, rules.get(words[0], ()), nft, backend)
        for words in _CHAIN.findall(text)
        # iptables-nft-save shows a builtin chain also where the kernel has none yet.
        if nft is None or words[0] in nft.chains
    }
    return Table(family, name, nft.handle if nft else 0, backend, chains)


def unjoined(table: Table) -> list[str]:
    """Chains whose rules have no handles although nf_tables keeps them."""
    first = ((chain.name, chain.rules[0]) for chain in table.chains.values() if chain.rules)
    return [name for name, rule in first if rule.backend == XT_NFT and not rule.handle]


def bodies(table: Table) -> dict[str, Body]:
    """Bodies of a table's rules by line."""
    rules = (rule for chain in table.chains.values() for rule in chain.rules)
    return {str(rule.body.source): rule.body for rule in rules}


def _rule_parts(
    parts: Sequence[str], known: Mapping[str, Body]
) -> tuple[str, Body, int | None, int | None]:
    packets, size, line, chain = parts
    body = known.get(line) or Body(line, _comment(line))
    return (chain, body, int(packets), int(size)) if packets else (chain, body, None, None)


def _comment(line: str) -> str:
    found = _COMMENT.search(line)
    if found is None:
        return ""
    quoted, bare = found.groups()
    return bare or _ESCAPED.sub(r"\1", quoted)


def _chain(
    family: str,
    table: str,
    words: Sequence[str],
    rules: Sequence[Rule],
    nft: Outline | None,
    backend: str,
) -> Chain:
    name, policy, packets, size = words
    seen = nft.chains.get(name) if nft else None
    base = seen.base if seen else None
    if base is None and policy != "-":
        source_nat = table == "nat" and name in {"POSTROUTING", "INPUT"}
        priority = _SRC_NAT if source_nat else _PRIORITIES.get(table, 0)
        kind = "nat" if table == "nat" else "filter"
        base = Base(kind, name.lower(), priority, policy.lower())
    counts = (int(packets), int(size)) if packets and policy != "-" else (None, None)
    handle = seen.handle if seen else 0
    return Chain(family, table, name, tuple(rules), base, handle, backend, *counts)
