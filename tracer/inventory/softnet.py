"""How many packets the node has received, in all its network namespaces."""

from __future__ import annotations

from pathlib import Path

SOFTNET = Path("/proc/net/softnet_stat")
"""A line for each CPU that is online; the first number, `processed`, counts calls of
__netif_receive_skb_core: one for each device that takes the packet."""


def receptions(source: Path = SOFTNET) -> tuple[int, ...]:
    """Packets received by each CPU since boot, modulo 2^32; empty where that is not told."""
    try:
        return tuple(int(line.split()[0], 16) for line in source.read_text().splitlines())
    except OSError:
        return ()
