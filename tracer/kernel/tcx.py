"""tc programs attached by links (tcx, Linux 6.6): which devices have some."""

from __future__ import annotations

import ctypes as ct
import struct
from typing import TYPE_CHECKING

from tracer.kernel.nf_links import bpf

if TYPE_CHECKING:
    from collections.abc import Iterable

_BPF_PROG_QUERY = 16
_BPF_TCX_INGRESS = 46
_COUNT_AT = 24
"""Offset of `query.prog_cnt` in union bpf_attr, behind target, kind, two flags and a pointer."""
_ATTR_BYTES = 64


def with_ingress(ifindexes: Iterable[int]) -> frozenset[int]:
    """Devices of the calling thread's namespace with a program at their ingress.

    Without the kernel's word for it (before 6.6, or without the right to ask) there are none.
    """
    found = set()
    for ifindex in ifindexes:
        attr = ct.create_string_buffer(struct.pack("=II", ifindex, _BPF_TCX_INGRESS), _ATTR_BYTES)
        try:
            bpf(_BPF_PROG_QUERY, attr)
        except OSError:
            continue  # no such device any more, no program (ENOENT), or no tcx at all (EINVAL)
        if struct.unpack_from("=I", attr, _COUNT_AT)[0]:
            found.add(ifindex)
    return frozenset(found)
