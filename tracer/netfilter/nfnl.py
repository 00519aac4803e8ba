"""nfnetlink: how its messages are written and read (linux/netfilter/nfnetlink.h)."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NLMSG_ERROR, NLMSG_DONE, NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 2, 3, 0x1, 0x4, 0x300
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
GENERAL = struct.Struct(">BBH")
"""struct nfgenmsg: family, version, resource."""
BODY = HEADER.size + GENERAL.size
_ATTRIBUTE = struct.Struct("=HH")
TIMEOUT_S = 5.0
RECEIVE_BYTES = 1 << 16


def open_socket() -> socket.socket:
    """A blocking socket for requests, in the calling thread's network namespace."""
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
    )
    sock.settimeout(TIMEOUT_S)
    sock.bind((0, 0))
    return sock


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def be32(kind: int, value: int) -> bytes:
    """A 32-bit number in network order; may be negative."""
    return attribute(kind, (value & 0xFFFFFFFF).to_bytes(4, "big"))


def be64(kind: int, value: int) -> bytes:
    """A 64-bit number in network order."""
    return attribute(kind, value.to_bytes(8, "big"))


def message(kind: int, flags: int, family: int, body: bytes = b"", resource: int = 0) -> bytes:
    """One message; the sequence number is the sender's business."""
    length = BODY + len(body)
    header = HEADER.pack(length, kind, flags | NLM_F_REQUEST, 0, 0)
    return header + GENERAL.pack(family, 0, resource) + body


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute between two offsets; ends where one is broken."""
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[start + _ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3


def messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, start, end) of each message of one datagram."""
    start = 0
    while start + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, start)
        if length < HEADER.size:
            return
        yield kind, start, min(start + length, len(data))
        start += (length + 3) & ~3


def ask(sock: socket.socket, request: bytes) -> Iterator[tuple[int, bytes]]:
    """Send one request (a dump where its flags say so): (type, message) of each answer.

    Raises OSError for what the kernel refuses.
    """
    dumps = HEADER.unpack_from(request)[2] & NLM_F_DUMP == NLM_F_DUMP
    sock.send(request)
    while True:
        data = sock.recv(RECEIVE_BYTES)
        for kind, start, end in messages(data):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                raise_error(data, start)
                return
            yield kind, data[start:end]
        if not dumps:
            return


def raise_error(data: bytes, start: int) -> None:
    """Raise OSError for an NLMSG_ERROR message that is no mere acknowledgement."""
    code = -struct.unpack_from("=i", data, start + HEADER.size)[0]
    if code:
        raise OSError(code, os.strerror(code))


def commit(sock: socket.socket, subsystem: int, requests: Iterable[bytes]) -> None:
    """Do all of the requests at once, or none: OSError for the first that is refused."""
    ends = (
        message(kind, 0, socket.AF_UNSPEC, resource=subsystem)
        for kind in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)
    )
    begin, end = ends
    batch = bytearray(begin)
    expected = 0
    for request in requests:
        batch += request
        expected += 1
    batch += end
    sock.send(batch)
    while expected:
        data = sock.recv(RECEIVE_BYTES)
        for kind, start, _ in messages(data):
            if kind == NLMSG_ERROR:
                raise_error(data, start)
                expected -= 1
