"""Which flows are one connection: both directions of it, both sides of NAT, both pods' ends.

Keys are compared by 64-bit hashes: of a million flows two are taken for one about once in ten
million intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.flows import grouped, numbered, place_codes
from tracer.layout import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

Hashes = np.ndarray
Rows = np.ndarray
_EGRESS = 1
_ICMP = (1, 58)
_PRIMES = tuple(
    np.uint64(prime) for prime in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_HALF = np.uint64(32)
_EXACT_BITS = 53
"""Of a number that JSON's readers keep (RFC 8259 6)."""


@dataclass(frozen=True, slots=True)
class Details:
    """What the kernel told of flows besides counts, as it came: newest last."""

    entries: np.ndarray
    """(m,) conntrack of bpf/event.h: connections that crossed the node."""
    transit_keys: np.ndarray
    """(t,) flow_key: the receiver's ingress."""
    transits: np.ndarray
    """(t,) flow_transit."""


@dataclass(frozen=True, slots=True)
class Linked:
    """What belongs to each of n flows."""

    flow_id: Hashes
    """(n,): of its connection; the same for both directions, at both ends, before and after NAT;
    0 where its entry is not known."""
    entry: Rows
    """(n,): its index in `Details.entries`, or -1."""
    reply: NDArray[np.bool_]
    """(n,): whether it goes against the direction in which the connection was opened."""
    handshake_ns: Rows
    """(n,): see `handshakes_ns`."""
    transit: Rows
    """(n,): index in `transits`, or -1."""
    transits: np.ndarray
    """(u,) flow_transit, one a flow."""

    def at(self, rows: Rows) -> Linked:
        """The same of some flows."""
        return Linked(
            self.flow_id[rows],
            self.entry[rows],
            self.reply[rows],
            self.handshake_ns[rows],
            self.transit[rows],
            self.transits,
        )


def no_details() -> Details:
    """Nothing told."""
    structs = layout().structs
    return Details(
        *(np.zeros(0, structs[name]) for name in ("conntrack", "flow_key", "flow_transit"))
    )


def added(held: Details, new: Details) -> Details:
    """Both; what `new` tells wins. Mostly nothing is held: then there is nothing to copy."""
    return Details(
        _behind(held.entries, new.entries),
        _behind(held.transit_keys, new.transit_keys),
        _behind(held.transits, new.transits),
    )


def _behind(held: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.concatenate((held, new)) if len(held) else new


def wanted_by(details: Details, keys: np.ndarray) -> Details:
    """Those that flows `keys` (n,) flow_key will need, wherever these are moved."""
    entry, _ = _find_entries(keys, details.entries)
    waiting = last_of(_codes(keys), _codes(details.transit_keys)) >= 0
    entries = details.entries[np.unique(entry[entry >= 0])]
    kept = details.transit_keys[waiting]
    order, starts = grouped(kept)
    transits = details.transits[waiting][order]
    number = numbered(starts, len(order))
    return Details(entries, kept[order[starts]], _summed(transits, number, len(starts)))


def link(keys: np.ndarray, syn_ns: np.ndarray, details: Details) -> Linked:
    """What belongs to (n,) flow_key, each once; `syn_ns` as `handshakes_ns` takes it."""
    entry, reply = _find_entries(keys, details.entries)
    transit, transits = _sum_transits(keys, details)
    flow_id = _flow_ids(details.entries)[entry]
    return Linked(flow_id, entry, reply, handshakes_ns(keys, syn_ns), transit, transits)


def link_dead(flow: np.ndarray, sent: NDArray[np.bool_], entries: np.ndarray) -> Linked:
    """What belongs to what died of (n,) tuple: its entry, of (m,) conntrack.

    Where `sent` (n,) the tuple is as its sender wrote it, elsewhere as the pod gets it.
    """
    entry, reply = _find(flow, sent, ~sent, entries)
    untimed = np.zeros(len(flow), np.uint64), np.full(len(flow), -1), no_details().transits
    return Linked(_flow_ids(entries)[entry], entry, reply, *untimed)


def hashed_ends(flow: np.ndarray) -> tuple[Hashes, Hashes]:
    """Hashes of who sent and who was to receive: (n,) each, of (n,) tuple of bpf/event.h.

    ICMP's type and code, which are no part of either, do not count.
    """
    has_ports = ~np.isin(flow["protocol"], _ICMP)
    source = hashed_end(flow["saddr"], np.where(has_ports, flow["sport"], 0))
    return source, hashed_end(flow["daddr"], np.where(has_ports, flow["dport"], 0))


def hashed_end(address: np.ndarray, port: np.ndarray) -> Hashes:
    """Hashes of (n, 16) addresses with (n,) ports; without any these are 0."""
    words = np.ascontiguousarray(address).view(np.uint64)
    return mixed(mixed(words[:, 0] ^ port.astype(np.uint64)) + words[:, 1])


def mixed(value: Hashes) -> Hashes:
    """Spread every bit over all (as splitmix64 does)."""
    value = (value ^ value >> _HALF) * _PRIMES[1]
    value = (value ^ value >> _HALF) * _PRIMES[2]
    return np.asarray(value ^ value >> _HALF)


def hashed_way(source: Hashes, destination: Hashes, protocol: np.ndarray) -> Hashes:
    """One hash of a flow in this direction."""
    return np.asarray(source * _PRIMES[0] + destination + protocol)


def _codes(keys: np.ndarray) -> Hashes:
    """One hash of each of (n,) flow_key, without the place."""
    flow = keys["tuple"]
    kind = flow["ethertype"].astype(np.uint64) << _HALF | flow["protocol"]
    direction = keys["direction"].astype(np.uint64)
    return np.asarray(hashed_way(*hashed_ends(flow), kind) ^ direction * _PRIMES[2])


def last_of(known: Hashes, wanted: Hashes) -> Rows:
    """(n,) index of the last of `known` that equals each of `wanted`; -1 where none does."""
    if not len(known):
        return np.full(len(wanted), -1)
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known[order], wanted, side="right") - 1
    return np.where((at >= 0) & (known[order[at]] == wanted), order[at], -1)


