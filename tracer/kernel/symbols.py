"""Kernel addresses → `symbol+0xoffset`, from /proc/kallsyms and /proc/modules."""

from __future__ import annotations

import time
from array import array
from pathlib import Path

import numpy as np

KALLSYMS = Path("/proc/kallsyms")
MODULES = Path("/proc/modules")
FUNCTION_KINDS = b"tTwW"
TEXT_BOUNDS = b"_stext\n", b"_etext\n"
AGAIN_S = 1.0
"""Least time between two looks at the modules: an address of no known text asks for one."""


class Symbols:
    """All functions of the kernel and its modules, sorted by address; ~4 MB for 120,000.

    Modules come and go while we run: after an address outside of all known text, both files are
    read once more if the modules have changed. What belongs to no text (a BPF program, say) stays
    a number.
    """

    def __init__(self, kallsyms: Path = KALLSYMS, modules: Path = MODULES) -> None:
        """Read the tables. Without CAP_SYSLOG the kernel shows zeros: then they stay empty."""
        self._kallsyms, self._modules = kallsyms, modules
        self._addresses = np.empty(0, np.uint64)
        self._begins = np.empty(0, np.uint32)
        self._names = b""
        """Of each address where its name begins in this, which has a name a line."""
        self._text: list[tuple[int, int]] = []
        self._loaded = ""
        self._looked_s = 0.0
        self._read()

    def _read(self) -> None:
        addresses, begins, names = array("Q"), array("L"), bytearray()
        bounds = dict.fromkeys(TEXT_BOUNDS, 0)
        with self._kallsyms.open("rb") as lines:  # a list of them all would be memory that stays
            for line in lines:
                digits, kind, name = line.split(None, 2)
                address = int(digits, 16)
                if not address or kind not in FUNCTION_KINDS:
                    continue
                addresses.append(address)
                begins.append(len(names))
                names += name
                if name in bounds:
                    bounds[name] = address
        unsorted = np.array(addresses, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._addresses, self._begins = unsorted[order], np.array(begins, np.uint32)[order]
        self._names = bytes(names)
        begin, end = bounds.values()
        self._text = [(begin, end)] if begin and end else []
        self._loaded = self._read_modules()
        self._text += [
            (int(row[5], 16), int(row[5], 16) + int(row[1]))
            for row in map(str.split, self._loaded.splitlines())
        ]
        self._looked_s = time.monotonic()

    def _read_modules(self) -> str:
        """/proc/modules: `name size refs by state 0xbase` a line; reference counts change often."""
        try:
            lines = self._modules.read_text().splitlines()
        except OSError:  # a kernel without modules
            return ""
        rows = (line.split() for line in lines)
        return "\n".join(" ".join((row[0], row[1], "-", "-", "-", row[5])) for row in rows)

    def _modules_changed(self) -> bool:
        if time.monotonic() - self._looked_s < AGAIN_S:
            return False
        self._looked_s = time.monotonic()
        return self._read_modules() != self._loaded

    def __len__(self) -> int:
        return len(self._addresses)

    def _in_text(self, address: int) -> bool:
        # Before the bounds of the kernel's text were in kallsyms, any symbol will do.
        return not self._text or any(begin <= address < end for begin, end in self._text)

    def name(self, address: int) -> str:
        """`symbol+0xoffset` (with ` [module]`), or the bare address when nothing is known."""
        if not self._in_text(address) and self._modules_changed():
            self._read()
        index = int(np.searchsorted(self._addresses, np.uint64(address), side="right")) - 1
        if index < 0 or not self._in_text(address):
            return f"0x{address:x}"
        offset = address - int(self._addresses[index])
        begin = int(self._begins[index])
        line = self._names[begin : self._names.index(b"\n", begin)]
        symbol, _, module = line.decode().partition("\t")
        return f"{symbol}+0x{offset:x}" + (f" {module}" if module else "")
