"""Kernel addresses → `symbol+0xoffset`, from /proc/kallsyms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

KALLSYMS = Path("/proc/kallsyms")
FUNCTION_KINDS = b"tTwW"


class Symbols:
    """All functions of the kernel and its modules, sorted by address; ~10 MB for 120,000."""

    def __init__(self, path: Path = KALLSYMS) -> None:
        """Read the table. Without CAP_SYSLOG the kernel shows zeros: then it stays empty."""
        addresses: list[int] = []
        names: list[bytes] = []
        for line in path.read_bytes().splitlines():
            address, kind, name = line.split(None, 2)
            if kind in FUNCTION_KINDS and address.strip(b"0"):
                addresses.append(int(address, 16))
                names.append(name)
        self._addresses = np.array(addresses, np.uint64)
        order = np.argsort(self._addresses, kind="stable")
        self._addresses = self._addresses[order]
        self._names = np.array(names, dtype=bytes if not names else None)[order]

    def __len__(self) -> int:
        return len(self._addresses)

    def name(self, address: int) -> str:
        """`symbol+0xoffset` (with ` [module]`), or the bare address when nothing is known."""
        index = int(np.searchsorted(self._addresses, np.uint64(address), side="right")) - 1
        if index < 0:
            return f"0x{address:x}"
        offset = address - int(self._addresses[index])
        symbol, _, module = self._names[index].decode().partition("\t")
        return f"{symbol}+0x{offset:x}" + (f" {module}" if module else "")
