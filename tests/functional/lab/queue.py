"""Packets held in a netfilter queue until the test lets them go on, for races made to order."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace

NETLINK_NETFILTER = 12
PACKET, VERDICT, CONFIG = 0x300, 0x301, 0x302
"""NFNL_SUBSYS_QUEUE: NFQNL_MSG_PACKET, _VERDICT, _CONFIG."""
BIND, UNBIND, COPY_META = 1, 2, 1
NF_ACCEPT = 1
ID_AT = 20 + 4
"""Of a packet message: behind nlmsghdr, nfgenmsg and the first attribute's header."""


@dataclass(slots=True)
class Queue:
    """Queue `number` of a namespace, bound."""

    sock: socket.socket
    number: int
    held: list[int] = field(default_factory=list)

    def send(self, kind: int, attribute: int, value: bytes) -> None:
        """One request of one attribute."""
        body = struct.pack("=BBH", 0, 0, socket.htons(self.number))
        body += struct.pack("=HH", 4 + len(value), attribute) + value
        body += bytes(-len(body) % 4)
        self.sock.send(struct.pack("=IHHII", 16 + len(body), kind, 1, 0, 0) + body)

    def hold(self, count: int) -> None:
        """Wait until `count` more packets wait in the queue."""
        for _ in range(count):
            data = self.sock.recv(1 << 16)
            assert struct.unpack_from("=H", data, 4)[0] == PACKET
            self.held.append(struct.unpack_from("!I", data, ID_AT)[0])

    def release(self) -> None:
        """Let all go on, in their order."""
        for packet in self.held:
            self.send(VERDICT, 2, struct.pack("!II", NF_ACCEPT, packet))
        self.held.clear()


@contextmanager
def queue(where: Namespace, number: int) -> Iterator[Queue]:
    """Bind a queue for the block."""
    with where.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        made = Queue(sock, number)
        made.send(CONFIG, 1, struct.pack("!BBH", BIND, 0, socket.AF_INET))
        made.send(CONFIG, 2, struct.pack("!IB", 0, COPY_META))
        yield made
