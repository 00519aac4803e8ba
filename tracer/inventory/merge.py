"""Facts of all sources → one `Node` (pure).

Who wins: the kernel's live state (processes, netlink) over CRI over CNI's cache over log
directories; of several sandboxes of one pod, the ready one, then the newest.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.model import Device, DeviceKey, Namespace, Node, Pod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.inventory.facts import CniResult, Facts, PodLog, Process, Sandbox, View

PAIRED_KINDS = ("veth", "netkit")


@dataclass(slots=True)
class _Evidence:
    """What every source says of one pod."""

    sandboxes: list[Sandbox] = field(default_factory=list)
    logs: list[PodLog] = field(default_factory=list)
    cni: list[CniResult] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Namespaces:
    """Which netns a process or a path leads to, and what is in it."""

    node: int
    by_pid: Mapping[int, int]
    by_path: Mapping[str, int]
    views: Mapping[int, View]


def merge(facts: Facts) -> Node:
    """Make the `Node` of what is there now; `version` 0, nobody gone."""
    devices = _devices(facts.views)
    spaces = _Namespaces(
        facts.node_netns,
        {p.pid: p.netns for p in facts.processes if p.netns is not None},
        {_path(named.path): named.inode for named in facts.named},
        facts.views,
    )
    pods = {uid: _pod(uid, seen, spaces) for uid, seen in _evidence(facts).items()}
    pod_by_netns = {
        pod.netns: uid
        for uid, pod in pods.items()
        if pod.netns is not None and not pod.host_network
    }
    return Node(
        name=facts.node_name,
        netns=facts.node_netns,
        pods=pods,
        namespaces=_namespaces(facts),
        devices=devices,
        pod_by_netns=pod_by_netns,
        pod_by_device=_by_device(devices, pod_by_netns),
        pod_by_address=_by_address(devices, pods),
        pod_by_cgroup={p.cgroup: p.uid for p in facts.processes if p.uid and p.cgroup is not None},
        warnings=facts.warnings,
    )


def _evidence(facts: Facts) -> dict[str, _Evidence]:
    found: dict[str, _Evidence] = defaultdict(_Evidence)
    for sandbox in facts.sandboxes:
        found[sandbox.uid].sandboxes.append(sandbox)
    for process in facts.processes:
        if process.uid:
            found[process.uid].processes.append(process)
    owner = {box.id: box.uid for box in facts.sandboxes}
    owner |= {p.container_id: p.uid for p in facts.processes if p.container_id and p.uid}
    for result in facts.cni_results:
        uid = owner.get(result.container_id)
        if uid in found:  # the cache outlives its pods: it may add, not create
            found[uid].cni.append(result)
    for log in facts.pod_logs:
        # So do log directories; without a runtime's word, a process must vouch for the pod.
        if log.uid in found:
            found[log.uid].logs.append(log)
    for seen in found.values():
        seen.sandboxes.sort(key=lambda box: (box.ready, box.created_ns), reverse=True)
    return dict(found)


def _pod(uid: str, seen: _Evidence, spaces: _Namespaces) -> Pod:
    box = seen.sandboxes[0] if seen.sandboxes else None
    ready = box.ready if box else bool(seen.processes)
    netns = _netns(box, seen, spaces) if ready else None
    host = (box is not None and box.host_network) or netns == spaces.node
    view = None if host or netns is None else spaces.views.get(netns)
    named = next((n for n in (box, *seen.logs, *seen.cni) if n and n.name), None)
    return Pod(
        uid=uid,
        namespace=named.namespace if named else "",
        name=named.name if named else "",
        netns=spaces.node if host else netns,
        host_network=host,
        addresses=_addresses(box, seen, view) if ready and not host else (),
        labels=box.labels if box else {},
        sandbox_id=box.id if box else next((c.container_id for c in seen.cni), ""),
        runtime=box.runtime if box else "",
        ready=ready,
        sources=_sources(seen, view, netns in spaces.by_path.values()),
    )


def _netns(box: Sandbox | None, seen: _Evidence, spaces: _Namespaces) -> int | None:
    living = [p for p in seen.processes if p.netns is not None]
    pause = next((p.netns for p in living if box and p.container_id == box.id), None)
    if pause is not None:
        return pause
    if living:
        return Counter(p.netns for p in living).most_common(1)[0][0]
    if box and box.pid is not None and box.pid in spaces.by_pid:
        return spaces.by_pid[box.pid]
    paths = [box.netns_path if box else "", *(result.netns_path for result in seen.cni)]
    return next((spaces.by_path[_path(p)] for p in paths if _path(p) in spaces.by_path), None)


def _addresses(box: Sandbox | None, seen: _Evidence, view: View | None) -> tuple[str, ...]:
    """Take the kernel's where its namespace has any, in the runtime's order; else as told."""
    told = dict.fromkeys(
        _canonical(address)
        for address in (
            *(box.addresses if box else ()),
            *(a for c in seen.cni for a in c.addresses),
        )
    )
    told_by_view = view.addresses.values() if view else ()
    held = dict.fromkeys(a for some in told_by_view for a in some if is_routable(a))
    if not held:  # not read, or read while it was being set up
        return tuple(told)
    return tuple(a for a in told if a in held) + tuple(a for a in held if a not in told)


def _sources(seen: _Evidence, view: View | None, named: bool) -> tuple[str, ...]:  # noqa: FBT001 - one fact among facts
    told = {
        "cri": seen.sandboxes,
        "logs": seen.logs,
        "cgroup": seen.processes,
        "cni": seen.cni,
        "netns": named,
        "proc": any(process.netns is not None for process in seen.processes),
        "netlink": view,
    }
    return tuple(source for source, fact in told.items() if fact)


def _namespaces(facts: Facts) -> dict[int, Namespace]:
    members: dict[int, Process] = {}
    for process in facts.processes:
        if process.netns is not None:
            known = members.get(process.netns)
            if known is None or (process.container_id and not known.container_id):
                members[process.netns] = process
    names = {named.inode: Path(named.path).name for named in facts.named}
    names[facts.node_netns] = "node"
    found = {}
    for inode in sorted({facts.node_netns, *names, *members, *facts.views}):
        member = members.get(inode)
        sources = {"netns": inode in names, "proc": member, "netlink": inode in facts.views}
        found[inode] = Namespace(
            inode=inode,
            name=names.get(inode, member.container_id[:12] if member else ""),
            pid=member.pid if member else None,
            sources=tuple(source for source, fact in sources.items() if fact),
        )
    return found


def _devices(views: Mapping[int, View]) -> dict[DeviceKey, Device]:
    peers: dict[DeviceKey, DeviceKey] = {}
    for inode, view in views.items():
        for link in view.links.values():
            if link.kind not in PAIRED_KINDS or link.link is None:
                continue
            other = inode if link.link_nsid is None else view.nsids.get(link.link_nsid)
            if other is not None:
                # Each end tells of the other, and often only one knows the other's netns.
                peers[inode, link.ifindex] = other, link.link
                peers[other, link.link] = inode, link.ifindex
    return {
        (inode, link.ifindex): Device(
            netns=inode,
            ifindex=link.ifindex,
            name=link.name,
            kind=link.kind,
            mac=link.mac,
            addresses=tuple(view.addresses.get(link.ifindex, ())),
            peer=peers.get((inode, link.ifindex)),
            master=link.master,
        )
        for inode, view in views.items()
        for link in view.links.values()
    }


def _by_device(
    devices: Mapping[DeviceKey, Device], pod_by_netns: Mapping[int, str]
) -> dict[DeviceKey, str]:
    found: dict[DeviceKey, str] = {}
    for key, device in devices.items():
        if uid := pod_by_netns.get(device.netns):
            found[key] = uid
            if device.peer:
                found.setdefault(device.peer, uid)
    return found


def _by_address(devices: Mapping[DeviceKey, Device], pods: Mapping[str, Pod]) -> dict[str, str]:
    holders: dict[str, set[int | str]] = defaultdict(set)
    for device in devices.values():
        for address in device.addresses:
            holders[address].add(device.netns)
    found = {}
    for uid, pod in pods.items():
        for address in pod.addresses:
            holders[address].add(uid if pod.netns is None else pod.netns)
            found[address] = uid
    return {address: uid for address, uid in found.items() if len(holders[address]) == 1}


@lru_cache(maxsize=4096)
def is_routable(address: str) -> bool:
    """Neither loopback nor link-local: an address that can tell one namespace from another."""
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local)


@lru_cache(maxsize=4096)
def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _path(path: str) -> str:
    """/var/run is /run everywhere that matters, and runtimes name either."""
    return path.removeprefix("/var")
