"""The flow maps' two generations: what one interval counted, whole and exactly once."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tracer.kernel.maps import Map
from tracer.layout import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracer.kernel.loader import Loaded

ETH_P_IP = 0x0800
IPPROTO_ICMP = 1


class Generations:
    """A pair of maps behind an outer one-slot map.

    Programs fill the map that the outer one names; `turn` and `pieces` name the other, and empty
    the first.
    """

    def __init__(self, loaded: Loaded, name: str, key: str, value: str) -> None:
        """`name` is the outer map; `name`_0 and `name`_1 the pair. Counting starts here."""
        structs = layout().structs
        info, fd = loaded.maps[name]
        self._outer = Map(info, fd, "<u4", "<u4")
        self._pair = [
            Map(*loaded.maps[f"{name}_{index}"], structs[key], structs[value]) for index in (0, 1)
        ]
        self._active = 0
        self._point()

    def _point(self) -> None:
        """Name the active map; on return no program uses the other any more.

        After a write to a map of maps the kernel waits for the programs that still run
        (maybe_wait_bpf_programs, 4.20: 1ae80cf31938).
        """
        fd = self._pair[self._active].fd
        self._outer.update(bytes(4), fd.to_bytes(4, sys.byteorder))

    def turn(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys, values per CPU) of everything counted since the last turn."""
        return _joined(self.pieces())

    def so_far(self) -> tuple[np.ndarray, np.ndarray]:
        """What was counted since the last turn; it stays, and the next turn tells it again."""
        return self._pair[self._active].read()

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same, as `Map.drain` gives it; the turn is now, all of them must be taken."""
        filled = self._pair[self._active]
        self._active = 1 - self._active
        self._point()
        return filled.drain()


def _joined(pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(keys, values) of pieces that overwrite each other."""
    keys, values = zip(*((keys.copy(), values.copy()) for keys, values in pieces), strict=True)
    return np.concatenate(keys), np.concatenate(values)


class FlowCounts:
    """Everything the flow plane counted: each CPU's cache, IPv4's map, and everyone else's."""

    def __init__(self, loaded: Loaded) -> None:
        """Counting starts here."""
        structs = layout().structs
        cache = Map(*loaded.maps["flow_cache"], "<u4", structs["flow_set"]).mapped()
        self._cpus = Map(*loaded.maps["flow_cpus"], "<u4", structs["flow_cpu"]).mapped()
        self._halves = cache["ways"].reshape(len(self._cpus), 2, -1)
        self.sample_rate = 1
        """From the next turn on one packet of so many is counted, for all of them."""
        self._generation = 0
        self._ipv4 = Generations(loaded, "flows4", "flow4_key", "flow_count")
        self._other = Generations(loaded, "flows", "flow_key", "flow_count")
        self._connections = Generations(
            loaded, "flow_connections", "flow_connection_key", "conntrack"
        )
        self._entries: list[np.ndarray] = []
        self._transits = Generations(loaded, "flow_transits", "flow_key", "flow_transit")

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pieces of (keys (n,) flow_key, counts (n,) flow_count) since the last call.

        One row is what one CPU counted in one place: a flow may have several. All must be taken.
        """
        filled = self._generation & 1
        # First: with a new generation all connections are told again, and none to the old map.
        entries = self._connections.pieces()
        self._generation += 1
        self._cpus["sample_rate"] = self.sample_rate
        self._cpus["skip"] = _first_skips(self.sample_rate, len(self._cpus))
        self._cpus["generation"] = self._generation & 0xFFFFFFFF
        # Programs that still use the old half are waited for when the maps turn; what these push
        # out of it meanwhile goes into the maps that are read now or next.
        ipv4, other = self._ipv4.pieces(), self._other.pieces()
        # Some that were counted before the maps turned were told by then to the new one only.
        self._entries += [_joined(entries)[1], self.connections_so_far()]
        return chain(
            (_widened(*_rows(*piece)) for piece in ipv4),
            (_rows(*piece) for piece in other),
            [_widened(*self._empty_half(filled))],
        )

    def turn_details(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(conntrack entries (m,), keys (t,) flow_key and values (t,) flow_transit) of `pieces`."""
        entries, self._entries = np.concatenate(self._entries), []
        return entries, *self._transits.turn()

    def connections_so_far(self) -> np.ndarray:
        """Conntrack entries (m,) that came since `pieces`, which will tell them again."""
        return self._connections.so_far()[1]

    def _empty_half(self, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Read and clear one generation of the cache."""
        cached = self._halves[:, half]
        used = cached["count"]["packets"] > 0
        flows = cached[used]
        cached[used] = 0
        return flows["key"], flows["count"]


def _first_skips(rate: int, cpus: int) -> np.ndarray:
    """(cpus,): how many packets pass before the first that is counted.

    As if the sampling had gone on for ever: what is left at any moment of a gap of 1 to
    2 `rate` - 1 packets, all of them as likely (bpf/flow_look.bpf.h).
    """
    longest = 2 * rate - 1
    return (longest * (1 - np.sqrt(np.random.default_rng().random(cpus)))).astype(np.uint32)


def _rows(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and counts (n,) of those that counted anything, whichever CPU did."""
    used = (counts["packets"] > 0) | (counts["retransmits"] > 0)
    keys, counts = keys[used], counts[used]
    keys["cpu"] = 0
    return keys, counts


def _widened(keys4: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """flow4_key → flow_key, with IPv4-mapped addresses; `counts` as they are."""
    keys = np.zeros(len(keys4), layout().structs["flow_key"])
    for name in ("netns", "ifindex", "direction"):
        keys[name] = keys4[name]
    flow = keys["tuple"]
    flow["ethertype"] = ETH_P_IP
    for name in ("sport", "dport", "protocol"):
        flow[name] = keys4[name]
    icmp = keys4["protocol"] == IPPROTO_ICMP
    flow["sport"][icmp], flow["dport"][icmp] = np.divmod(keys4["sport"][icmp], 256)
    for name in ("saddr", "daddr"):
        flow[name][:, 10:12] = 0xFF
        flow[name][:, 12:] = keys4[name]
    return keys, counts
