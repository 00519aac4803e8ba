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
    from collections.abc import Callable, Mapping, Sequence

SYS_BPF = {"x86_64": 321, "s390x": 351, "ppc64le": 361}
"""aarch64, riscv64 and every later architecture use the generic number."""
SYS_BPF_GENERIC = 280
BPF_LINK_CREATE = 28
CLONE_NEWNET = 0x40000000

FAMILIES = (2, 10)
"""NFPROTO_IPV4, NFPROTO_IPV6: the only ones the kernel takes."""
_INPUT, _POSTROUTING = 1, 4
_FIRST, _LAST = (-2147483647, 1), (2147483646, -1)
"""A priority, and the way inwards from it, where another tool holds one."""
TRIES = 16
"""Priorities tried so."""

Point = tuple[int, str, tuple[int, int]]
"""A hook, the function that is put there, and at which end."""
AROUND: tuple[Point, ...] = tuple(
    (hook, function, end)
    for hook in range(5)
    for function, end in (("nf_enter", _FIRST), ("nf_leave", _LAST))
)
"""Around every hook, NF_INET_PRE_ROUTING … NF_INET_POST_ROUTING."""
WATCH: tuple[Point, ...] = tuple((hook, "nf_watch", _LAST) for hook in (_INPUT, _POSTROUTING))
"""Where each packet of a namespace that does not die passes once, after NAT."""


def attach(
    programs: Mapping[str, int], netns_path: str = "", points: Sequence[Point] = AROUND
) -> tuple[list[int], str]:
    """Attach to a namespace's hooks, at `points`, for both families.

    `netns_path` opens the namespace; empty is this thread's own. Returns the links' descriptors
    and why some or all are missing (empty when none is).
    """
    links: list[int] = []
    problems: list[str] = []

    def work() -> None:
        try:
            for family in FAMILIES:
                for hook, function, end in points:
                    links.append(_link(programs[function], family, hook, *end))
        except OSError as error:
            problems.append(str(error.strerror))

    try:
        in_netns(netns_path, work)
    except OSError as error:
        problems.append(str(error.strerror))
    return links, "; ".join(problems)


def in_netns(path: str, work: Callable[[], None]) -> None:
    """Call `work` in a namespace; an empty `path` is this thread's own. Raises OSError, as it does.

    It runs in a thread of its own, which never comes back from the namespace.
    """
    errors: list[OSError] = []

    def entered() -> None:
        try:
            if path:
                _enter(path)
            work()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=entered, name="in-netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ct.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
            raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    finally:
        os.close(fd)


def bpf(command: int, attr: ct.Array[ct.c_char]) -> int:
    """Call the kernel, which reads and writes `attr`, a union bpf_attr. Raises OSError."""
    libc = ct.CDLL(None, use_errno=True)
    number = SYS_BPF.get(platform.machine(), SYS_BPF_GENERIC)
    result = int(libc.syscall(number, command, attr, len(attr)))
    if result < 0:
        raise OSError(ct.get_errno(), os.strerror(ct.get_errno()))
    return result


def _link(program_fd: int, family: int, hook: int, priority: int, inwards: int) -> int:
    """One link, at the first free priority from `priority` inwards."""
    for step in range(TRIES):
        attr = struct.pack(
            "IIIIIIiI", program_fd, 0, BPF_NETFILTER, 0,
            family, hook, priority + step * inwards, 0,
        )  # fmt: skip
        try:
            return bpf(BPF_LINK_CREATE, ct.create_string_buffer(attr, 64))
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EEXIST):
                raise
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
