"""What each source tells, before it is merged: passive data, one class a kind of fact."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES = ("cri", "logs", "cgroup", "cni", "netns", "proc", "netlink")
"""Every source there is; each is optional."""

CRI_SOCKETS = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/k3s/containerd/containerd.sock"),
    Path("/var/run/crio/crio.sock"),
)
ENDPOINT = "CONTAINER_RUNTIME_ENDPOINT"
"""The variable by which crictl is told of a runtime in another place."""


def cri_sockets(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Choose the sockets to try: the one that the environment names, or the usual ones."""
    endpoint = environment.get(ENDPOINT, "").removeprefix("unix://")
    return (Path(endpoint),) if endpoint else CRI_SOCKETS


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the sources live; tests point them elsewhere."""

    proc: Path = Path("/proc")
    cgroups: tuple[Path, ...] = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    """Where cgroup v2 may be mounted; the one that holds `cgroup.procs` is it."""
    pod_logs: Path = Path("/var/log/pods")
    cni_results: tuple[Path, ...] = (
        Path("/var/lib/cni/results"),
        Path("/var/lib/cni/cache/results"),
    )
    named_netns: tuple[Path, ...] = (Path("/run/netns"), Path("/run/docker/netns"))
    cri_sockets: tuple[Path, ...] = field(default_factory=lambda: cri_sockets(os.environ))


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One pod sandbox, as a CRI runtime tells it."""

    id: str
    uid: str
    namespace: str
    name: str
    runtime: str
    created_ns: int = 0
    ready: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    host_network: bool = False
    pid: int | None = None
    netns_path: str = ""


@dataclass(frozen=True, slots=True)
class PodLog:
    """One directory of /var/log/pods: `namespace_name_uid`."""

    uid: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class CniResult:
    """One network that CNI gave to one container (or sandbox)."""

    container_id: str
    netns_path: str = ""
    addresses: tuple[str, ...] = ()
    uid: str = ""
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its netns, and the pod and container its cgroup names."""

    pid: int
    netns: int | None
    """None where the process belongs to somebody else and we are not root."""
    uid: str = ""
    container_id: str = ""
    cgroup: int | None = None
    """cgroup v2 id; None without cgroup v2 or outside of any pod or container."""


@dataclass(frozen=True, slots=True)
class NamedNetns:
    """A namespace kept by a file under /run/netns or /run/docker/netns."""

    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class Link:
    """One device as rtnetlink tells it; `link` and `link_nsid` are IFLA_LINK, IFLA_LINK_NETNSID."""

    ifindex: int
    name: str
    kind: str = ""
    mac: str = ""
    master: int | None = None
    link: int | None = None
    link_nsid: int | None = None
    """None where the other end is in the same netns."""


@dataclass(slots=True)
class View:
    """The devices of one netns, kept current by netlink events (the one mutable fact)."""

    links: dict[int, Link] = field(default_factory=dict)
    addresses: dict[int, dict[str, None]] = field(default_factory=dict)
    """By ifindex, in the kernel's order (a dict is an ordered set)."""
    nsids: dict[int, int] = field(default_factory=dict)
    """This namespace's ids of its neighbours → their inodes."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything known at one moment, source by source."""

    node_name: str
    node_netns: int
    sandboxes: tuple[Sandbox, ...] = ()
    pod_logs: tuple[PodLog, ...] = ()
    cni_results: tuple[CniResult, ...] = ()
    processes: tuple[Process, ...] = ()
    named: tuple[NamedNetns, ...] = ()
    views: Mapping[int, View] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
