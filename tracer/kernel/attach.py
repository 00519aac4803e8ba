"""One program put where its way says, for as long as a descriptor is open."""

from __future__ import annotations

from tracer.kernel import kprobes, libbpf
from tracer.kernel.hooks import KRETPROBE, TYPED


def load_plain(
    name: str, instructions: bytes, kind: str, target: str, *, at_exit: bool = False
) -> int:
    """Load for a `tp_btf` or `fexit` way; returns the program's fd. Raises OSError."""
    if kind == TYPED:
        return libbpf.load_typed(name, instructions, target)
    attach_type = libbpf.BPF_TRACE_FEXIT if at_exit else libbpf.BPF_TRACE_FENTRY
    return libbpf.load_typed(name, instructions, target, attach_type)


def attach(program_fd: int, kind: str, target: str, *, at_exit: bool = False) -> int:
    """Attach where a way of `kind` says, netfilter's aside; the link's fd. Raises OSError."""
    if kind == KRETPROBE:
        return kprobes.attach(program_fd, target, at_exit=at_exit)
    return libbpf.attach_tracepoint(program_fd, kind, target)
