"""Asks every source but the CRI, remembering what need not be asked again."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracer.inventory import files, namespaces, rtnl
from tracer.inventory.facts import CniResult, Facts, Paths, PodLog, View
from tracer.inventory.processes import Reader, read_inode
from tracer.inventory.settling import Settling

if TYPE_CHECKING:
    from collections.abc import Collection

    from tracer.inventory.facts import NamedNetns, Process


@dataclass(slots=True)
class Collector:
    """The local sources. One thread at a time may use it."""

    paths: Paths
    sources: Collection[str]
    views: dict[int, View] = field(default_factory=dict)
    """netns inode → its devices; kept current by `follow`, forgotten by `forget`."""
    stamps: tuple[int, ...] = ()
    """Directory times of the last `collect`; compare with `read_stamps`. None: read them again."""
    settling: Settling = field(default_factory=Settling)
    """Namespaces too new to be trusted; says when to `collect` again for their sake."""
    is_deaf: bool = False
    """Whether events tell of the node's own namespace only."""
    _reader: Reader | None = None
    _logs: tuple[PodLog, ...] = ()
    _cni: tuple[CniResult, ...] = ()
    _warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def node_netns(self) -> tuple[int, str]:
        """(inode, path) of the node's netns: init's, or ours where init's is hidden."""
        for process in ("1", "self"):
            path = f"{self.paths.proc}/{process}/ns/net"
            try:
                if (inode := read_inode(path)) is not None:
                    return inode, path
            except FileNotFoundError:
                continue
        return 0, ""

    def collect(self) -> Facts:
        """Everything known now, without the CRI's part."""
        self._read_directories()
        processes = self._processes()
        named = self._named()
        node, path = self.node_netns()
        if "netlink" in self.sources:
            self._read_views(node, self._handles(node, path, processes, named))
        return Facts(
            node_name=socket.gethostname(),
            node_netns=node,
            pod_logs=self._logs,
            cni_results=self._cni,
            processes=processes,
            named=named,
            views=self.views,
            warnings=tuple(w for some in self._warnings.values() for w in some),
        )

    def follow(self, events: socket.socket) -> bool:
        """Apply every waiting netlink event; True where one changed what we know."""
        node, _ = self.node_netns()
        changed = False
        while True:
            try:
                data, notes, _, _ = events.recvmsg(rtnl.RECEIVE_BYTES, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return changed
            except OSError:  # ENOBUFS: events were lost, so every view may be stale
                self.forget()
                return True
            view = self.views.get(self._origin(node, notes))
            for kind, offset in rtnl.messages(data):
                changed |= view is None or rtnl.apply(view, kind, data, offset)

    def open_events(self) -> socket.socket | None:
        """Open what `follow` reads; None without netlink."""
        inode, path = self.node_netns()
        if "netlink" not in self.sources or not path:
            return None
        events, self.is_deaf = namespaces.open_events(path, inode)
        lost = "netlink: no CAP_NET_BROADCAST; changes inside pods are seen late"
        self._warnings["events"] = (lost,) if self.is_deaf else ()
        return events

    def forget(self) -> None:
        """Read every namespace anew the next time."""
        self.views.clear()

    def read_stamps(self) -> tuple[int, ...]:
        """When the directories of names last changed: cheap enough to look every second."""
        paths = self.paths
        return files.stamps((paths.pod_logs, *paths.cni_results, *paths.named_netns))

    def _origin(self, node: int, notes: list[tuple[int, int, bytes]]) -> int:
        """Tell which netns an event comes from; 0 where its id is not known yet."""
        for level, kind, value in notes:
            if (level, kind) == (rtnl.SOL_NETLINK, rtnl.NETLINK_LISTEN_ALL_NSID):
                nsids = self.views[node].nsids if node in self.views else {}
                return nsids.get(struct.unpack("=i", value)[0], 0)
        return node

    def _read_directories(self) -> None:
        stamps = self.read_stamps()
        if stamps == self.stamps:
            return
        self.stamps = stamps
        if "logs" in self.sources:
            self._logs = files.pod_logs(self.paths.pod_logs)
        if "cni" in self.sources:
            self._cni, self._warnings["cni"], unfinished = files.cni_results(self.paths.cni_results)
            if unfinished:
                self.stamps = ()

    def _processes(self) -> tuple[Process, ...]:
        if not {"proc", "cgroup"} & set(self.sources):
            return ()
        if self._reader is None:
            self._reader = Reader(self.paths.proc, self.paths.cgroups)
        processes, self._warnings["proc"] = self._reader.read()
        return processes

    def _named(self) -> tuple[NamedNetns, ...]:
        if "netns" not in self.sources:
            return ()
        return files.named_netns(self.paths.named_netns, self.paths.proc)

    def _handles(
        self, node: int, path: str, processes: tuple[Process, ...], named: tuple[NamedNetns, ...]
    ) -> dict[int, str]:
        """Map each netns inode to a path that opens it, the node's own first."""
        handles = {node: path}
        handles |= {name.inode: name.path for name in named if name.inode != node}
        for process in processes:
            if process.netns is not None:
                handles.setdefault(process.netns, f"{self.paths.proc}/{process.pid}/ns/net")
        return handles

    def _read_views(self, node: int, handles: dict[int, str]) -> None:
        for inode in self.views.keys() - handles.keys():
            del self.views[inode]
        heard = self._heard(node, handles)
        trusted = heard & self.views.keys() - self.settling.births.keys()
        stale = {inode: path for inode, path in handles.items() if inode not in trusted}
        self._warnings["netlink"] = ()
        if stale:
            reading = namespaces.read_views(stale, node, handles[node])
            self._warnings["netlink"] = reading.warnings
            self.views.update(reading.views)
            if node in self.views:
                self.views[node].nsids.update(reading.nsids)
            namespaces.join_unknown(self.views, handles)
        unheard = handles.keys() - self._heard(node, handles)
        self.settling.look(unheard, handles, time.monotonic())

    def _heard(self, node: int, handles: Collection[int]) -> set[int]:
        """Tell whose changes `follow` is told of: the node's, and those it has an id for.

        All others are read at each look.
        """
        if node not in self.views or self.is_deaf:
            return {node}
        ours = self.views[node]
        ours.nsids = {nsid: inode for nsid, inode in ours.nsids.items() if inode in handles}
        return {node, *ours.nsids.values()}
