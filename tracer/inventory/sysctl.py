"""Sysctls of any network namespace, found by name or inode: evidence for explanations."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2.netns import setns

from tracer.errors import TracerError
from tracer.inventory.facts import Paths

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracer.model import Namespace, Node

PROC_SYS = Path("/proc/sys")


def read_sysctls(node: Node, netns: int, names: Iterable[str]) -> dict[str, str]:
    """`net.ipv4.ip_forward` → `0`, as seen in `netns`; what cannot be read is left out.

    /proc/sys/net shows the namespace of the thread that reads it, so a thread of its own enters
    `netns` and ends there.
    """
    found: dict[str, str] = {}
    path = netns_path(node.namespaces.get(netns), netns)

    def work() -> None:
        if path and netns != Path("/proc/thread-self/ns/net").stat().st_ino:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd)
            finally:
                os.close(fd)
        found.update(_read(names))

    if not path:
        return found
    reader = threading.Thread(target=_quietly, args=(work,), name="sysctl-reader", daemon=True)
    reader.start()
    reader.join()
    return found


def _quietly(work: object) -> None:
    """Evidence is optional: a namespace that vanished meanwhile has none."""
    try:
        work()  # type: ignore[operator]
    except OSError:
        return


def netns_path(namespace: Namespace | None, netns: int) -> str:
    """Find a path that opens the namespace; empty when it is gone."""
    if namespace is None:
        return ""
    paths = [f"{folder}/{namespace.name}" for folder in Paths().named_netns if namespace.name]
    if namespace.pid is not None:
        paths.append(f"/proc/{namespace.pid}/ns/net")
    for path in ("/proc/thread-self/ns/net", *paths):
        try:
            if Path(path).stat().st_ino == netns:
                return path
        except OSError:
            continue
    return ""


def find_netns(text: str) -> int:
    """A namespace's name (under /run/netns or /run/docker/netns) or inode → its inode."""
    if text.isdecimal():
        return int(text)
    for folder in Paths().named_netns:
        try:
            return (folder / text).stat().st_ino
        except OSError:
            continue
    raise TracerError(f"netns '{text}': no such network namespace", "ip netns lists the named ones")


def _read(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        # A device's name may hold dots: after `conf.` or `neigh.` it is one path component.
        for group in (".conf.", ".neigh."):
            if group in name:
                head, rest = name.split(group, 1)
                device, _, leaf = rest.rpartition(".")
                parts = [*head.split("."), group.strip("."), device, leaf]
                break
        else:
            parts = name.split(".")
        try:
            found[name] = PROC_SYS.joinpath(*parts).read_text().strip()
        except OSError:
            continue
    return found
