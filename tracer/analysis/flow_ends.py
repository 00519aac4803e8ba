"""Who is at the ends of flows, in columns: places, addresses and pods by small numbers.

Names are looked up once for each that occurs, never for each flow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv6Address
from socket import inet_ntoa
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.flows import distinct_places
from tracer.analysis.names import owner_of, pod_at
from tracer.analysis.packet import ETH_P_IP, ETH_P_IPV6, network_type, transport
from tracer.flow_table import Column, coded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tracer.model import ClusterPod, Node, Pod

Numbers = np.ndarray
_ICMP, _ICMPV6 = 1, 58
_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff", np.uint32)
"""The three words before an IPv4 address (RFC 4291 2.5.5.2)."""


def named(
    values: NDArray[np.generic],
    name: Callable[[int], str],
    where: NDArray[np.bool_] | None = None,
) -> Column:
    """Numbers of few kinds as their names; absent where the name is empty or not `where`."""
    distinct, code = np.unique(values, return_inverse=True)
    column = spread([name(value) for value in distinct.tolist()], code.ravel())
    if where is not None:
        column.values[~where] = -1
    return column


def spread(names: Sequence[str | None], code: NDArray[np.generic]) -> Column:
    """`names[code]` as a column; code -1 is absent."""
    named = coded(names)
    return Column(np.append(named.values, np.int32(-1))[code], named.words)


def numbers(values: NDArray[np.generic], held: NDArray[np.bool_]) -> Column:
    """Numbers, absent where they are not `held`."""
    return Column(values, None, None if held.all() else held)


@dataclass(frozen=True)
class Ends:
    """Who sent and who was to receive, by numbers of the distinct addresses."""

    flow: Numbers
    """(n,) tuple of bpf/event.h."""
    addresses: list[str] = field(init=False)
    """Each once; canonical text."""
    source: NDArray[np.int64] = field(init=False)
    """(n,): index into `addresses`; -1 where the packet has none. `goal` likewise."""
    goal: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Number the addresses: IPv4 by their 32 bits, the few others by all bytes."""
        flow = self.flow
        raw = np.concatenate((flow["saddr"], flow["daddr"]))
        ip = np.concatenate((self.ip, self.ip))
        words = np.ascontiguousarray(raw).view(np.uint32)
        is_v4 = (words[:, :3] == _MAPPED).all(axis=1) & ip
        code = np.full(len(raw), -1)
        v4, code[is_v4] = _number(words[is_v4, 3])
        rest = ip & ~is_v4
        v6, other = _number(np.ascontiguousarray(raw[rest]).view("V16").ravel())
        code[rest] = other + len(v4)
        texts = [inet_ntoa(one.tobytes()) for one in v4]
        texts += [str(IPv6Address(one.tobytes())) for one in v6]
        object.__setattr__(self, "addresses", texts)
        object.__setattr__(self, "source", code[: len(flow)])
        object.__setattr__(self, "goal", code[len(flow) :])

    @cached_property
    def ip(self) -> NDArray[np.bool_]:
        """(n,): IPv4 and IPv6: what has addresses and a transport."""
        return np.isin(self.flow["ethertype"], (ETH_P_IP, ETH_P_IPV6))

    @cached_property
    def has_ports(self) -> NDArray[np.bool_]:
        """(n,): what has ports, that can be told."""
        flow = self.flow
        icmp = np.isin(flow["protocol"], (_ICMP, _ICMPV6))
        return np.asarray(self.ip & ~icmp & ((flow["sport"] > 0) | (flow["dport"] > 0)))

    def columns(self) -> dict[str, Column]:
        """Addresses, ports and protocols."""
        flow = self.flow
        protocol = flow["protocol"]
        icmp = np.isin(protocol, (_ICMP, _ICMPV6)) & self.ip
        return {
            "network.type": named(flow["ethertype"], network_type),
            "transport": named(protocol, transport, self.ip),
            "network.iana_number": numbers(protocol, self.ip),
            "src.address": spread(self.addresses, self.source),
            "dst.address": spread(self.addresses, self.goal),
            "src.port": numbers(flow["sport"], self.has_ports),
            "dst.port": numbers(flow["dport"], self.has_ports),
            "icmp.type": numbers(flow["sport"].astype(np.uint8), icmp),
            "icmp.code": numbers(flow["dport"].astype(np.uint8), icmp),
        }


