"""What the tools print of a namespace's rules → a `Ruleset`, and again, and again.

A `Reader` remembers what it read: a table whose text is the same is not read again, and of
one that changed only rules that are new are.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

from tracer.analysis.ruleset import ipset_save, nft_chains, nft_json, xt_save
from tracer.analysis.ruleset.compile import steps as steps_of
from tracer.analysis.ruleset.model import XT_LEGACY, XT_NFT, Ruleset, Table, TableKey
from tracer.analysis.ruleset.steps import Take, TakeMapped, Translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Place = tuple[str, str]
"""(family, table)."""
_DECIDES = frozenset({"drop", "reject", "queue", "stolen", "unknown"})
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Texts:
    """What the tools printed, in one network namespace; empty for what there is not."""

    nft: bytes = b""
    """`nft -a -j list ruleset`."""
    iptables: str = ""
    """`iptables-nft-save -c` (iptables-save, where it says `(nf_tables)`)."""
    ip6tables: str = ""
    iptables_legacy: str = ""
    """`iptables-legacy-save -c`."""
    ip6tables_legacy: str = ""
    ipset: str = ""
    """`ipset save`."""
    chains: str = ""
    """`nft list chains`, where chains have devices."""


class Reader:
    """Reads one namespace's rules time after time. Does no I/O."""

    def __init__(self) -> None:
        self._tables: dict[TableKey, Table] = {}
        self._made: dict[bytes, object] = {}
        """By the digest of the text that it was made from: of the last reading only."""
        self._making: dict[bytes, object] = {}

    def read(self, texts: Texts) -> Ruleset:
        """All tables; TracerError where a text is not what its tool prints."""
        with _no_collection():
            return self._read(texts)

    def _read(self, texts: Texts) -> Ruleset:
        self._making = {}
        sections = {nft_json.place(section): section for section in nft_json.sections(texts.nft)}
        tables = {table.key: table for table in self._xt_tables(texts, sections)}
        for (family, name), section in sections.items():
            if (family, name, False) not in tables:
                make = partial(self._nft_table, (family, name), section)
                table = self._once((b"nft", section), make)
                tables[table.key] = table
        placed = nft_chains.devices(texts.chains)
        tables = {key: nft_chains.with_devices(one, placed) for key, one in tables.items()}
        text = texts.ipset
        sets = self._once((b"ipset", text.encode()), lambda: ipset_save.sets(text))
        self._tables, self._made = tables, self._making
        broken = nft_json.breaks_off(texts.nft)
        warnings = [*_torn(tables, nft_was_read=bool(texts.nft)), *_maybe_dormant(tables)]
        if broken:
            warnings.append("nft: its listing breaks off: tables that come later are not known")
        return Ruleset(tables, sets, tuple(warnings), incomplete=broken)

    def _xt_tables(self, texts: Texts, nft: Mapping[Place, bytes]) -> Iterator[Table]:
        for backend, family, text in (
            (XT_NFT, "ip", texts.iptables),
            (XT_NFT, "ip6", texts.ip6tables),
            (XT_LEGACY, "ip", texts.iptables_legacy),
            (XT_LEGACY, "ip6", texts.ip6tables_legacy),
        ):
            for name, lines in xt_save.sections(text):
                section = nft.get((family, name), b"") if backend == XT_NFT else b""
                origin = f"{backend} {family} {name}".encode(), lines.encode(), section
                make = partial(self._xt_table, (family, name), lines, section, backend)
                yield self._once(origin, make)

    def _xt_table(self, place: Place, lines: str, section: bytes, backend: str) -> Table:
        outline = None
        if section:
            make = partial(nft_json.outline, section)
            outline = self._once((b"outline", section), make)
        known = self._tables.get((*place, backend == XT_LEGACY))
        bodies = xt_save.bodies(known) if known else {}
        return xt_save.table(*place, lines, bodies, outline, backend)

    def _nft_table(self, place: Place, section: bytes) -> Table:
        known = self._tables.get((*place, False))
        return nft_json.table(section, known)

    def _once(self, origin: Sequence[bytes], make: Callable[[], _Made]) -> _Made:
        """What `make` makes of this text, or made of it at the last reading."""
        digest = blake2b(digest_size=16)
        for part in origin:
            digest.update(b"%d " % len(part))
            digest.update(part)
        key = digest.digest()
        made = self._made.get(key)
        self._making[key] = made = make() if made is None else made
        return made  # type: ignore[return-value] # the first part tells kinds apart


@contextmanager
def _no_collection() -> Iterator[None]:
    """A reading makes many objects and no garbage: to look for some doubles what it costs."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _torn(tables: Mapping[TableKey, Table], *, nft_was_read: bool) -> Iterator[str]:
    """Warnings of iptables-nft tables whose two readings are not of one moment."""
    for table in tables.values():
        chains = xt_save.unjoined(table)
        if chains and nft_was_read:
            listed = ", ".join(chains[:3]) + (", …" if len(chains) > 3 else "")  # noqa: PLR2004
            yield (
                f"{table.family} {table.name}: rules changed while they were read: no handles "
                f"in {listed}"
            )
        elif chains:
            yield f"{table.family} {table.name}: nft was not read: its rules have no handles"


def _maybe_dormant(tables: Mapping[TableKey, Table]) -> Iterator[str]:
    """Warnings of tables of which nft did not tell whether they are hooked in, if it matters."""
    for table in tables.values():
        if nft_json.UNREADABLE in table.flags and _may_decide(table):
            yield (
                f"{table.family} {table.name}: nft prints its flags wrongly: it is taken as hooked "
                "in, which it is not if it is dormant"
            )


def _may_decide(table: Table) -> bool:
    """Whether anything in it may do something to a packet but let it pass."""
    chains = table.chains.values()
    if any(chain.base and chain.base.policy != "accept" for chain in chains):
        return True
    steps = (step for chain in chains for rule in chain.rules for step in steps_of(rule))
    return any(
        isinstance(step, TakeMapped | Translate)
        or (isinstance(step, Take) and step.verdict in _DECIDES)
        for step in steps
    )
