"""Where ctnetlink has the fields of a `ct_layout.ENTRY` (linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.ct_layout import ENTRY, TUPLE, Has


@dataclass(frozen=True, slots=True)
class Place:
    """Where the value of one attribute goes in an `ENTRY`."""

    at: int
    """Byte of the record."""
    size: int
    """Most bytes that are copied."""
    has: int = 0
    """Bits of `Has` that its presence sets."""
    mapped: bool = False
    """An IPv4 address, behind the prefix of mapped ones."""


Path = tuple[int, ...]
"""Attribute types from the message inwards."""


def _place(name: str, has: int = 0) -> Place:
    dtype, offset = ENTRY.fields[name][:2]  # type: ignore[index]
    return Place(offset, dtype.itemsize, has)


def _tuple(name: str, outer: Path, has: int = 0) -> dict[Path, Place]:
    """Attributes below a CTA_TUPLE_*: addresses, protocol, ports or ICMP's fields, zone."""
    base = _place(name).at
    fields = {part: (base + TUPLE.fields[part][1]) for part in TUPLE.names or ()}  # type: ignore[index]
    saddr, daddr, sport, dport = (fields[part] for part in ("saddr", "daddr", "sport", "dport"))
    places = {
        (1, 1): Place(saddr + 12, 4, has, mapped=True),
        (1, 2): Place(daddr + 12, 4, has, mapped=True),
        (1, 3): Place(saddr, 16, has),
        (1, 4): Place(daddr, 16, has),
        (2, 1): Place(fields["protocol"], 1),
        (2, 2): Place(sport, 2),
        (2, 3): Place(dport, 2),
        (3,): Place(fields["zone"], 2),
    }
    for first in (4, 7):  # ICMP, ICMPv6: id, type, code
        places |= {
            (2, first): Place(fields["icmp_id"], 2),
            (2, first + 1): Place(sport + 1, 1),
            (2, first + 2): Place(dport + 1, 1),
        }
    return {outer + inner: place for inner, place in places.items()}


ENTRY_PLACES: dict[Path, Place] = {
    **_tuple("orig", (1,)),
    **_tuple("reply", (2,)),
    **_tuple("master", (14,), Has.MASTER),
    (3,): _place("status"),
    (4, 1, 1): _place("proto_state", Has.PROTO_STATE),  # TCP
    (4, 2, 1): _place("proto_state", Has.PROTO_STATE),  # DCCP
    (4, 3, 1): _place("proto_state", Has.PROTO_STATE),  # SCTP
    (5, 1): _place("helper"),
    (7,): _place("timeout_s", Has.TIMEOUT),
    (8,): _place("mark"),
    (9, 1): _place("orig_packets", Has.COUNTERS),
    (9, 2): _place("orig_bytes", Has.COUNTERS),
    (10, 1): _place("reply_packets", Has.COUNTERS),
    (10, 2): _place("reply_bytes", Has.COUNTERS),
    (12,): _place("id"),
    (18,): _place("zone"),
    (20, 1): _place("start_ns", Has.TIMES),
    (20, 2): _place("stop_ns", Has.TIMES),
    (22,): _place("labels"),
    (27,): _place("event_ns"),
}
"""CTA_*."""

EXPECT_PLACES: dict[Path, Place] = {
    **_tuple("master", (1,), Has.MASTER),
    **_tuple("orig", (2,)),
    **_tuple("reply", (3,)),
    (4,): _place("timeout_s", Has.TIMEOUT),
    (5,): _place("id"),
    (6,): _place("helper"),
    (7,): _place("zone"),
}
"""CTA_EXPECT_*."""
