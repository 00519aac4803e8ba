"""Which network namespaces have our trace table: the node's and those of the chosen pods.

Socket and table of a namespace would keep it alive: both go as soon as it is seen to be gone.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.inventory.namespaces import run_in
from tracer.inventory.sysctl import netns_path
from tracer.netfilter import nfnl, nft_table, nft_trace
from tracer.netfilter.nft_table import Match, Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.analysis.selection import PodSelection
    from tracer.model import Node
    from tracer.netfilter.nft_trace import Visit

MAX_NAMESPACES = 64
"""That more are not covered is said."""
SO_MEMINFO, SK_MEMINFO_DROPS = 55, 8
_THREAD_NET, _LOGGERS = Path("/proc/thread-self/net"), Path("/proc/sys/net/netfilter/nf_log")
_LEGACY = (("ip_tables_names", "2"), ("ip6_tables_names", "10"))
"""Where xtables lists its tables, and the protocol family of their logger."""


class _Refused(Exception):  # noqa: N818 - no error: the namespace is read, not traced
    """Why the trace stays off in a namespace."""


@dataclass(slots=True)
class _Place:
    """What we hold in one namespace."""

    control: socket.socket
    events: socket.socket
    visits: nft_trace.Visits = field(default_factory=nft_trace.Visits)
    wanted: Wanted | None = None
    lost: int = 0


class TraceTables:
    """Keeps the trace table in the wanted namespaces, and takes what the kernel tells."""

    def __init__(self, selection: PodSelection, matches: Sequence[Match]) -> None:
        """Trace packets of the selected pods, if any are selected, that fit one of `matches`."""
        self._selection, self._matches = selection, tuple(matches)
        self._name = f"{nft_table.OWN}{os.getpid()}"
        self._places: dict[int, _Place] = {}
        self._refused: dict[int, str] = {}
        self._told: set[str] = set()
        self._looked: set[int] = set()
        self._lost = 0

    @property
    def descriptors(self) -> list[int]:
        """What epoll waits for."""
        return [place.events.fileno() for place in self._places.values()]

    @property
    def traced(self) -> frozenset[int]:
        """The namespaces where the trace is on."""
        return frozenset(self._places)

    @property
    def lost(self) -> int:
        """Trace messages that the kernel could not give us so far."""
        return self._lost + sum(place.lost for place in self._places.values())

    def update(self, node: Node) -> list[str]:
        """Follow the node: make, change and remove tables; returns warnings, each once."""
        wanted = namespaces_of(node, self._selection)
        for netns in self._places.keys() - set(wanted):
            self._leave(netns)
        addresses = self._addresses(node)
        warnings = []
        if len(wanted) > MAX_NAMESPACES:
            left_out = len(wanted) - MAX_NAMESPACES
            warnings.append(f"rules: {left_out} network namespaces are read, not traced: too many")
        for netns in wanted[:MAX_NAMESPACES]:
            path = netns_path(node.namespaces.get(netns), netns)
            if not path or netns in self._refused:
                continue
            try:
                self._cover(netns, path, addresses)
            except (OSError, _Refused) as error:
                self._refused[netns] = why = _why(error)
                warnings.append(f"rules of {_name(node, netns)} are read, not traced: {why}")
        new = [warning for warning in warnings if warning not in self._told]
        self._told.update(new)
        return new

    def leave_legacy(self, node: Node, netns: int) -> list[str]:
        """Look again at a namespace that has got iptables-legacy tables meanwhile; a warning."""
        path = netns_path(node.namespaces.get(netns), netns)
        if netns not in self._places or netns in self._looked or not path:
            return []
        self._looked.add(netns)
        try:
            run_in(path, netns, _check)
        except (OSError, _Refused) as error:
            self._leave(netns)
            self._refused[netns] = why = _why(error)
            return [f"rules of {_name(node, netns)} are read, no longer traced: {why}"]
        return []

    def take(self) -> Iterator[tuple[int, Visit]]:
        """(netns, visit) for each base chain that a packet has left since the last call."""
        for netns, place in self._places.items():
            while True:
                try:
                    data = place.events.recv(nfnl.RECEIVE_BYTES)
                except BlockingIOError:
                    break
                except OSError:  # ENOBUFS: some were lost; what waits can still be read
                    place.lost = _drops(place.events)
                    continue
                for visit in place.visits.add(data):
                    if not nft_table.is_ours(visit.table):
                        yield netns, visit

    def close(self) -> None:
        """Remove every table of ours."""
        for netns in list(self._places):
            self._leave(netns)

    def _addresses(self, node: Node) -> frozenset[str] | None:
        if self._selection.everything:
            return None
        return frozenset(
            address
            for pod in node.pods.values()
            if self._selection.matches(pod)
            for address in pod.addresses
        )

    def _cover(self, netns: int, path: str, addresses: frozenset[str] | None) -> None:
        place = self._places.get(netns)
        if place is None:
            place = _Place(*run_in(path, netns, _open))
        try:
            bridge = nft_table.has_tables(place.control, nft_table.NFPROTO_BRIDGE)
            devices = nft_table.ingress_devices(place.control)
            before = place.wanted
            bridge = bridge or bool(before and before.bridge)
            wanted = Wanted(self._matches, addresses, bridge, devices)
            if wanted != before:
                place.wanted = _installed(place.control, self._name, wanted, before)
        except OSError:
            place.control.close()
            place.events.close()
            self._places.pop(netns, None)
            raise
        self._places[netns] = place

    def _leave(self, netns: int) -> None:
        place = self._places.pop(netns)
        self._lost += _drops(place.events)
        # First the table: once nothing is marked, no more events come.
        place.control.close()
        place.events.close()


def namespaces_of(node: Node, selection: PodSelection) -> list[int]:
    """The node's first, then those of the chosen pods; without a choice all that live."""
    living = [netns for netns, namespace in node.namespaces.items() if not namespace.gone]
    if not selection.everything:
        chosen = {
            netns for netns, uid in node.pod_by_netns.items() if selection.matches(node.pods[uid])
        }
        living = [netns for netns in living if netns in chosen or netns == node.netns]
    return sorted(living, key=lambda netns: netns != node.netns)


