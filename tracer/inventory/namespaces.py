"""The devices of every network namespace, and how they are joined.

`setns` is called only in threads made for it, which end without coming back: no thread of
anybody else ever changes its namespace.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pyroute2.netns import setns

from tracer.inventory import rtnl

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

    from tracer.inventory.facts import View

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Reading:
    """What one round through namespaces found."""

    views: dict[int, View] = field(default_factory=dict)
    """netns inode → its devices."""
    nsids: dict[int, int] = field(default_factory=dict)
    """The node's id of a namespace → its inode; only those with an id can be heard."""
    failures: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be read, in one line; empty where all could."""
        if not self.failures:
            return ()
        text = f"netlink: {len(self.failures)} namespaces could not be read ({self.failures[0]})"
        return (f"{text}; their devices and addresses are unknown",)


def read_views(handles: Mapping[int, str], node: int, node_path: str) -> Reading:
    """Read the devices of each handle (netns inode → path to open).

    A namespace that ended meanwhile, or whose path now leads to another, is left out.
    """
    reading = Reading()

    def work() -> None:
        with _opened(node_path, node) as fd, _socket_in(node_path, node) as asking:
            for inode, path in handles.items():
                try:
                    # The id first: what changes after it is heard, what changed before is read.
                    if inode != node and (nsid := _read_nsid(asking, path, inode)) is not None:
                        reading.nsids[nsid] = inode
                    with _socket_in(path, inode) as sock:
                        reading.views[inode] = rtnl.read_view(sock, fd, node)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                except OSError as error:
                    reading.failures.append(f"{path}: {os.strerror(error.errno or 0)}")

    try:
        _in_thread(work)
    except OSError as error:
        reading.failures.append(f"{node_path}: {os.strerror(error.errno or 0)}")
    return reading


def join_unknown(views: Mapping[int, View], handles: Mapping[int, str]) -> None:
    """Find the inodes behind namespace ids that are not the node's (pod to pod veths).

    Asks only for namespaces that hold a matching other end, so on most nodes for none.
    """
    wanted = {
        inode: ends for inode, view in views.items() if (ends := _candidates(inode, view, views))
    }
    if not wanted:
        return

    def work() -> None:
        for inode, others in wanted.items():
            try:
                with _socket_in(handles[inode], inode) as sock:
                    for other in others:
                        nsid = _read_nsid(sock, handles[other], other)
                        if nsid is not None:
                            views[inode].nsids[nsid] = other
            except (OSError, KeyError):
                continue  # gone meanwhile: the next refresh reads what is left

    _in_thread(work)


def open_events(path: str, inode: int) -> tuple[socket.socket, bool]:
    """Open a socket for the changes in one namespace and its neighbours (`rtnl.open_events`)."""
    return run_in(path, inode, rtnl.open_events)


def run_in(path: str, inode: int, work: Callable[[], _Result]) -> _Result:
    """What `work` returns, called in the namespace that `path` opens.

    A socket that `work` makes belongs to that namespace for good. OSError where the namespace
    has gone, or `path` now leads to another.
    """
    made: list[_Result] = []

    def inside() -> None:
        _enter(path, inode)
        made.append(work())

    _in_thread(inside)
    return made[0]


def _candidates(inode: int, view: View, views: Mapping[int, View]) -> list[int]:
    ends = {
        (link.link, link.ifindex)
        for link in view.links.values()
        if link.link_nsid is not None and link.link_nsid not in view.nsids
    }
    if not ends:
        return []
    known = set(view.nsids.values()) | {inode}
    return [
        other
        for other, theirs in views.items()
        if other not in known
        and any((link.ifindex, link.link) in ends for link in theirs.links.values())
    ]


def _read_nsid(sock: socket.socket, path: str, inode: int) -> int | None:
    with _opened(path, inode) as fd:
        return rtnl.read_nsid(sock, fd)


@contextmanager
def _opened(path: str, inode: int) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError(path)  # the path has been reused for another namespace
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _socket_in(path: str, inode: int) -> Iterator[socket.socket]:
    _enter(path, inode)
    with rtnl.open_socket() as sock:
        yield sock


def _enter(path: str, inode: int) -> None:
    """Move this thread into a namespace; where it is already, no right is needed."""
    if Path("/proc/thread-self/ns/net").stat().st_ino == inode:
        return
    with _opened(path, inode) as fd:
        setns(fd)


def _in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread of its own to its end; raises what it raised."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=guarded, name="netns-reader", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
