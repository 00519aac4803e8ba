"""Ordinary senders and receivers: datagrams and connections of counted sizes."""

from __future__ import annotations

import itertools
import select
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace

ANSWER_BYTES = 77

_ports = itertools.count(20011, 2)


def new_port() -> int:
    """A port that no other test uses, so that its packets are told from all others."""
    return next(_ports)


def family_of(address: str) -> int:
    """AF_INET or AF_INET6, by the form of the address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def send_udp(where: Namespace, to: tuple[str, int], count: int, payload: bytes = b"x" * 32) -> int:
    """Send `count` datagrams from one socket; its port.

    The socket is not connected, so ICMP errors that come back do not stop it, and a datagram
    that netfilter drops on its way out (EPERM) counts as sent.
    """
    with where.socket(family_of(to[0]), socket.SOCK_DGRAM) as sender:
        sender.bind(("", 0))
        for _ in range(count):
            with suppress(PermissionError):
                sender.sendto(payload, to)
        return sender.getsockname()[1]


def send_numbered(where: Namespace, to: tuple[str, int], count: int) -> None:
    """Send `count` datagrams from one socket, each beginning with its number (32 bits, from 0)."""
    with where.socket(family_of(to[0]), socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(number.to_bytes(4, "big") + bytes(28), to)


def open_tcp(where: Namespace, to: tuple[str, int], timeout_s: float = 0.3) -> OSError | None:
    """Try to connect; the error, or None when it worked."""
    with where.socket(family_of(to[0]), socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(to)
        except OSError as error:
            return error
    return None


@contextmanager
def udp_listener(
    where: Namespace, port: int, family: int = socket.AF_INET
) -> Iterator[socket.socket]:
    """A bound UDP socket."""
    with where.socket(family, socket.SOCK_DGRAM) as made:
        made.bind(("", port))
        yield made


@contextmanager
def tcp_listener(
    where: Namespace, port: int, family: int = socket.AF_INET
) -> Iterator[socket.socket]:
    """A listening TCP socket."""
    with where.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
        made.listen(4)
        yield made


def ask(
    where: Namespace, to: tuple[str, int], servers: list[socket.socket], count: int
) -> tuple[int, int]:
    """`count` numbered questions from one socket, each answered before the next.

    Returns the asker's port and which of `servers` (UDP) answered.
    """
    with where.socket(family_of(to[0]), socket.SOCK_DGRAM) as sender:
        for number in range(count):
            sender.sendto(number.to_bytes(4, "big") + b"question", to)
            ready, _, _ = select.select(servers, [], [], 5)
            assert len(ready) == 1, f"{to}: {len(ready)} servers got the question"
            question, came_from = ready[0].recvfrom(100)
            ready[0].sendto(question[:4] + bytes(ANSWER_BYTES - 4), came_from)
            sender.recv(100)
        return sender.getsockname()[1], servers.index(ready[0])


def converse(where: Namespace, to: tuple[str, int], server: socket.socket) -> int:
    """One short TCP connection to a listening server, ended in good order; the client's port."""
    with where.socket(family_of(to[0]), socket.SOCK_STREAM) as client:
        client.connect(to)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(5)
            client.sendall(b"question")
            accepted.recv(100)
            accepted.sendall(b"answer")
            client.recv(100)
            client.shutdown(socket.SHUT_WR)
            accepted.recv(100)
        client.recv(100)
        return client.getsockname()[1]


@contextmanager
def flood(where: Namespace, to: tuple[str, int]) -> Iterator[None]:
    """Datagrams from a thread as fast as they go, while the block runs."""
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            for _ in range(1000):
                with suppress(OSError):  # refused, or no room
                    sender.send(bytes(32))

    with where.socket(family_of(to[0]), socket.SOCK_DGRAM) as sender:
        sender.connect(to)
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
