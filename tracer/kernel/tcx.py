"""tc programs attached by links (tcx, Linux 6.6): which devices have which."""

from __future__ import annotations

import ctypes as ct
import os
import struct
from typing import TYPE_CHECKING

from tracer.kernel.nf_links import bpf
from tracer.model import TcFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BPF_PROG_GET_FD_BY_ID, _BPF_OBJ_GET_INFO_BY_FD, _BPF_PROG_QUERY = 13, 15, 16
_BPF_TCX_INGRESS, _BPF_TCX_EGRESS = 46, 47
_SIDES = {"ingress": _BPF_TCX_INGRESS, "egress": _BPF_TCX_EGRESS}
_MOST = 64
"""BPF_MPROG_MAX: programs that one side of a device can have."""
_QUERY = struct.Struct("=IIIIQI")
"""Of union bpf_attr: device, attach type, two flags, where the ids go, and how many."""
_ATTR_BYTES = 64
_INFO_BYTES, _NAME_AT, _NAME_BYTES = 80, 64, 16
"""The beginning of struct bpf_prog_info, and `name` in it."""


def filters(ifindexes: Iterable[int]) -> tuple[TcFilter, ...]:
    """What is attached to devices of the calling thread's namespace, in the order it runs.

    Without the kernel's word for it (before 6.6, or without the right to ask) there is nothing.
    """
    names: dict[int, str] = {}
    return tuple(
        TcFilter(ifindex, side, "tcx", names.setdefault(number, _name(number)), number)
        for ifindex in ifindexes
        for side, kind in _SIDES.items()
        for number in _programs(ifindex, kind)
    )


def with_ingress(ifindexes: Iterable[int]) -> frozenset[int]:
    """Devices of the calling thread's namespace with a program at their ingress; as `filters`."""
    return frozenset(i for i in ifindexes if any(_programs(i, _BPF_TCX_INGRESS)))


def _programs(ifindex: int, kind: int) -> Iterator[int]:
    """Ids of the programs at one side of a device."""
    ids = (ct.c_uint32 * _MOST)()
    attr = ct.create_string_buffer(
        _QUERY.pack(ifindex, kind, 0, 0, ct.addressof(ids), _MOST), _ATTR_BYTES
    )
    try:
        bpf(_BPF_PROG_QUERY, attr)
    except OSError:
        return  # no such device any more, no program (ENOENT), or no tcx at all (EINVAL)
    yield from ids[: _QUERY.unpack_from(attr)[-1]]


def _name(number: int) -> str:
    """The first 15 bytes of a program's name; empty where it is gone or may not be asked for."""
    info = ct.create_string_buffer(_INFO_BYTES)
    try:
        attr = ct.create_string_buffer(struct.pack("=I", number), _ATTR_BYTES)
        fd = bpf(_BPF_PROG_GET_FD_BY_ID, attr)
        try:
            asked = struct.pack("=IIQ", fd, _INFO_BYTES, ct.addressof(info))
            bpf(_BPF_OBJ_GET_INFO_BY_FD, ct.create_string_buffer(asked, _ATTR_BYTES))
        finally:
            os.close(fd)
    except OSError:
        return ""
    name = info.raw[_NAME_AT : _NAME_AT + _NAME_BYTES]
    return name.partition(b"\0")[0].decode(errors="replace")
