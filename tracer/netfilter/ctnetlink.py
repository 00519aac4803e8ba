"""ctnetlink: sockets that hear one namespace's conntrack events, ask for its table and counters.

The sockets are our own: pyroute2's decode each message into nested lists, 50 times slower than
the columns of `ct_decode`. One socket for all namespaces (NETLINK_LISTEN_ALL_NSID) would not do:
it hears only namespaces to which the node has given an id, and since 5.19 a namespace makes no
events at all while nobody listens in it (nf_conntrack_events=2, the default).

A socket keeps its namespace alive: close it as soon as nobody else does.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.netfilter.ct_decode import HEADER, message_starts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from tracer.netfilter.ct_decode import Decoder

NETLINK_NETFILTER, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 12, 270, 1
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
SK_MEMINFO_VARS, SK_MEMINFO_DROPS = 9, 8
GROUPS = {"new": 1, "update": 2, "destroy": 3, "expect": 4, "expect-destroy": 6}
"""NFNLGRP_CONNTRACK_*."""
CT_GET, CT_STATS_CPU, CT_STATS, EXP_GET = 0x101, 0x104, 0x105, 0x201
"""NFNL_SUBSYS_CTNETLINK and NFNL_SUBSYS_CTNETLINK_EXP with their message types."""
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
LARGEST_BYTES = 1 << 16
"""Of one datagram; the kernel makes none larger than 32 KiB."""
TIMEOUT_S = 5.0
COUNTERS = (
    "", "searched", "found", "new", "invalid", "ignore", "delete", "delete_list", "insert",
    "insert_failed", "drop", "early_drop", "error", "search_restart", "clash_resolve",
    "chaintoolong",
)  # fmt: skip
"""CTA_STATS_*, in conntrack-tools' words."""
_REQUEST = struct.Struct("=IHHIIBBH")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Ears:
    """The two sockets of one namespace: one hears events, the other asks."""

    events: socket.socket
    requests: socket.socket

    def close(self) -> None:
        """Let go of the namespace."""
        self.events.close()
        self.requests.close()


def open_ears(groups: Iterable[str], buffer_bytes: int) -> Ears:
    """Open both in the calling thread's namespace; `groups` are names of GROUPS.

    Raises OSError: EPERM without CAP_NET_ADMIN, EINVAL or EPROTONOSUPPORT without ctnetlink.
    """
    requests, events = _open(), _open()
    try:
        requests.settimeout(TIMEOUT_S)
        count(requests)  # without ctnetlink, or the right to it, this fails
        events.settimeout(0)
        events.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        events.bind((0, 0))
        for group in groups:
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, GROUPS[group])
    except OSError:
        events.close()
        requests.close()
        raise
    return Ears(events, requests)


def _open() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)


def take(sock: socket.socket, into: memoryview) -> tuple[int, list[int]]:
    """Read all datagrams that wait and fit: bytes used, and where each message begins.

    An overrun (ENOBUFS) is passed over here: what waits is still good, and `lost` counts.
    """
    used = 0
    starts: list[int] = []
    room = len(into) - LARGEST_BYTES
    while used <= room:
        try:
            size = sock.recv_into(into[used:])
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            continue
        starts += message_starts(into, used, used + size)
        used += size
    return used, starts


def lost(sock: socket.socket) -> int:
    """Messages that the kernel threw away because the socket's buffer was full, since it opened."""
    size = 4 * SK_MEMINFO_VARS
    raw = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, size)
    return int(struct.unpack(f"={SK_MEMINFO_VARS}I", raw)[SK_MEMINFO_DROPS])


def dump(
    sock: socket.socket, decoder: Decoder, kind: int = CT_GET, family: int = 0
) -> Iterator[NDArray[np.void]]:
    """Yield the namespace's table (or with EXP_GET its expectations) in parts, as ENTRY."""
    for data, starts in _ask(sock, kind, family):
        yield decoder.decode(data, starts)


def stats_cpu(sock: socket.socket) -> list[dict[str, int]]:
    """Counters of each CPU since boot, by the names of COUNTERS; with `cpu`."""
    found = []
    for data, starts in _ask(sock, CT_STATS_CPU):
        raw = data.tobytes()
        for start in starts.tolist():
            (length,) = struct.unpack_from("=I", raw, start)
            (cpu,) = struct.unpack_from("!H", raw, start + HEADER.itemsize + 2)
            values = _numbers(raw, start + HEADER.itemsize + 4, start + length)
            names = {COUNTERS[kind]: v for kind, v in values.items() if kind < len(COUNTERS)}
            found.append({"cpu": cpu, **names})
    return found


def count(sock: socket.socket) -> tuple[int, int]:
    """Entries in the namespace now; the most that there may be, 0 where the kernel tells none."""
    for data, starts in _ask(sock, CT_STATS, flags=NLM_F_REQUEST):
        raw = data.tobytes()
        for start in starts.tolist():
            (length,) = struct.unpack_from("=I", raw, start)
            values = _numbers(raw, start + HEADER.itemsize + 4, start + length)
            return values.get(1, 0), values.get(2, 0)
    return 0, 0


def _numbers(raw: bytes, begin: int, end: int) -> dict[int, int]:
    """Attribute → its 32-bit number."""
    values = {}
    while begin + 8 <= end:
        length, kind = _ATTRIBUTE.unpack_from(raw, begin)
        values[kind & 0x3FFF] = struct.unpack_from("!I", raw, begin + 4)[0]
        begin += max(8, (length + 3) & ~3)
    return values


def _ask(
    sock: socket.socket, kind: int, family: int = 0, flags: int = NLM_F_REQUEST | NLM_F_DUMP
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.intp]]]:
    """Send one request; yield each datagram of the answer, and where its messages begin."""
    sock.send(_REQUEST.pack(_REQUEST.size, kind, flags, 1, 0, family, 0, 0))
    while True:
        raw = sock.recv(LARGEST_BYTES)
        view, starts = memoryview(raw), []
        for start in message_starts(view, 0, len(raw)):
            length, answer = struct.unpack_from("=IH", raw, start)
            if answer == NLMSG_ERROR:
                code = -struct.unpack_from("=i", raw, start + HEADER.itemsize)[0]
                if code:
                    raise OSError(code, os.strerror(code))
            if answer in (NLMSG_DONE, NLMSG_ERROR):
                flags = 0
            elif length > HEADER.itemsize:
                starts.append(start)
        if starts:
            yield np.frombuffer(raw, np.uint8), np.array(starts, np.intp)
        if not flags & NLM_F_DUMP:
            return
