"""Which flows are one connection: both directions of it, both sides of NAT, both pods' ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PRIMES = tuple(
    np.uint64(prime) for prime in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_HALF = np.uint64(32)


def ends(flow: np.ndarray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of who sent and who was to receive: (n,) each, of (n,) tuple of bpf/event.h."""
    return _end(flow, "saddr", "sport"), _end(flow, "daddr", "dport")


def _end(flow: np.ndarray, address: str, port: str) -> NDArray[np.uint64]:
    words = np.ascontiguousarray(flow[address]).view(np.uint64)
    return _mixed(_mixed(words[:, 0] ^ flow[port]) + words[:, 1])


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all (the finaliser of splitmix64, half of it)."""
    value = (value ^ value >> _HALF) * _PRIMES[1]
    value = (value ^ value >> _HALF) * _PRIMES[2]
    return np.asarray(value ^ value >> _HALF)


def handshakes_ns(keys: np.ndarray, syn_ns: np.ndarray) -> NDArray[np.uint64]:
    """(n,) nanoseconds from SYN to SYN-ACK, of the flow either way; 0: one of them is not there.

    `keys` is (n,) flow_key, each once; `syn_ns` the first segment with SYN of each, or 0.
    """
    found = np.zeros(len(keys), np.uint64)
    rows = np.flatnonzero(syn_ns)
    if not len(rows):
        return found
    source, destination = ends(keys["tuple"][rows])
    place = keys["netns"][rows].astype(np.uint64) << _HALF | keys["ifindex"][rows]
    pair = source + destination ^ place * _PRIMES[0]
    order = np.argsort(pair, kind="stable")
    one, other = order[:-1], order[1:]
    both = (pair[one] == pair[other]) & (source[one] == destination[other])
    both &= (place[one] == place[other]) & (
        keys["direction"][rows[one]] != keys["direction"][rows[other]]
    )
    one, other = rows[one[both]], rows[other[both]]
    first, second = syn_ns[one], syn_ns[other]
    found[one] = found[other] = np.maximum(first, second) - np.minimum(first, second)
    return found
