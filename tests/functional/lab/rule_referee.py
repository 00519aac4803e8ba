"""What the kernel did with packets that were sent through a router's rules, packet by packet."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import wire
from tracer.netfilter.nft_trace import Visits, open_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace
    from tracer.netfilter.nft_trace import Visit

TRACE_TABLE = "zz-referee"
TRACE = f"""table inet {TRACE_TABLE} {{
  chain p {{ type filter hook prerouting priority -2000; meta nftrace set 1; }}
  chain o {{ type filter hook output priority -2000; meta nftrace set 1; }}
}}
"""
WAIT_S = 5.0
_LABEL = 0xFFFFF
_PROTOCOLS = (0x0800, 0x0806, 0x86DD)
ETH_P_ALL = 3
Arrived = dict[int, tuple[str, bytes]]
"""Number of a packet → `left` or `right`, and the packet from its network header on."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One packet, told from all others by `number`: IPv4's id or IPv6's flow label."""

    number: int
    origin: str
    """`left`, `right` or `router`."""
    saddr: str
    daddr: str
    protocol: int
    sport: int = 0
    dport: int = 0
    tcp_flags: int = 0
    icmp_type: int = 0
    ttl: int = 64
    dscp: int = 0
    mark: int = 0
    sequence: int = 1
    """Of TCP, and what it acknowledges."""

    @property
    def v6(self) -> bool:
        """Whether it is IPv6."""
        return ":" in self.saddr

    def data(self) -> bytes:
        """The whole packet."""
        ports = self.sport, self.dport
        if self.protocol == socket.IPPROTO_TCP:
            body = wire.tcp(self.saddr, self.daddr, ports, self.tcp_flags, self.sequence)
        elif self.protocol == socket.IPPROTO_UDP:
            body = wire.udp(self.saddr, self.daddr, ports, b"x" * 16)
        else:
            body = wire.echo(self.saddr, self.daddr, self.sport)
            body = self._as_type(body)
        packet = wire.ip(self.saddr, self.daddr, self.protocol, body, self.ttl)
        if self.v6:
            first = 6 << 28 | self.dscp << 22 | self.number
            return struct.pack("!I", first) + packet[4:]
        head = packet[:1] + bytes([self.dscp << 2]) + packet[2:4] + struct.pack("!H", self.number)
        head += packet[6:10] + b"\0\0" + packet[12:20]
        return head[:10] + struct.pack("!H", wire.checksum(head)) + head[12:] + packet[20:]

    def _as_type(self, echo: bytes) -> bytes:
        """An echo reply instead of a request; the sum changes by as much as the type."""
        if self.icmp_type == echo[0]:
            return echo
        total = (~struct.unpack("!H", echo[2:4])[0] & 0xFFFF) - ((echo[0] - self.icmp_type) << 8)
        total = (total & 0xFFFF) + (total >> 16) if total >= 0 else total % 0xFFFF
        return bytes([self.icmp_type, 0]) + struct.pack("!H", ~total & 0xFFFF) + echo[4:]


def number_of(network: bytes) -> int:
    """The number of a packet, from its network header; of ARP the end of the target's address."""
    if not network[0]:
        return int.from_bytes(network[26:28], "big")
    if network[0] >> 4 == 6:
        return int.from_bytes(network[:4], "big") & _LABEL
    return int.from_bytes(network[4:6], "big")


class Referee:
    """Sends packets into a router and tells what its kernel traced, and where they came out."""

    def __init__(self, router: Namespace, origins: dict[str, Namespace]) -> None:
        self._router = router
        with router.entered():
            self._events = open_events()
        self._senders = {
            (name, v6): _sender(where, v6=v6)
            for name, where in origins.items()
            for v6 in (False, True)
        }
        self._taps = {name: _tap(origins[name]) for name in ("left", "right")}

    def close(self) -> None:
        """Close every socket."""
        for sock in (self._events, *self._senders.values(), *self._taps.values()):
            sock.close()

    def send(self, packets: list[Sent], last: Sent) -> tuple[dict[int, list[Visit]], Arrived]:
        """(what was traced of each packet, where and how each came out of the router).

        `last` is sent after all others: what is traced of it says that they are through.
        """
        self._drain()
        with _on_one_cpu():
            for packet in (*packets, last):
                self.put(packet)
        visits = self._traced(last.number)
        return visits, self._arrived()

    def put(self, packet: Sent) -> None:
        """Send one packet from where it comes from."""
        sender = self._senders[packet.origin, packet.v6]
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, packet.mark)
        with suppress(OSError):  # what a rule drops on its way out is EPERM to the sender
            sender.sendto(packet.data(), (packet.daddr, 0))

    def _traced(self, last: int) -> dict[int, list[Visit]]:
        found: dict[int, list[Visit]] = defaultdict(list)
        open_visits, end = Visits(), time.monotonic() + WAIT_S
        while not any(visit.verdict for visit in found[last]):
            assert time.monotonic() < end, "the last packet was not traced"
            try:
                data = self._events.recv(1 << 20)
            except BlockingIOError:
                time.sleep(0.001)
                continue
            for visit in open_visits.add(data):
                found[number_of(visit.network)].append(visit)
        return found

    def _arrived(self) -> Arrived:
        found = {}
        for name, tap in self._taps.items():
            with suppress(BlockingIOError):
                while True:
                    network, address = tap.recvfrom(2048)
                    if address[2] == socket.PACKET_HOST and address[1] in _PROTOCOLS:
                        found[number_of(network)] = name, network
        return found

    def _drain(self) -> None:
        for sock in (self._events, *self._taps.values()):
            with suppress(BlockingIOError):
                while sock.recv(1 << 20):
                    pass


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Packets that one CPU sends go through the router in their order."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _sender(where: Namespace, *, v6: bool) -> socket.socket:
    family = socket.AF_INET6 if v6 else socket.AF_INET
    made = where.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.settimeout(1)
    return made


def _tap(where: Namespace) -> socket.socket:
    """Every IP packet that comes in at eth0, from its network header on."""
    made = where.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    made.bind(("eth0", ETH_P_ALL))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.settimeout(0)
    return made