def _number(values: Numbers) -> tuple[Numbers, NDArray[np.int64]]:
    """Distinct values, and which of them each row has."""
    distinct, code = np.unique(values, return_inverse=True)
    return distinct, code.ravel()


class Pods:
    """The node's pods, and those of the cluster that occur, by small numbers; -1 is no pod."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pods: list[Pod | ClusterPod] = list(node.pods.values())
        self._number = {uid: number for number, uid in enumerate(node.pods)}
        self._by_address: tuple[Ends, NDArray[np.int64]] | None = None

    @cached_property
    def _names(self) -> tuple[Column, ...]:
        """Of each pod: namespace, name, kind and name of its owner."""
        owners = [owner_of(self._node, pod) for pod in self._pods]
        return (
            coded(pod.namespace for pod in self._pods),
            coded(pod.name or getattr(pod, "uid", "") for pod in self._pods),
            coded(owner.kind if owner else None for owner in owners),
            coded(owner.name if owner else None for owner in owners),
        )

    def _of(self, uid: str | None) -> int:
        return -1 if uid is None else self._number.get(uid, -1)

    def at_places(self, keys: Numbers) -> NDArray[np.int64]:
        """(n,): whose namespace or device it is."""
        node = self._node
        distinct, code = distinct_places(keys)
        numbers = [
            self._of(node.pod_by_netns.get(place[0]) or node.pod_by_device.get(place))
            for place in distinct
        ]
        return np.array(numbers, np.int64)[code]

    def by_address(self, ends: Ends) -> NDArray[np.int64]:
        """The pod of each distinct address; the last is for -1, no address."""
        if self._by_address is None or self._by_address[0] is not ends:
            uids = map(self._node.pod_by_address.get, ends.addresses)
            numbers = [*map(self._of, uids), -1]
            for at, address in enumerate(ends.addresses):
                if numbers[at] < 0 and (pod := pod_at(self._node, address)):
                    numbers[at] = self._remote(pod)
            self._by_address = ends, np.array(numbers)
        return self._by_address[1]

    def _remote(self, pod: Pod | ClusterPod) -> int:
        """The number of a pod of another node."""
        if pod.key not in self._number:
            self._number[pod.key] = len(self._pods)
            self._pods.append(pod)
            self.__dict__.pop("_names", None)
        return self._number[pod.key]

    def namespaces(self, charged: NDArray[np.int64], places: Numbers) -> Numbers:
        """(n,): network namespace of the charged pod, without one that of the place."""
        own = [getattr(pod, "netns", None) or 0 for pod in self._pods]
        found = np.array([*own, 0], np.int64)[charged]
        return np.where(found > 0, found, places)

    def owns(
        self, ends: Ends, charged: NDArray[np.int64], address: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """(n,): whether the address is one of the charged pod's own."""
        numbered = dict(zip(ends.addresses, range(len(ends.addresses)), strict=True))
        pairs = [
            number * len(numbered) + numbered[text]
            for number in np.unique(charged[charged >= 0]).tolist()
            for text in self._pods[number].addresses
            if text in numbered
        ]
        own = np.isin(charged * len(numbered) + address, np.array(pairs, np.int64))
        return np.asarray(own & (charged >= 0) & (address >= 0))

    def columns(
        self, namespace: str, name: str, owner: str, pods: NDArray[np.int64]
    ) -> dict[str, Column]:
        """The names of (n,) pods, under these names."""
        names = namespace, name, f"{owner}.kind", f"{owner}.name"
        return {
            name: Column(np.append(of.values, np.int32(-1))[pods], of.words)
            for name, of in zip(names, self._names, strict=True)
        }
