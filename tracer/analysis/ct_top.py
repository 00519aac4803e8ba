"""Who fills the conntrack tables: entries counted by opener, by destination, by state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.analysis.addresses import address_text
from tracer.analysis.conntrack import protocol_state
from tracer.analysis.ct_records import space_fields
from tracer.analysis.names import pod_at, pod_fields, service_fields
from tracer.analysis.packet import transport
from tracer.ct_layout import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from tracer.model import Node, Record

_ICMP = (1, 58)
Codes = "Counter[tuple[int, int, int]]"


@dataclass(slots=True)
class Census:
    """Counts of the entries of one namespace."""

    netns: int
    openers: Counter[tuple[bytes, tuple[int, int, int]]] = field(default_factory=Counter)
    """(address, (protocol, its state, status bits)) → entries."""
    goals: Counter[tuple[bytes, int, int]] = field(default_factory=Counter)
    """(address before NAT, protocol, port) → entries."""

    @property
    def entries(self) -> int:
        """How many were counted."""
        return self.goals.total()

    def count(self, rows: NDArray[np.void]) -> None:
        """Add (n,) ENTRY."""
        protocols = rows["orig"]["protocol"]
        kept = rows["status"] & (Status.SEEN_REPLY | Status.ASSURED)
        codes = zip(protocols.tolist(), rows["proto_state"].tolist(), kept.tolist(), strict=True)
        ports = np.where(np.isin(protocols, _ICMP), 0, rows["orig"]["dport"])
        self.openers.update(zip(_addresses(rows, "saddr"), codes, strict=True))
        goals = (_addresses(rows, "daddr"), protocols.tolist(), ports.tolist())
        self.goals.update(zip(*goals, strict=True))


def _addresses(rows: NDArray[np.void], end: str) -> list[bytes]:
    return np.ascontiguousarray(rows["orig"][end]).view("V16").ravel().tolist()  # type: ignore[no-any-return]


def top_records(
    node: Node, census: Iterable[Census], limits: Mapping[int, tuple[int, int]], most: int
) -> list[Record]:
    """Tables, fullest first; then openers and destinations over all of them, at most `most` each.

    `limits`: netns → entries by the kernel's own count, and the most that there may be.
    """
    tables, openers, goals = [], [], []
    for one in census:
        tables.append(_table(node, one, *limits.get(one.netns, (one.entries, 0))))
        openers += _openers(node, one)
        goals += _goals(node, one)
    tables.sort(key=_entries)
    return [*tables, *sorted(openers, key=_entries)[:most], *sorted(goals, key=_entries)[:most]]


def _entries(record: Record) -> int:
    return -int(record["entries"])


def _table(node: Node, census: Census, entries: int, limit: int) -> Record:
    states: Counter[str] = Counter()
    for (_, code), count in census.openers.items():
        states[_state(code)] += count
    record: Record = {"type": "table", **space_fields(node, census.netns), "entries": entries}
    if limit:
        record |= {"conntrack.max": limit, "used": round(entries / limit, 4)}
    return record | {"states": dict(states.most_common())}


def _openers(node: Node, census: Census) -> list[Record]:
    """By pod, and by address where that is no pod's."""
    found: dict[str, Record] = {}
    for (raw, code), count in census.openers.items():
        address = address_text(raw)
        uid = node.pod_by_address.get(address, "")
        record = found.get(uid or address)
        if record is None:
            who = pod_fields("src", node.pods.get(uid)) or {"src.address": address}
            place = space_fields(node, census.netns)
            record = {"type": "top", "top": "opener", **place, **who, "entries": 0, "states": {}}
            found[uid or address] = record
        record["entries"] += count
        states: dict[str, int] = record["states"]
        states[_state(code)] = states.get(_state(code), 0) + count
    for record in found.values():
        record["share"] = round(record["entries"] / max(1, census.entries), 4)
        record["states"] = dict(sorted(record["states"].items(), key=lambda item: -item[1]))
    return list(found.values())


def _goals(node: Node, census: Census) -> list[Record]:
    """By the address and port that was asked for, before NAT."""
    records = []
    for (raw, protocol, port), count in census.goals.items():
        address = address_text(raw)
        what: dict[str, Any] = {"dst.address": address, "transport": transport(protocol)}
        records.append(
            {
                "type": "top",
                "top": "destination",
                **space_fields(node, census.netns),
                **what,
                **({"dst.port": port} if port else {}),
                **pod_fields("dst", pod_at(node, address)),
                **service_fields(node, what | {"dst.port": port}),
                "entries": count,
                "share": round(count / max(1, census.entries), 4),
            }
        )
    return records


def _state(code: tuple[int, int, int]) -> str:
    """`tcp ESTABLISHED`, `udp unreplied`, `udp assured`, `udp`."""
    protocol, state, status = code
    words = [transport(protocol), *protocol_state(protocol, state).values()]
    if not status & Status.SEEN_REPLY:
        words.append("unreplied")
    elif status & Status.ASSURED and len(words) == 1:
        words.append("assured")
    return " ".join(words)
