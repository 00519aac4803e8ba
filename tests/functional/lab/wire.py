"""Packets written by hand, for what no well-behaved socket would send."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.namespaces import Namespace

SCTP = 132
FIN, SYN, RST, ACK = 1, 2, 4, 16
UNASSIGNED_PROTOCOL = 253
"""Reserved for experiments: nobody listens."""


def checksum(data: bytes) -> int:
    """The Internet checksum of `data`."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo_header(src: str, dst: str, protocol: int, size: int) -> bytes:
    family = socket.AF_INET6 if ":" in src else socket.AF_INET
    ends = socket.inet_pton(family, src) + socket.inet_pton(family, dst)
    return ends + struct.pack("!IxxxB", size, protocol)


def with_checksum(body: bytes, at: int, src: str, dst: str, protocol: int) -> bytes:
    """A transport header and its data, the checksum put in at `at`, where it has 0."""
    right = checksum(_pseudo_header(src, dst, protocol, len(body)) + body)
    return body[:at] + struct.pack("!H", right) + body[at + 2 :]


def ip(src: str, dst: str, protocol: int, payload: bytes, ttl: int = 64) -> bytes:
    """An IPv4 or IPv6 packet, by the form of the addresses; the kernel fills IPv4's checksum."""
    if ":" in src:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl)
        return head + b"".join(socket.inet_pton(socket.AF_INET6, x) for x in (src, dst)) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, ttl, protocol, 0)
    head += socket.inet_aton(src) + socket.inet_aton(dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(src: str, dst: str, ports: tuple[int, int], payload: bytes, spoil: int = 0) -> bytes:
    """A UDP datagram; `spoil` is added to its checksum to make it wrong."""
    size = 8 + len(payload)
    body = struct.pack("!HHHH", *ports, size, 0) + payload
    right = checksum(_pseudo_header(src, dst, socket.IPPROTO_UDP, size) + body)
    return body[:6] + struct.pack("!H", (right + spoil) & 0xFFFF) + body[8:]


def tcp(
    src: str, dst: str, ports: tuple[int, int], flags: int, sequence: int = 1, spoil: int = 0
) -> bytes:
    """A TCP segment without payload."""
    body = struct.pack("!HHIIBBHHH", *ports, sequence, sequence, 5 << 4, flags, 8192, 0, 0)
    right = checksum(_pseudo_header(src, dst, socket.IPPROTO_TCP, 20) + body)
    return body[:16] + struct.pack("!H", (right + spoil) & 0xFFFF) + body[18:]


def sctp(ports: tuple[int, int]) -> bytes:
    """An SCTP packet with an empty INIT-like chunk; its CRC is left zero."""
    return struct.pack("!HHII", *ports, 0, 0) + struct.pack("!BBHIIHHI", 1, 0, 20, 1, 1, 1, 1, 1)


def echo(src: str, dst: str, identifier: int) -> bytes:
    """An ICMP or ICMPv6 echo request."""
    if ":" in src:
        body = struct.pack("!BBHHH", 128, 0, 0, identifier, 1) + bytes(24)
        whole = _pseudo_header(src, dst, socket.IPPROTO_ICMPV6, len(body)) + body
    else:
        body = whole = struct.pack("!BBHHH", 8, 0, 0, identifier, 1) + bytes(24)
    return body[:2] + struct.pack("!H", checksum(whole)) + body[4:]


def send(where: Namespace, packet: bytes, count: int = 1) -> None:
    """Send whole IP packets from `where`, routed by its kernel."""
    family = socket.AF_INET if packet[0] >> 4 == 4 else socket.AF_INET6
    to = socket.inet_ntop(family, packet[16:20] if family == socket.AF_INET else packet[24:40])
    with where.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for _ in range(count):
            sender.sendto(packet, (to, 0))


def send_frames(where: Namespace, device: str, frame: bytes, count: int = 1) -> None:
    """Send whole Ethernet frames out of `device`."""
    with where.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        for _ in range(count):
            sender.send(frame)


def arp_request(mac: bytes, sender_ip: str, target_ip: str) -> bytes:
    """A broadcast Ethernet frame that asks who has `target_ip`."""
    head = b"\xff" * 6 + mac + struct.pack("!H", 0x0806)
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    ends = mac + socket.inet_aton(sender_ip) + bytes(6) + socket.inet_aton(target_ip)
    return head + fixed + ends


def mac_of(where: Namespace, device: str) -> bytes:
    """Hardware address of a device."""
    words = where.ip(f"-o link show dev {device}").split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))
