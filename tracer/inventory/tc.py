"""Filters of tc at devices' ingress and egress, by rtnetlink."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tracer.inventory.rtnl import HEADER, attributes, request
from tracer.model import TcFilter

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

RTM_GETTFILTER, RTM_GETQDISC = 46, 38
TCMSG = struct.Struct("=B3xiIII")
"""struct tcmsg: family, ifindex, handle, parent, info."""
_TC_H_INGRESS = 0xFFFFFFF1
"""Parent of the qdiscs `ingress` and `clsact`."""
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_NAME, _TCA_BPF_ID = 7, 11
_TCA_ACT_KIND = 1
_TCA_ACTIONS = {"bpf": 1, "matchall": 2, "basic": 3, "flower": 3, "fw": 4, "u32": 7, "flow": 9}
"""Classifier → which of its options are its actions."""
_TCA_U32_DIVISOR = 4
"""A hash table of u32's has it; that is no filter."""


def read_classified(sock: socket.socket) -> dict[int, str]:
    """Devices of the socket's netns with a place for tc filters → `clsact` or `ingress`."""
    found = {}
    for _, data, offset in request(sock, RTM_GETQDISC, bytes(TCMSG.size)):
        _, ifindex, _, parent, _ = TCMSG.unpack_from(data, offset + HEADER.size)
        if parent == _TC_H_INGRESS:
            found[ifindex] = _text(_message(data, offset).get(_TCA_KIND, b""))
    return found


def read_filters(sock: socket.socket) -> tuple[TcFilter, ...]:
    """Every filter at the ingress and egress of devices in the socket's netns; raises OSError."""
    return tuple(
        one
        for ifindex, qdisc in read_classified(sock).items()
        # The qdisc `ingress` has no egress, and tells its ingress instead.
        for side in _PARENTS
        if side == "ingress" or qdisc == "clsact"
        for one in _side(sock, ifindex, side)
    )


def _side(sock: socket.socket, ifindex: int, side: str) -> Iterator[TcFilter]:
    body = TCMSG.pack(0, ifindex, 0, _PARENTS[side], 0)
    for _, data, offset in request(sock, RTM_GETTFILTER, body):
        message = _message(data, offset)
        kind = _text(message.get(_TCA_KIND, b""))
        options = dict(attributes(message.get(_TCA_OPTIONS, b"")))
        if not options or (kind == "u32" and _TCA_U32_DIVISOR in options):
            continue  # a priority, or a table: what is in it comes in messages of its own
        name, number = "", 0
        if kind == "bpf":
            name = _text(options.get(_TCA_BPF_NAME, b""))
            number = int.from_bytes(options.get(_TCA_BPF_ID, b""), "little")
        yield TcFilter(ifindex, side, kind, name, number, _actions(kind, options))


def _actions(kind: str, options: dict[int, bytes]) -> tuple[str, ...]:
    """Kinds of a filter's actions, in their order."""
    actions = attributes(options.get(_TCA_ACTIONS.get(kind, 0), b""))
    return tuple(_text(dict(attributes(one)).get(_TCA_ACT_KIND, b"")) for _, one in actions)


def _message(data: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of the message that begins at `offset`."""
    length = HEADER.unpack_from(data, offset)[0]
    return dict(attributes(data[offset + HEADER.size + TCMSG.size : offset + length]))


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")
