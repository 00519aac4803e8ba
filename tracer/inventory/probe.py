"""Which sources of pod names this node has, and what is lost without each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tracer.inventory.cri import CriError, NoCriError, Runtime
from tracer.inventory.facts import ENDPOINT
from tracer.inventory.processes import Reader
from tracer.model import Finding, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracer.inventory.facts import Paths


def findings(paths: Paths) -> Iterator[Finding]:
    """Look at CRI runtimes, the kubelet's logs, CNI's results, cgroups and processes."""
    yield from cri(paths.cri_sockets)
    yield pod_logs(paths.pod_logs)
    yield cni_results(paths.cni_results)
    yield cgroups(paths.cgroups)
    yield processes(paths.proc, paths.cgroups)


def cri(sockets: tuple[Path, ...]) -> Iterator[Finding]:
    """Ask every socket there is; one degraded finding where there is none."""
    present = [socket for socket in sockets if _exists(socket)]
    yield from map(_runtime, present)
    if not present:
        lost = f"none of {', '.join(map(str, sockets))}: no labels, no sandbox ids"
        hint = f"on a node with Kubernetes, name its socket in {ENDPOINT}"
        yield Finding("cri", State.DEGRADED, lost, hint)


def _runtime(socket: Path) -> Finding:
    if not os.access(socket, os.W_OK):
        lost = f"{socket}: not permitted: no labels, no sandbox ids"
        return Finding("cri", State.DEGRADED, lost, "run it with sudo")
    runtime = Runtime(socket)
    try:
        count = len(runtime.sandboxes())
    except NoCriError as error:
        hint = "is the CRI plugin disabled in containerd's config.toml?"
        return Finding("cri", State.DEGRADED, f"{error}: no labels, no sandbox ids", hint)
    except CriError as error:
        hint = "is the runtime up?"
        return Finding("cri", State.DEGRADED, f"{error}: no labels, no sandbox ids", hint)
    finally:
        runtime.close()
    return Finding("cri", State.OK, f"{socket}: {runtime.name}, {count} pod sandboxes")


def pod_logs(directory: Path) -> Finding:
    """Look for names of pods by uid, which need no socket."""
    try:
        count = sum(1 for _ in directory.iterdir())
    except FileNotFoundError:
        return Finding("pod logs", State.OK, f"{directory}: absent, no kubelet here")
    except PermissionError as error:
        lost = f"{directory}: {error.strerror}: pods without CRI stay without name"
        return Finding("pod logs", State.DEGRADED, lost, "run it with sudo")
    return Finding("pod logs", State.OK, f"{directory}: {count} pods")


def cni_results(directories: tuple[Path, ...]) -> Finding:
    """Look for addresses and names that CNI plugins left behind."""
    for directory in directories:
        try:
            count = sum(1 for _ in directory.iterdir())
        except FileNotFoundError:
            continue
        except PermissionError as error:
            lost = f"{directory}: {error.strerror}: pods without CRI stay without address"
            return Finding("cni", State.DEGRADED, lost, "run it with sudo")
        return Finding("cni", State.OK, f"{directory}: {count} results")
    return Finding("cni", State.OK, "no result cache")


def cgroups(roots: tuple[Path, ...]) -> Finding:
    """Look for cgroup v2, which tells the host-network pods of a node apart."""
    for root in roots:
        if (root / "cgroup.procs").exists():
            kind = "hybrid v1 and v2" if root.name == "unified" else "v2"
            return Finding("cgroups", State.OK, f"{kind}, {root}")
    lost = "no cgroup v2: packets of host-network pods are the node's"
    return Finding("cgroups", State.DEGRADED, lost, "boot with systemd.unified_cgroup_hierarchy=1")


def processes(proc: Path, roots: tuple[Path, ...]) -> Finding:
    """Tell whether the network namespaces of the pods' processes can be seen."""
    found, _ = Reader(proc, roots).read()
    hidden = sum(1 for process in found if process.netns is None)
    detail = f"{len(found)}, the network namespace of {hidden} is hidden"
    if any(process.uid for process in found if process.netns is None):
        lost = f"{detail}, of pods among them: their devices may stay without pod"
        ours = "let tracer have every capability that the containers have"
        hint = "run it with sudo" if os.geteuid() else ours
        return Finding("processes", State.DEGRADED, lost, hint)
    return Finding("processes", State.OK, detail)


def _exists(socket: Path) -> bool:
    """Whether it exists, or may: a directory on the way can be closed to us."""
    try:
        return socket.exists()
    except PermissionError:
        return True
