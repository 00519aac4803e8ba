"""What a program may leave behind in a kernel, listed so that before and after can be compared."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.shell import run


def listing() -> dict[str, set[str]]:
    """BPF objects, nft rules, namespaces and pinned files; ids included, so a swap shows."""
    bpf = {
        kind: {f"{each['id']} {each.get('name') or each.get('type')}" for each in _bpf(kind)}
        for kind in ("prog", "map", "link")
    }
    pinned = {str(path) for path in Path("/sys/fs/bpf").rglob("*")}
    return {
        **bpf,
        "nft": set(run("nft", "list", "ruleset").splitlines()),
        "netns": set(run("ip", "netns", "list").splitlines()),
        "pinned": pinned,
        "tmp": {str(path) for path in Path(tempfile.gettempdir()).glob("*tracer*")},
    }


def _bpf(kind: str) -> list[dict[str, Any]]:
    for _ in range(10):
        found = json.loads(run("bpftool", "--json", kind, "show", check=False) or "[]")
        if isinstance(found, list):
            return found
        time.sleep(0.05)  # an object vanished while bpftool walked the list: walk again
    raise AssertionError(f"bpftool {kind} show: {found}")


def added(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there now and was not `before`, kinds without news left out."""
    now = listing()
    return {kind: now[kind] - before[kind] for kind in before if now[kind] - before[kind]}
