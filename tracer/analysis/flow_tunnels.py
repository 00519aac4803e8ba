"""Which of the node's tunnels lies between a flow's ends, by the routes to the far one."""

from __future__ import annotations

from collections import defaultdict
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.flow_ends import spread
from tracer.model import TUNNEL_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tracer.flow_table import Column
    from tracer.model import Node, Route


class Ways:
    """A routing table, asked for one address after the other: the longest prefix decides."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_size: dict[int, dict[int, dict[int, int]]] = defaultdict(dict)
        for route in sorted(routes, key=lambda one: -one.bits):
            size = len(route.network)
            table = self._by_size[size].setdefault(8 * size - route.bits, {})
            table.setdefault(_shifted(route.network, 8 * size - route.bits), route.ifindex)

    def device(self, address: str) -> int:
        """The ifindex by which packets to `address` leave; 0 where no route is known."""
        raw = inet_pton(AF_INET6 if ":" in address else AF_INET, address)
        for shift, table in self._by_size[len(raw)].items():
            found = table.get(_shifted(raw, shift))
            if found is not None:
                return found
        return 0


def _shifted(raw: bytes, shift: int) -> int:
    return int.from_bytes(raw, "big") >> shift


def tunnel_columns(
    columns: Mapping[str, Column], node: Node, ways: Ways | None
) -> dict[str, Column]:
    """`tunnel.*` of records that have `columns`; nothing where no `ways` are known."""
    if ways is None or "src.address" not in columns:
        return {}
    distinct, code = np.unique(_far_ends(columns, ways), return_inverse=True)
    devices = [node.devices.get((node.netns, ifindex)) for ifindex in distinct.tolist()]
    tunnels = [one if one and one.kind in TUNNEL_KINDS else None for one in devices]
    return {
        "tunnel.interface.name": spread(
            [one.name if one else None for one in tunnels], code.ravel()
        ),
        "tunnel.type": spread([one.kind if one else None for one in tunnels], code.ravel()),
    }


def _far_ends(columns: Mapping[str, Column], ways: Ways) -> NDArray[np.int64]:
    """By which device each record's other end is reached; 0 is unknown."""
    sends = _is(columns["direction"], "egress")
    source, goal = (_devices(columns[name], ways) for name in ("src.address", "dst.address"))
    far = np.where(sends, goal, source)
    backend, way = columns.get("nat.dst.address"), columns.get("conntrack.direction")
    if backend is None or way is None:
        return far
    # Who asked wrote the address of a Service, to which no route leads.
    asked = way.present & backend.present & (_is(way, "original") == sends)
    return np.where(asked, _devices(backend, ways), far)


def _devices(column: Column, ways: Ways) -> NDArray[np.int64]:
    """Each address is looked up once."""
    found = np.array([*map(ways.device, column.words or ()), 0], np.int64)
    return found[column.values.astype(np.int64)]


def _is(column: Column, word: str) -> NDArray[np.bool_]:
    same = np.array([*(one == word for one in column.words or ()), False])
    return same[column.values.astype(np.int64)]
