"""Packets that conntrack calls invalid, for one cause each: seven from `left` to `right`.

Each is a context, for what has to hold until they have been looked at; it gives the transport.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lab import wire
from lab.rules import nft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.topology import Routed

COUNT = 7
BELIEVED_S = 1.2
"""A setting that tracer has read is believed for a second."""


def _segments(routed: Routed, port: int, flags: int, count: int = COUNT, **more: int) -> None:
    left, right = routed.left, routed.right
    segment = wire.tcp(left.ip4, right.ip4, (port, port), flags=flags, **more)
    wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_TCP, segment), count)


@contextmanager
def _silent(routed: Routed, port: int) -> Iterator[None]:
    """Neither end's kernel knows of the connection: it would answer with a reset."""
    with ExitStack() as silent:
        for end in (routed.left, routed.right):
            silent.enter_context(nft(end.where, "inet", "prerouting", f"tcp dport {port} drop"))
        yield


@contextmanager
def no_entry(routed: Routed, port: int) -> Iterator[str]:
    """Resets of a connection that nobody knows."""
    _segments(routed, port, wire.RST)
    yield "tcp"


@contextmanager
def no_request(routed: Routed, port: int) -> Iterator[str]:
    """Answers to a SYN that nobody saw."""
    with _silent(routed, port):
        _segments(routed, port, wire.SYN | wire.ACK)
        yield "tcp"


@contextmanager
def out_of_window(routed: Routed, port: int) -> Iterator[str]:
    """A handshake by hand, then segments far beyond the window that was offered."""
    left, right = routed.left, routed.right
    answer = wire.tcp(right.ip4, left.ip4, (port, port), wire.SYN | wire.ACK, 2)
    with _silent(routed, port):
        _segments(routed, port, wire.SYN, count=1)
        wire.send(right.where, wire.ip(right.ip4, left.ip4, socket.IPPROTO_TCP, answer))
        _segments(routed, port, wire.ACK, sequence=0x40000000)
        yield "tcp"


@contextmanager
def no_syn(routed: Routed, port: int) -> Iterator[str]:
    """The middle of a connection whose beginning nobody saw, where that is not allowed."""
    before = routed.router.sysctl("netfilter/nf_conntrack_tcp_loose", 0)
    time.sleep(BELIEVED_S)
    try:
        with _silent(routed, port):
            _segments(routed, port, wire.ACK)
            yield "tcp"
    finally:
        routed.router.sysctl("netfilter/nf_conntrack_tcp_loose", before)


@contextmanager
def bad_flags(routed: Routed, port: int) -> Iterator[str]:
    """SYN and FIN at once."""
    with _silent(routed, port):
        _segments(routed, port, wire.SYN | wire.FIN)
        yield "tcp"


@contextmanager
def bad_checksum(routed: Routed, port: int) -> Iterator[str]:
    """Datagrams whose checksum is wrong."""
    left, right = routed.left, routed.right
    datagram = wire.udp(left.ip4, right.ip4, (port, port), bytes(32), spoil=1)
    wire.send(left.where, wire.ip(left.ip4, right.ip4, socket.IPPROTO_UDP, datagram), COUNT)
    yield "udp"


@contextmanager
def bad_tcp_checksum(routed: Routed, port: int) -> Iterator[str]:
    """SYNs whose checksum is wrong."""
    _segments(routed, port, wire.SYN, spoil=1)
    yield "tcp"
