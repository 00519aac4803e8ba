"""tc and XDP programs: as Cilium attaches them, packets go straight to another device, or die."""

from __future__ import annotations

import ctypes as ct
import os
import struct
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from tracer.kernel import libbpf, nf_links

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace

REDIRECT, REDIRECT_PEER = 23, 155
"""Helper functions of BPF: bpf_redirect and bpf_redirect_peer."""
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_PROG_TYPE_XDP = 6
_BPF_TCX_INGRESS = 46
NAME, PROGRAM_NAME = "tracer-tests", "tracer_tests"
"""Of the filters, and of the programs."""
_TC_ACT_SHOT, _XDP_DROP = 2, 1
INGRESS, EGRESS = "ffff:fff2", "ffff:fff3"
"""Parents of clsact's filters."""


def _program(helper: int, ifindex: int) -> bytes:
    """`return helper(ifindex, 0)` in BPF's instructions."""
    return b"".join(
        struct.pack("<BBhi", *each)
        for each in ((0xB7, 1, 0, ifindex), (0xB7, 2, 0, 0), (0x85, 0, 0, helper), (0x95, 0, 0, 0))
    )


def _load(kind: int, code: bytes) -> int:
    options = libbpf.ProgLoadOpts(sz=ct.sizeof(libbpf.ProgLoadOpts))
    return libbpf._load(kind, PROGRAM_NAME, code, options)


@contextmanager
def _attached(where: Namespace, device: str, code: bytes, parent: str) -> Iterator[None]:
    """A program at one side of a device's clsact."""
    loaded = _load(_BPF_PROG_TYPE_SCHED_CLS, code)
    with where.entered():
        netlink = IPRoute()
    with netlink:
        index = where.ifindex(device)
        netlink.tc("add", "clsact", index)
        try:
            netlink.tc(
                "add-filter", "bpf", index, ":1", fd=loaded, name=NAME, parent=parent,
                classid=1, direct_action=True,
            )  # fmt: skip
            yield
        finally:
            netlink.tc("del", "clsact", index)
            os.close(loaded)


def redirected(
    where: Namespace, came: str, to: str, helper: int, parent: str = INGRESS
) -> AbstractContextManager[None]:
    """What passes `parent` of `came` goes out of `to`, or into the other end of its pair."""
    return _attached(where, came, _program(helper, where.ifindex(to)), parent)


@contextmanager
def mirred(where: Namespace, came: str, to: str, action: str) -> Iterator[None]:
    """The same at ingress without a program; `action` is `redirect`, or `mirror`: a copy of it."""
    where.run("tc", "qdisc", "add", "dev", came, "clsact")
    try:
        words = f"filter add dev {came} ingress protocol all u32 match u32 0 0"
        where.run("tc", *words.split(), *f"action mirred egress {action} dev {to}".split())
        yield
    finally:
        where.run("tc", "qdisc", "del", "dev", came, "clsact")


@contextmanager
def linked(where: Namespace, came: str, to: str) -> Iterator[None]:
    """As `redirected` by a link (tcx, Linux 6.6), without clsact."""
    loaded = _load(_BPF_PROG_TYPE_SCHED_CLS, _program(REDIRECT, where.ifindex(to)))
    attr = struct.pack("=IIII", loaded, where.ifindex(came), _BPF_TCX_INGRESS, 0)
    links: list[int] = []

    def attach() -> None:
        links.append(nf_links.bpf(nf_links.BPF_LINK_CREATE, ct.create_string_buffer(attr, 64)))

    try:
        nf_links.in_netns(where.path, attach)
        yield
    finally:
        for fd in (loaded, *links):
            os.close(fd)


def dropping(where: Namespace, device: str, parent: str) -> AbstractContextManager[None]:
    """All packets die at `INGRESS` or `EGRESS` of a device."""
    return _attached(where, device, _returning(_TC_ACT_SHOT), parent)


@contextmanager
def xdp_dropping(where: Namespace, device: str) -> Iterator[None]:
    """All packets die by generic XDP at a device."""
    loaded = _load(_BPF_PROG_TYPE_XDP, _returning(_XDP_DROP))
    with where.entered():
        netlink = IPRoute()
    with netlink:
        index = where.ifindex(device)
        try:
            netlink.link("set", index=index, xdp_fd=loaded)
            yield
        finally:
            netlink.link("set", index=index, xdp_fd=-1)
            os.close(loaded)


def _returning(value: int) -> bytes:
    """`return value` in BPF's instructions."""
    return struct.pack("<BBhi", 0xB7, 0, 0, value) + struct.pack("<BBhi", 0x95, 0, 0, 0)
