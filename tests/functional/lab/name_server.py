"""A name server of dnspython on one socket, and a pod's resolver that asks it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dns.message
import dns.rrset

from lab.traffic import family_of, udp_listener

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lab.namespaces import Namespace

DNS_PORT = 53

Zone = "Mapping[tuple[str, str], Sequence[tuple[str, int, str, str]]]"
"""(name, type) asked for → records (owner, TTL, type, data) of the answer."""


def answer(query: dns.message.Message, records: Sequence[tuple[str, int, str, str]]) -> bytes:
    """The message that answers `query` with `records`."""
    response = dns.message.make_response(query)
    for owner, ttl_s, kind, data in records:
        response.answer.append(dns.rrset.from_text(owner, ttl_s, "IN", kind, data))
    return response.to_wire()


@contextmanager
def serving(where: Namespace, zones: Mapping[str, Zone], family: int) -> Iterator[None]:
    """Answer queries in `where`, each asker (by address) from its own zone."""
    with udp_listener(where, DNS_PORT, family) as server:
        server.settimeout(0.1)
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                try:
                    message, asker = server.recvfrom(4096)
                except TimeoutError:
                    continue
                query = dns.message.from_wire(message)
                kind = dns.rdatatype.to_text(query.question[0].rdtype)
                name = query.question[0].name.to_text().lower()
                server.sendto(answer(query, zones[asker[0]][name, kind]), asker)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


def resolve(where: Namespace, server: str, name: str, kind: str = "A") -> dns.message.Message:
    """Ask `server` from inside `where`; its answer."""
    query = dns.message.make_query(name, kind)
    with where.socket(family_of(server), 2) as asker:
        asker.sendto(query.to_wire(), (server, DNS_PORT))
        return dns.message.from_wire(asker.recv(4096))
