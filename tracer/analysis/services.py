"""Services of flows, in columns: looked up once for each address, protocol and port that occurs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tracer.analysis.names import node_addresses, service_at
from tracer.analysis.packet import transport
from tracer.flow_table import Column, coded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.model import Node, Service

Codes = NDArray[np.int64]


def service_columns(
    flow: np.ndarray, addresses: Sequence[str], ends: tuple[Codes, Codes], node: Node
) -> dict[str, Column]:
    """`service.…` of flows: (n,) tuple of bpf/event.h, and (n,) indices of their ends.

    `ends` are who was to receive and who sent, as indices into `addresses`; -1 where the packet
    has none. Where both are Services, it is the one that was to receive.
    """
    if not node.services or not len(flow):
        return {}
    wanted = _candidates(addresses, node)
    found = np.full(len(flow), -1)
    at = np.full(len(flow), -1)
    ports = np.zeros(len(flow), np.uint16)
    services: list[Service] = []
    for codes, column in zip(ends, ("dport", "sport"), strict=True):
        rows = np.flatnonzero((found < 0) & wanted[codes])
        packed = _packed(codes[rows], flow["protocol"][rows], flow[column][rows])
        distinct, row_of = np.unique(packed, return_inverse=True)
        numbers = np.array([_number(one, addresses, node, services) for one in distinct], np.int64)
        hit = numbers[row_of.ravel()] >= 0 if len(rows) else np.zeros(0, bool)
        found[rows[hit]] = numbers[row_of.ravel()][hit]
        at[rows[hit]], ports[rows[hit]] = codes[rows][hit], flow[column][rows][hit]
    held = found >= 0
    return {
        "service.namespace": _spread([one.namespace for one in services], found),
        "service.name": _spread([one.name for one in services], found),
        "service.address": _spread(addresses, at),
        "service.port": Column(ports, None, held),
        "service.source": _spread([one.source for one in services], _sourced(services, found)),
    }


def _sourced(services: Sequence[Service], found: Codes) -> Codes:
    """The same indices; -1 where the API told of the Service."""
    told = np.array([*(bool(one.source) for one in services), False])
    return np.where(told[found], found, -1)


def _candidates(addresses: Sequence[str], node: Node) -> NDArray[np.bool_]:
    """Which addresses may be a Service's; the last is for -1, no address."""
    own = {
        address
        for service in node.services.values()
        for address in (*service.addresses, *service.external_addresses)
    }
    own |= node_addresses(node)
    return np.array([*(one in own for one in addresses), False])


def _packed(codes: Codes, protocol: np.ndarray, port: np.ndarray) -> NDArray[np.int64]:
    return codes << 24 | protocol.astype(np.int64) << 16 | port.astype(np.int64)


def _number(packed: int, addresses: Sequence[str], node: Node, services: list[Service]) -> int:
    """Index of the Service in `services`, where it is added; -1 for none."""
    address, protocol, port = int(packed) >> 24, int(packed) >> 16 & 0xFF, int(packed) & 0xFFFF
    service = service_at(node, transport(protocol), addresses[address], port)
    if service is None:
        return -1
    services.append(service)
    return len(services) - 1


def _spread(names: Sequence[str], codes: Codes) -> Column:
    named = coded(names)
    return Column(np.append(named.values, np.int32(-1))[codes], named.words)
