"""What the kubelet, CNI and `ip netns` leave in directories."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson

from tracer.inventory.facts import CniResult, NamedNetns, PodLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

YOUNG_S = 5.0
"""A file that was changed so lately may be changing."""


def pod_logs(root: Path) -> tuple[PodLog, ...]:
    """Pods from `namespace_name_uid` directories; no name may hold an underscore."""
    logs = []
    for entry in _entries([root]):
        parts = entry.name.split("_")
        if len(parts) == len(("namespace", "name", "uid")):
            logs.append(PodLog(parts[2], parts[0], parts[1]))
    return tuple(logs)


def named_netns(roots: Sequence[Path], proc: Path) -> tuple[NamedNetns, ...]:
    """Namespaces that a file keeps; a file whose mount is gone (another device) is none."""
    try:
        nsfs = (proc / "self/ns/net").stat().st_dev
    except FileNotFoundError:
        return ()
    found = []
    for entry in _entries(roots):
        try:
            status = entry.stat()
        except FileNotFoundError:
            continue
        if status.st_dev == nsfs:
            found.append(NamedNetns(status.st_ino, str(entry)))
    return tuple(found)


def cni_results(roots: Sequence[Path]) -> tuple[tuple[CniResult, ...], tuple[str, ...], bool]:
    """(results, warnings, unfinished) of libcni's cache: one JSON file a container and network.

    libcni writes a file in place: what cannot be read of a young one is no warning, but
    `unfinished`. Its directory does not tell when it is whole.
    """
    results, warnings, unfinished = [], [], False
    for entry in _entries(roots):
        try:
            result = parse_cni(orjson.loads(entry.read_bytes()))
        except (FileNotFoundError, IsADirectoryError):
            continue
        except (ValueError, OSError) as error:
            if _is_young(entry):
                unfinished = True
            else:
                warnings.append(f"cni: {entry}: {error}; its addresses come from the kernel only")
            continue
        if result:
            results.append(result)
    return tuple(results), tuple(warnings), unfinished


def _is_young(entry: Path) -> bool:
    try:
        return abs(time.time() - entry.stat().st_mtime) < YOUNG_S
    except FileNotFoundError:
        return False


def parse_cni(cache: object) -> CniResult | None:
    """One `cniCacheV1` object (libcni 0.7 and newer); None for anything else."""
    if not isinstance(cache, dict) or cache.get("kind") != "cniCacheV1":
        return None
    arguments = dict(cache.get("cniArgs") or ())
    result = cache.get("result") or {}
    inside = (i["sandbox"] for i in result.get("interfaces") or () if i.get("sandbox"))
    return CniResult(
        container_id=cache.get("containerId", ""),
        netns_path=cache.get("netns") or next(inside, ""),
        addresses=tuple(ip["address"].partition("/")[0] for ip in result.get("ips") or ()),
        uid=arguments.get("K8S_POD_UID", ""),
        namespace=arguments.get("K8S_POD_NAMESPACE", ""),
        name=arguments.get("K8S_POD_NAME", ""),
    )


def stamps(roots: Iterable[Path]) -> tuple[int, ...]:
    """When each directory last gained or lost an entry: equal stamps, nothing to read."""
    found = []
    for root in roots:
        try:
            found.append(root.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def _entries(roots: Iterable[Path]) -> Iterable[Path]:
    for root in roots:
        try:
            yield from sorted(root.iterdir())
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
