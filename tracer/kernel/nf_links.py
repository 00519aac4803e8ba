"""Netfilter links: our programs before and after everything else in each hook of a namespace.

BPF_LINK_CREATE for BPF_NETFILTER (6.4: 84601d6ee68a) attaches in the network namespace of the
calling thread, and takes {pf, hooknum, priority, flags} where no libbpf of a stable distribution
lets us put them: so this one call is bpf(2) by hand. A link vanishes with its descriptor.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
import platform
import struct
import threading
from typing import TYPE_CHECKING

from tracer.kernel.libbpf import BPF_NETFILTER

if TYPE_CHECKING:
    from collections.abc import Mapping

SYS_BPF = {"x86_64": 321, "s390x": 351, "ppc64le": 361}
"""aarch64, riscv64 and every later architecture use the generic number."""
SYS_BPF_GENERIC = 280
BPF_LINK_CREATE = 28
CLONE_NEWNET = 0x40000000

FAMILIES = (2, 10)
"""NFPROTO_IPV4, NFPROTO_IPV6: the only ones the kernel takes."""
HOOKS = range(5)
"""NF_INET_PRE_ROUTING … NF_INET_POST_ROUTING."""
FIRST_PRIORITY, LAST_PRIORITY = -2147483647, 2147483646
TRIES = 16
"""Priorities tried inwards from the ends, where another tool holds one."""


def attach(programs: Mapping[str, int], netns_path: str = "") -> tuple[list[int], str]:
    """Put `nf_enter` and `nf_leave` around every hook of a namespace.

    `netns_path` opens the namespace; empty is this thread's own. Returns the links' descriptors
    and why some or all are missing (empty when none is).
    """
    links: list[int] = []
    problems: list[str] = []

    def work() -> None:
        try:
            if netns_path:
                _enter(netns_path)
            for family in FAMILIES:
                for hook in HOOKS:
                    links.append(_link(programs["nf_enter"], family, hook, FIRST_PRIORITY, 1))
                    links.append(_link(programs["nf_leave"], family, hook, LAST_PRIORITY, -1))
        except OSError as error:
            problems.append(str(error.strerror))

    # A thread of its own: it never comes back from the namespace.
    thread = threading.Thread(target=work, name="nf-links", daemon=True)
    thread.start()
    thread.join()
    return links, "; ".join(problems)


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ct.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
            raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    finally:
        os.close(fd)


def _link(program_fd: int, family: int, hook: int, priority: int, inwards: int) -> int:
    """One link, at the first free priority from `priority` inwards."""
    libc = ct.CDLL(None, use_errno=True)
    number = SYS_BPF.get(platform.machine(), SYS_BPF_GENERIC)
    for step in range(TRIES):
        attr = struct.pack(
            "IIIIIIiI", program_fd, 0, BPF_NETFILTER, 0,
            family, hook, priority + step * inwards, 0,
        ).ljust(64, b"\0")  # fmt: skip
        fd = int(libc.syscall(number, BPF_LINK_CREATE, attr, len(attr)))
        if fd >= 0:
            return fd
        if ct.get_errno() not in (errno.EBUSY, errno.EEXIST):
            break
    code = ct.get_errno()
    raise OSError(code, os.strerror(code))
