"""Addresses between the 16 bytes of the records and the text of the model."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address

MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4-mapped address (RFC 4291 2.5.5.2), as the BPF side writes IPv4."""


@lru_cache(maxsize=65536)
def address_text(mapped: bytes) -> str:
    """16 bytes → canonical text; IPv4-mapped ones as IPv4."""
    address = IPv6Address(mapped)
    return str(address.ipv4_mapped or address)


def address_bytes(text: str) -> bytes:
    """Canonical text → 16 bytes; ValueError when it is no address."""
    packed = ip_address(text).packed
    return packed if len(packed) == len(MAPPED) + 4 else MAPPED + packed
