"""rtnetlink: dump a namespace's links and addresses, follow them, and decode both.

Sockets are our own because pyroute2's bring an asyncio loop each, and one namespace needs
a socket for a millisecond; what the bytes mean is pyroute2's business.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg

from tracer.inventory.facts import Link, View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Message = Any
"""A decoded message; pyroute2 has no types."""

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
NETNSA_FD = 3
NETNSA_NSID_NOT_ASSIGNED = 0xFFFFFFFF
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
RTMGRP_NSID = 0x8000000
SOL_NETLINK, NETLINK_LISTEN_ALL_NSID = 270, 8
RECEIVE_BYTES = 1 << 16
EVENT_BUFFER_BYTES = 1 << 20
TIMEOUT_S = 2.0
HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_BITS = 0x3FFF
"""Of an attribute's type, without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""


def open_socket() -> socket.socket:
    """Open a route socket in the calling thread's netns, for requests."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.settimeout(TIMEOUT_S)
    return sock


def open_events() -> tuple[socket.socket, bool]:
    """Open a non-blocking socket for link and address changes in the calling thread's netns.

    The second value is true where it hears nothing else, for want of CAP_NET_BROADCAST.
    Where we may, it also hears every namespace that this one has an id for, that is the
    other ends of its veth pairs, and when such an id comes and goes; no socket has to be kept
    in them, which would keep a dead pod's namespace alive.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.settimeout(0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EVENT_BUFFER_BYTES)
    is_deaf = False
    try:
        sock.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
    except PermissionError:
        is_deaf = True
    sock.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_NSID))
    return sock, is_deaf


def read_view(sock: socket.socket, node_fd: int, node_inode: int) -> View:
    """Everything in the socket's netns; `node_fd` is the node's netns, to know its id here."""
    view = View()
    mask = struct.pack("=HHI", 8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    for kind, data, offset in request(sock, RTM_GETLINK, bytes(16) + mask):
        apply(view, kind, data, offset)
    for kind, data, offset in request(sock, RTM_GETADDR, bytes(8)):
        apply(view, kind, data, offset)
    nsid = read_nsid(sock, node_fd)
    if nsid is not None:
        view.nsids[nsid] = node_inode
    return view


def read_nsid(sock: socket.socket, netns_fd: int) -> int | None:
    """Ask for the id that the socket's netns has for another one; None where it has none."""
    body = bytes(4) + struct.pack("=HHI", 8, NETNSA_FD, netns_fd)
    for _, data, offset in request(sock, RTM_GETNSID, body, flags=NLM_F_REQUEST):
        nsid = _decode(nsidmsg, data, offset).get_attr("NETNSA_NSID")
        return None if nsid is None or nsid == NETNSA_NSID_NOT_ASSIGNED else int(nsid)
    return None


def apply(view: View, kind: int, data: bytes, offset: int) -> bool:
    """Change `view` by one message, of a dump or an event; False where it says nothing new."""
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        return _apply_link(view, kind, _decode(ifinfmsg, data, offset))
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        return _apply_address(view, kind, _decode(ifaddrmsg, data, offset))
    if kind in (RTM_NEWNSID, RTM_DELNSID):
        return _apply_nsid(view, kind, _decode(nsidmsg, data, offset))
    return False


def messages(data: bytes) -> Iterator[tuple[int, int]]:
    """(type, offset of the message) of each message in one datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, offset
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each netlink attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_BITS, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _apply_link(view: View, kind: int, message: Message) -> bool:
    if message["family"] != socket.AF_UNSPEC:
        return False  # a bridge port's own news; RTM_DELLINK there does not end the device
    index = message["index"]
    if kind == RTM_DELLINK:
        view.addresses.pop(index, None)
        return view.links.pop(index, None) is not None
    nsid = message.get_attr("IFLA_LINK_NETNSID")
    info = message.get_attr("IFLA_LINKINFO")
    link = Link(
        ifindex=index,
        name=message.get_attr("IFLA_IFNAME") or "",
        kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        master=message.get_attr("IFLA_MASTER") or None,
        link=message.get_attr("IFLA_LINK") or None,
        link_nsid=nsid if nsid is None or nsid >= 0 else None,
    )
    changed = view.links.get(index) != link
    view.links[index] = link
    return changed


def _apply_address(view: View, kind: int, message: Message) -> bool:
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    if not text:
        return False
    address = str(ipaddress.ip_address(text))
    held = view.addresses.setdefault(message["index"], {})
    changed = (address in held) == (kind == RTM_DELADDR)
    if kind == RTM_DELADDR:
        held.pop(address, None)
    else:
        held[address] = None
    return changed


def _apply_nsid(view: View, kind: int, message: Message) -> bool:
    nsid = message.get_attr("NETNSA_NSID")
    if kind == RTM_NEWNSID:
        return nsid not in view.nsids  # whose it is, the message does not say
    return view.nsids.pop(nsid, None) is not None


def _decode(message_type: Callable[..., Any], data: bytes, offset: int) -> Message:
    message = message_type(data, offset=offset)
    message.decode()
    return message


def request(
    sock: socket.socket, kind: int, body: bytes, flags: int = NLM_F_REQUEST | NLM_F_DUMP
) -> Iterator[tuple[int, bytes, int]]:
    """Send one request; yield (type, datagram, offset) of each answer. Raises OSError."""
    sock.send(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body)
    while True:
        data = sock.recv(RECEIVE_BYTES)
        for answer, offset in messages(data):
            if answer == NLMSG_DONE:
                return
            if answer == NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, offset + HEADER.size)[0]
                raise OSError(code, os.strerror(code))
            yield answer, data, offset
        if not flags & NLM_F_DUMP:
            return
