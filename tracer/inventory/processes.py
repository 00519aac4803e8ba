"""Every process's netns and cgroup, straight from /proc.

psutil knows neither, and would only list /proc for us: `os` does that without the import.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracer.inventory.cgroups import pod_and_container, v2_path
from tracer.inventory.facts import Process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(slots=True)
class Reader:
    """Reads processes; remembers what a cgroup's text means, for it repeats."""

    proc: Path
    cgroups: Sequence[Path]
    _meanings: dict[str, tuple[str, str, int | None]] = field(default_factory=dict)

    def read(self) -> tuple[tuple[Process, ...], tuple[str, ...]]:
        """Read (processes, warnings). Processes that end meanwhile are left out."""
        processes = []
        seen: dict[str, tuple[str, str, int | None]] = {}
        hidden = 0
        for pid in self._pids():
            try:
                with open(f"{self.proc}/{pid}/cgroup", encoding="utf-8") as file:  # noqa: PTH123 - pathlib doubles the cost of a thousand small reads
                    text = file.read()
                netns = read_inode(f"{self.proc}/{pid}/ns/net")
            except (FileNotFoundError, ProcessLookupError):
                continue
            uid, container, cgroup = seen[text] = seen.get(text) or self._meaning(text)
            # Init and the node's own are hidden from many, and no pod loses anything by that.
            hidden += netns is None and bool(uid or container)
            processes.append(Process(int(pid), netns, uid, container, cgroup))
        self._meanings = seen
        return tuple(processes), (_warning(hidden),) if hidden else ()

    def _pids(self) -> list[str]:
        return [name for name in os.listdir(self.proc) if name.isdigit()]  # noqa: PTH208 - same

    def _meaning(self, text: str) -> tuple[str, str, int | None]:
        if known := self._meanings.get(text):
            return known
        uid, container = pod_and_container(text)
        return uid, container, self._cgroup_id(v2_path(text)) if uid else None

    def _cgroup_id(self, path: str) -> int | None:
        for root in self.cgroups:
            try:
                if (root / "cgroup.procs").exists():
                    return (root / path.lstrip("/")).stat().st_ino
            except FileNotFoundError:
                continue  # removed meanwhile, or outside of our cgroup namespace
        return None


def _warning(hidden: int) -> str:
    # Root may not look at who holds a capability that it lacks, nor where an LSM forbids it.
    why = "without root" if os.geteuid() else "although we are root: ptrace access is denied"
    return (
        f"proc: the netns of {hidden} containers' processes is hidden {why}; pods may lack theirs"
    )


def read_inode(path: str) -> int | None:
    """Read the inode a /proc/PID/ns link names (`net:[4026531840]`); None without the right to."""
    try:
        return int(os.readlink(path).partition("[")[2].rstrip("]"))  # noqa: PTH115 - same
    except PermissionError:
        return None
