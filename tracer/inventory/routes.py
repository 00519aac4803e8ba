"""The main routing table of the node, for who wants to know which tunnel a packet takes."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from tracer.inventory import rtnl
from tracer.inventory.namespaces import run_in
from tracer.inventory.sysctl import netns_path
from tracer.model import TUNNEL_KINDS, Route

if TYPE_CHECKING:
    from tracer.model import Node

REFRESH_S = 10.0
RTM_GETROUTE = 26
_RTMSG = struct.Struct("=BBBBBBBBI")
"""family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_RT_TABLE_MAIN = 254
_BYTES = {2: 4, 10: 16}
"""Of an address, by family."""


class Routes:
    """What the node's main table says, not older than REFRESH_S; nothing without a tunnel."""

    def __init__(self) -> None:
        self._routes: tuple[Route, ...] = ()
        self._due_s = 0.0

    def of(self, node: Node) -> tuple[Route, ...]:
        """Every route, of equal ones the first; where it cannot be read, as it was."""
        there = any(
            device.kind in TUNNEL_KINDS
            for device in node.devices.values()
            if device.netns == node.netns
        )
        if not there:
            return ()
        path = netns_path(node.namespaces.get(node.netns), node.netns)
        if time.monotonic() >= self._due_s and path:
            self._due_s = time.monotonic() + REFRESH_S
            try:
                self._routes = run_in(path, node.netns, _read)
            except OSError:
                return self._routes
        return self._routes


def _read() -> tuple[Route, ...]:
    with rtnl.open_socket() as sock:
        answers = rtnl.request(sock, RTM_GETROUTE, bytes(_RTMSG.size))
        found = (decoded(data, offset) for _, data, offset in answers)
        return tuple(route for route in found if route)


def decoded(data: bytes, offset: int) -> Route | None:
    """The message that begins at `offset`, if it is a route of the main table."""
    length = rtnl.HEADER.unpack_from(data, offset)[0]
    start = offset + rtnl.HEADER.size
    family, bits, _, _, table, *_ = _RTMSG.unpack_from(data, start)
    told = dict(rtnl.attributes(data[start + _RTMSG.size : offset + length]))
    table = int.from_bytes(told.get(_RTA_TABLE, bytes([table])), "little")
    if table != _RT_TABLE_MAIN or family not in _BYTES:
        return None
    network = told.get(_RTA_DST, bytes(_BYTES[family]))
    return Route(network, bits, int.from_bytes(told.get(_RTA_OIF, b""), "little"))
