"""tc programs as Cilium attaches them: packets go straight to another device."""

from __future__ import annotations

import ctypes as ct
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

from tracer.kernel import libbpf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace

REDIRECT, REDIRECT_PEER = 23, 155
"""Helper functions of BPF: bpf_redirect and bpf_redirect_peer."""
_BPF_PROG_TYPE_SCHED_CLS = 3
_INGRESS = "ffff:fff2"


def _program(helper: int, ifindex: int) -> bytes:
    """`return helper(ifindex, 0)` in BPF's instructions."""
    return b"".join(
        struct.pack("<BBhi", *each)
        for each in ((0xB7, 1, 0, ifindex), (0xB7, 2, 0, 0), (0x85, 0, 0, helper), (0x95, 0, 0, 0))
    )


@contextmanager
def redirected(where: Namespace, came: str, to: str, helper: int) -> Iterator[None]:
    """What comes in by `came` goes out of `to`, or into the other end of its pair."""
    loaded = libbpf._load(
        _BPF_PROG_TYPE_SCHED_CLS,
        "tracer_tests",
        _program(helper, where.ifindex(to)),
        libbpf.ProgLoadOpts(sz=ct.sizeof(libbpf.ProgLoadOpts)),
    )
    with where.entered():
        netlink = IPRoute()
    with netlink:
        index = where.ifindex(came)
        netlink.tc("add", "clsact", index)
        try:
            netlink.tc(
                "add-filter", "bpf", index, ":1", fd=loaded, name="tracer-tests", parent=_INGRESS,
                classid=1, direct_action=True,
            )  # fmt: skip
            yield
        finally:
            netlink.tc("del", "clsact", index)
            os.close(loaded)
