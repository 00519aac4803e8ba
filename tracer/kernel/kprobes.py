"""kprobes and kretprobes by perf_event_open alone: they vanish with their descriptors.

Other ways leave a line in tracefs' kprobe_events when the process is killed. 4.17: e12f03d7031a.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
import platform
import struct
from pathlib import Path

PMU = Path("/sys/bus/event_source/devices/kprobe")
SYS_PERF_EVENT_OPEN = {"x86_64": 298, "s390x": 331, "ppc64le": 319}
"""aarch64, riscv64 and every later architecture use the generic number."""
SYS_PERF_EVENT_OPEN_GENERIC = 241
PERF_FLAG_FD_CLOEXEC = 8
PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
ATTR_BYTES = 112
"""PERF_ATTR_SIZE_VER5: all that is needed is in its first half."""


def attach(program_fd: int, function: str, *, at_exit: bool) -> int:
    """Run the kprobe program where a kernel function begins or returns; the event's fd.

    Raises OSError: ENOENT where the kernel has no such function.
    """
    name = ct.create_string_buffer(function.encode())
    event = _perf_event_open(_kind(), config=_exit_bit() if at_exit else 0, name=ct.addressof(name))
    libc = ct.CDLL(None, use_errno=True)
    for request, argument in ((PERF_EVENT_IOC_SET_BPF, program_fd), (PERF_EVENT_IOC_ENABLE, 0)):
        if libc.ioctl(event, ct.c_ulong(request), ct.c_ulong(argument)):
            code = ct.get_errno()
            os.close(event)
            raise OSError(code, os.strerror(code))
    return event


def _kind() -> int:
    """The type of the kernel's perf events that are kprobes."""
    try:
        return int((PMU / "type").read_text())
    except FileNotFoundError:
        raise OSError(errno.EOPNOTSUPP, "this kernel has no kprobes") from None


def _exit_bit() -> int:
    """The bit of perf_event_attr.config that asks for the return: `config:0` means bit 0."""
    return 1 << int((PMU / "format/retprobe").read_text().rpartition(":")[2])


def _perf_event_open(kind: int, config: int, name: int) -> int:
    """`struct perf_event_attr`: type, size, config, …, config1 (kprobe_func), config2 (offset)."""
    attr = bytearray(ATTR_BYTES)
    struct.pack_into("IIQ", attr, 0, kind, ATTR_BYTES, config)
    struct.pack_into("QQ", attr, 56, name, 0)
    libc = ct.CDLL(None, use_errno=True)
    number = SYS_PERF_EVENT_OPEN.get(platform.machine(), SYS_PERF_EVENT_OPEN_GENERIC)
    # Of every process; a probe runs on all CPUs, whichever the event is opened on.
    fd = int(libc.syscall(number, bytes(attr), -1, 0, -1, PERF_FLAG_FD_CLOEXEC))
    if fd < 0:
        code = ct.get_errno()
        raise OSError(code, os.strerror(code))
    return fd