def _installed(control: socket.socket, name: str, wanted: Wanted, before: Wanted | None) -> Wanted:
    """Install the table; what of it the kernel took."""
    try:
        nft_table.install(control, name, wanted, before)
    except OSError:
        if not wanted.devices:
            raise
        # A device may have gone since it was listed: what dies at the others' is read.
        wanted = replace(wanted, devices=frozenset())
        nft_table.install(control, name, wanted, before)
    return wanted


def _check() -> None:
    """Raise _Refused where a marked packet would be written to the kernel's log."""
    for tables, family in _LEGACY:
        with suppress(OSError):
            logger = _LOGGERS.joinpath(family).read_text().strip()
            if _THREAD_NET.joinpath(tables).read_text().strip() and logger != "NONE":
                # ipt_do_table logs every rule that a marked packet passes.
                raise _Refused("its iptables-legacy tables would log each traced packet")


def _open() -> tuple[socket.socket, socket.socket]:
    """Both sockets, in the calling thread's namespace."""
    _check()
    return nfnl.open_socket(), nft_trace.open_events()


def _drops(events: socket.socket) -> int:
    """Messages that found the socket's buffer full."""
    counts = events.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
    numbers = struct.unpack(f"={len(counts) // 4}I", counts)
    return int(numbers[SK_MEMINFO_DROPS]) if len(numbers) > SK_MEMINFO_DROPS else 1


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{(error.strerror or str(error)).lower()} (5.12 and later know owned tables)"
    return str(error)


def _name(node: Node, netns: int) -> str:
    if netns == node.netns:
        return "the node"
    pod = node.pods.get(node.pod_by_netns.get(netns, ""))
    namespace = node.namespaces.get(netns)
    return f"pod {pod.key}" if pod else f"netns {(namespace and namespace.name) or netns}"