def _find_entries(keys: np.ndarray, entries: np.ndarray) -> tuple[Rows, NDArray[np.bool_]]:
    """(n,) index of each flow's conntrack entry, or -1, and whether it is a reply."""
    direction = keys["direction"]
    return _find(keys["tuple"], direction == _EGRESS, direction > _EGRESS, entries)


def _find(
    flow: np.ndarray, sent: NDArray[np.bool_], got: NDArray[np.bool_], entries: np.ndarray
) -> tuple[Rows, NDArray[np.bool_]]:
    """The same of (n,) tuple.

    What a pod sends looks like one of the entry's two tuples, for each is as its sender wrote it;
    what it gets looks like the other one, turned round.
    """
    found, reply = np.full(len(flow), -1), np.zeros(len(flow), bool)
    if not len(entries):
        return found, reply
    ends = hashed_ends(flow)
    protocol = entries["orig"]["protocol"]
    sides = [hashed_ends(entries[name]) for name in ("orig", "reply")]
    as_sent = [hashed_way(*side, protocol) for side in sides]
    as_got = [hashed_way(*side[::-1], protocol) for side in sides[::-1]]
    for forms, rows in ((as_sent, np.flatnonzero(sent)), (as_got, np.flatnonzero(got))):
        wanted = hashed_way(ends[0][rows], ends[1][rows], flow["protocol"][rows])
        at = last_of(np.concatenate(forms), wanted)
        found[rows] = np.where(at >= 0, at % len(entries), -1)
        reply[rows] = at >= len(entries)
    return found, reply


def _flow_ids(entries: np.ndarray) -> Hashes:
    """(m + 1,): from the connection as its opener wrote it, and its zone; the last is 0."""
    source, destination = hashed_ends(entries["orig"])
    kind = entries["orig"]["protocol"] + entries["zone"].astype(np.uint64) * np.uint64(256)
    whole = mixed(hashed_way(source, destination, kind))
    return np.append(whole >> np.uint64(64 - _EXACT_BITS) | np.uint64(1), np.uint64(0))


def _sum_transits(keys: np.ndarray, details: Details) -> tuple[Rows, np.ndarray]:
    """(n,) index of each flow's transits, or -1, and (u,) those, summed."""
    index = np.full(len(keys), -1)
    if not len(details.transits):
        return index, details.transits
    codes = [mixed(_codes(some)) ^ place_codes(some) for some in (keys, details.transit_keys)]
    row = last_of(*codes)
    rows, number = np.unique(row[row >= 0], return_inverse=True)
    index[rows] = np.arange(len(rows))
    return index, _summed(details.transits[row >= 0], number, len(rows))


def _summed(transits: np.ndarray, number: Rows, count: int) -> np.ndarray:
    """(count,) flow_transit of (t,), by the number of each."""
    sums = np.zeros(count, transits.dtype)
    for name in ("sum_ns", "buckets"):
        np.add.at(sums[name], number.ravel(), transits[name])
    np.maximum.at(sums["max_ns"], number.ravel(), transits["max_ns"])
    return sums


def pair_codes(keys: np.ndarray) -> Hashes:
    """(n,) of (n,) flow_key: the same for both directions at one place, before or after NAT."""
    return _pair_codes(keys, *hashed_ends(keys["tuple"]))


def _pair_codes(keys: np.ndarray, source: Hashes, destination: Hashes) -> Hashes:
    return np.asarray(source + destination ^ place_codes(keys) * _PRIMES[0])


def handshakes_ns(keys: np.ndarray, syn_ns: np.ndarray) -> Rows:
    """(n,) nanoseconds from SYN to SYN-ACK, of the flow either way; 0: one of them is not there.

    `keys` is (n,) flow_key, each once; `syn_ns` the first segment with SYN of each, or 0.
    """
    found = np.zeros(len(keys), np.uint64)
    rows = np.flatnonzero(syn_ns)
    if not len(rows):
        return found
    source, destination = hashed_ends(keys["tuple"][rows])
    pair = _pair_codes(keys[rows], source, destination)
    order = np.argsort(pair, kind="stable")
    one, other = order[:-1], order[1:]
    both = (pair[one] == pair[other]) & (source[one] == destination[other])
    both &= keys["direction"][rows[one]] != keys["direction"][rows[other]]
    one, other = rows[one[both]], rows[other[both]]
    first, second = syn_ns[one], syn_ns[other]
    found[one] = found[other] = np.maximum(first, second) - np.minimum(first, second)
    return found
