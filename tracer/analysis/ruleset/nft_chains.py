"""What `nft list chains` prints → the devices of base chains, which nft 1.0.6's JSON leaves out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.analysis.ruleset.model import Chain, Table

Place = tuple[str, str, str]
"""(family, table, chain)."""
_LINE = re.compile(
    r"^table (?P<family>\S+) (?P<table>\S+) \{"
    r"|^\tchain (?P<chain>\S+) \{"
    r"|^\t\ttype \S+ hook \S+ devices? (?P<devices>.*) priority ",
    re.MULTILINE,
)
_DEVICE = re.compile(r'"([^"]+)"')
_HOOKS = ("ingress", "egress")


def devices(text: str) -> dict[Place, tuple[str, ...]]:
    """Of each base chain that has devices, their names."""
    found: dict[Place, tuple[str, ...]] = {}
    family = table = chain = ""
    for line in _LINE.finditer(text):
        if line["table"]:
            family, table = line["family"], line["table"]
        elif line["chain"]:
            chain = line["chain"]
        else:
            found[family, table, chain] = tuple(_DEVICE.findall(line["devices"]))
    return found


def with_devices(table: Table, known: Mapping[Place, tuple[str, ...]]) -> Table:
    """The table, its base chains with the devices that are known."""
    chains = {
        name: _placed(chain, known[place])
        for name, chain in table.chains.items()
        if chain.base and chain.base.hook in _HOOKS and not chain.base.devices
        if (place := (table.family, table.name, name)) in known
    }
    return replace(table, chains={**table.chains, **chains}) if chains else table


def _placed(chain: Chain, names: tuple[str, ...]) -> Chain:
    return replace(chain, base=replace(chain.base, devices=names)) if chain.base else chain
