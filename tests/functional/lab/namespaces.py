"""Network namespaces and the wires between them; every name begins with `trt-`.

Sockets are opened *inside* a namespace and used from the test's own process: a socket keeps
the namespace it was made in, so no helper program is needed to send a packet from a pod.
"""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyroute2 import netns as pyroute2_netns

from lab.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "trt-"
"""Of every namespace and device that is ours, so that a former run's can be told and removed."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace that a test sends from, receives in or breaks."""

    path: str
    name: str = ""

    @property
    def inode(self) -> int:
        """What tracer prints as `netns`."""
        return Path(self.path).stat().st_ino

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in this namespace for the block."""
        with Path("/proc/thread-self/ns/net").open() as home, Path(self.path).open() as inside:
            pyroute2_netns.setns(inside.fileno())
            try:
                yield
            finally:
                pyroute2_netns.setns(home.fileno())

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, with a timeout of 5 s."""
        with self.entered():
            made = socket.socket(family, kind, protocol)
        made.settimeout(5)
        return made

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> str:
        """Run a program in this namespace."""
        return run("nsenter", f"--net={self.path}", *argv, stdin=stdin, check=check)

    def ip(self, command: str) -> str:
        """`ip` with the words of `command`."""
        return self.run("ip", *command.split())

    def sysctl(self, key: str, value: object | None = None) -> str:
        """The value of net sysctl `key` (slashes, below /proc/sys/net); sets it when given."""
        with self.entered():
            file = Path("/proc/sys/net", key)
            before = file.read_text().strip()
            if value is not None:
                file.write_text(f"{value}\n")
        return before

    def ifindex(self, device: str) -> int:
        """Index of `device` in this namespace."""
        with self.entered():
            return socket.if_nametoindex(device)

    def link_address(self, device: str) -> str:
        """MAC address of `device` in this namespace."""
        (told,) = json.loads(self.ip(f"-j link show dev {device}"))
        return str(told["address"])

    def device_statistic(self, device: str, name: str) -> int:
        """One counter of `ip -s link`, as `rx_packets` or `tx_bytes`."""
        with self.entered():
            # /sys shows the namespace it was mounted in; /proc/net/dev is the reader's own.
            for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
                head, _, numbers = line.partition(":")
                if head.strip() == device:
                    column = {"rx_bytes": 0, "rx_packets": 1, "tx_bytes": 8, "tx_packets": 9}[name]
                    return int(numbers.split()[column])
        raise AssertionError(f"no device {device} in {self.path}")


def node() -> Namespace:
    """The namespace of the node itself: that of the tests."""
    return Namespace("/proc/self/ns/net", "node")


def create(name: str) -> Namespace:
    """A new named namespace with `lo` up and IPv6 that is quiet: no DAD, no router queries."""
    full = PREFIX + name
    run("ip", "netns", "add", full)
    made = Namespace(f"/run/netns/{full}", full)
    made.ip("link set lo up")
    for scope in ("default", "all"):
        made.sysctl(f"ipv6/conf/{scope}/accept_dad", 0)
        made.sysctl(f"ipv6/conf/{scope}/router_solicitations", 0)
        made.sysctl(f"ipv6/conf/{scope}/accept_ra", 0)
    return made


def delete(name: str) -> None:
    """Remove a namespace made by `create`, with its devices; none is fine too."""
    run("ip", "netns", "delete", PREFIX + name, check=False)


@dataclass(frozen=True, slots=True)
class End:
    """One end of a wire: a device and its addresses, each with its prefix length."""

    where: Namespace
    device: str
    addresses: tuple[str, ...]


def join(left: End, right: End) -> None:
    """A veth pair between two namespaces, up, with addresses."""
    run("ip", "link", "add", PREFIX + "tmp0", "type", "veth", "peer", "name", PREFIX + "tmp1")
    for end, temporary in ((left, PREFIX + "tmp0"), (right, PREFIX + "tmp1")):
        run("ip", "link", "set", temporary, "netns", end.where.path)
        end.where.ip(f"link set {temporary} name {end.device}")
        for address in end.addresses:
            nodad = " nodad" if ":" in address else ""
            end.where.ip(f"address add {address} dev {end.device}{nodad}")
    for end in (left, right):
        end.where.ip(f"link set {end.device} up")


def sweep() -> None:
    """Remove every namespace and device of ours, those of a killed run too."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(PREFIX):
            run("ip", "netns", "delete", name, check=False)
    for line in run("ip", "-o", "link", "show").splitlines():
        name = line.split(":")[1].strip().partition("@")[0]
        if name.startswith(PREFIX):
            run("ip", "link", "delete", name, check=False)
