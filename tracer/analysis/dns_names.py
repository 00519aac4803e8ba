"""Which names led each pod to an address: what name servers told it, kept within bounds.

A name holds for the TTL it was told with, at least `FLOOR_S`: programs keep what they looked up.
While packets go to and fro it goes on to hold, however long a connection lasts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.flow_table import Column, coded
from tracer.wall_time import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tracer.analysis.dns import Answer

FLOOR_S = 60
MOST_ADDRESSES = 32768
MOST_BYTES = 16 << 20
NAMES_PER_ADDRESS = 8
ADDRESS_BYTES, NAME_BYTES = 400, 300
"""What Python takes for an entry and for a name of it, besides the name's letters."""
PART = 16
"""Of the entries of the pod that has the most, one in so many makes room."""


@dataclass(slots=True)
class Lease:
    """How long a name leads to an address; CLOCK_BOOTTIME."""

    since_ns: int
    until_ns: int


class DnsNames:
    """Address → names, for each network namespace."""

    def __init__(self, most_addresses: int = MOST_ADDRESSES, most_bytes: int = MOST_BYTES) -> None:
        """Room for so many addresses of all pods together, and so much memory."""
        self._most_addresses, self._most_bytes = most_addresses, most_bytes
        self._pods: dict[int, OrderedDict[str, dict[str, Lease]]] = {}
        self._addresses = self._bytes = 0
        self.evicted = 0
        """Names that had to go before their time."""

    def learn(self, netns: int, answer: Answer, time_ns: int) -> None:
        """The pod of `netns` was told `answer` at `time_ns`, CLOCK_BOOTTIME."""
        until_ns = time_ns + max(answer.ttl_s, FLOOR_S) * NS_PER_S
        for address in answer.addresses:
            self._add(netns, address, answer.name, Lease(time_ns, until_ns))
        while self._addresses > self._most_addresses or self._bytes > self._most_bytes:
            self._make_room(time_ns)

    def _add(self, netns: int, address: str, name: str, lease: Lease) -> None:
        pod = self._pods.setdefault(netns, OrderedDict())
        names = pod.setdefault(address, {})
        pod.move_to_end(address)
        if not names:
            self._addresses += 1
            self._bytes += ADDRESS_BYTES
        known = names.pop(name, None)
        if known is None:
            self._bytes += NAME_BYTES + len(name)
        elif known.until_ns >= lease.since_ns:
            lease = Lease(known.since_ns, max(known.until_ns, lease.until_ns))
        names[name] = lease
        if len(names) > NAMES_PER_ADDRESS:
            self._forget(names, next(iter(names)), lease.since_ns)

    def _forget(self, names: dict[str, Lease], name: str, now_ns: int) -> None:
        self._bytes -= NAME_BYTES + len(name)
        self.evicted += names.pop(name).until_ns >= now_ns

    def _make_room(self, now_ns: int) -> None:
        """The pod that has the most gives up what it has not used for longest."""
        netns = max(self._pods, key=lambda one: len(self._pods[one]))
        pod = self._pods[netns]
        for _ in range(max(1, len(pod) // PART)):
            _, names = pod.popitem(last=False)
            self._addresses -= 1
            self._bytes -= ADDRESS_BYTES
            for name in list(names):
                self._forget(names, name, now_ns)
        if not pod:
            del self._pods[netns]

    def names(self, netns: int, address: str, first_ns: int, last_ns: int) -> str | None:
        """The names that led there while packets passed, the newest first, commas between."""
        pod = self._pods.get(netns)
        leases = pod.get(address) if pod else None
        if pod is None or leases is None:
            return None
        held = [
            (name, lease)
            for name, lease in reversed(leases.items())
            if lease.since_ns <= last_ns and lease.until_ns >= first_ns
        ]
        if held:
            pod.move_to_end(address)
        for _, lease in held:
            lease.until_ns = max(lease.until_ns, last_ns + FLOOR_S * NS_PER_S)
        return ",".join(name for name, _ in held)

    def column(
        self,
        netns: NDArray[np.generic],
        addresses: Sequence[str],
        code: NDArray[np.int64],
        times_ns: tuple[NDArray[np.generic], NDArray[np.generic]],
    ) -> Column:
        """The names of (n,) `addresses[code]`, each as the pod of (n,) `netns` knows it.

        `times_ns` are (n,) first and last time, CLOCK_BOOTTIME; code -1 is no address.
        """
        known = np.fromiter(self._pods, np.int64, len(self._pods))
        rows = np.flatnonzero(np.isin(netns, known) & (code >= 0))
        pairs = netns[rows].astype(np.int64) * len(addresses) + code[rows]
        distinct, pair = np.unique(pairs, return_inverse=True)
        first_ns = np.full(len(distinct), np.iinfo(np.int64).max)
        last_ns = np.zeros(len(distinct), np.int64)
        np.minimum.at(first_ns, pair.ravel(), times_ns[0][rows].astype(np.int64))
        np.maximum.at(last_ns, pair.ravel(), times_ns[1][rows].astype(np.int64))
        whose, where = (part.tolist() for part in np.divmod(distinct, len(addresses) or 1))
        told = coded(
            [
                self.names(pod, addresses[at], first, last)
                # Most have no name: that is seen without a call.
                if addresses[at] in self._pods[pod]
                else None
                for pod, at, first, last in zip(
                    whose, where, first_ns.tolist(), last_ns.tolist(), strict=True
                )
            ]
        )
        values = np.full(len(code), -1, np.int32)
        values[rows] = told.values[pair.ravel()]
        return Column(values, told.words)
