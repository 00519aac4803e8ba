"""libbpf's stable C API through ctypes: program load, attachment, maps.

libbpf is a dependency of the distribution's bcc already. What it offers is detected by
presence; `typed_tracepoints_reason` says why the typed way is closed, where it is.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
from dataclasses import dataclass
from functools import cache

from tracer.errors import TracerError
from tracer.kernel.hooks import RAW
from tracer.kernel.subprograms import BPF_PSEUDO_KFUNC_CALL, call, split

BPF_PROG_TYPE_KPROBE = 2
BPF_PROG_TYPE_RAW_TRACEPOINT = 17
BPF_PROG_TYPE_TRACING = 26
BPF_PROG_TYPE_NETFILTER = 32
BPF_TRACE_RAW_TP, BPF_TRACE_FENTRY, BPF_TRACE_FEXIT = 23, 24, 25
BPF_NETFILTER = 45
BTF_KIND_STRUCT, BTF_KIND_FUNC = 4, 12
RDONLY_CAST_CALL = 0x7F00
"""No helper has this number: it stands for bpf_rdonly_cast until the program is loaded."""
LOG_BYTES = 1 << 18

# mov r0, 0; exit
EMPTY_PROGRAM = bytes.fromhex("b7000000000000009500000000000000")
# mov r0, NF_ACCEPT; exit
ACCEPTING_PROGRAM = bytes.fromhex("b7000000010000009500000000000000")


class ProgLoadOpts(ct.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0; `sz` makes it safe with newer ones."""

    _fields_ = (
        ("sz", ct.c_size_t),
        ("attempts", ct.c_int),
        ("expected_attach_type", ct.c_int),
        ("prog_btf_fd", ct.c_uint32),
        ("prog_flags", ct.c_uint32),
        ("prog_ifindex", ct.c_uint32),
        ("kern_version", ct.c_uint32),
        ("attach_btf_id", ct.c_uint32),
        ("attach_prog_fd", ct.c_uint32),
        ("attach_btf_obj_fd", ct.c_uint32),
        ("fd_array", ct.c_void_p),
        ("func_info", ct.c_void_p),
        ("func_info_cnt", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("line_info", ct.c_void_p),
        ("line_info_cnt", ct.c_uint32),
        ("line_info_rec_size", ct.c_uint32),
        ("log_level", ct.c_uint32),
        ("log_size", ct.c_uint32),
        ("log_buf", ct.c_char_p),
    )


@cache
def library() -> ct.CDLL:
    """libbpf, the system's or the one bundled with bcc; raises TracerError without any."""
    for name in ("libbpf.so.1", "libbpf.so.0", "libbcc_bpf.so.0"):
        try:
            return ct.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise TracerError("libbpf: not found", "install libbpf (Debian: libbpf1, Fedora: libbpf)")


@dataclass(frozen=True, slots=True)
class RdonlyCast:
    """BTF ids in vmlinux for `bpf_rdonly_cast` (6.2: a35b9af4ec2c), a call that costs nothing."""

    function: int
    sk_buff: int

    def resolve(self, instructions: bytes) -> bytes:
        """Turn calls of the stand-in RDONLY_CAST_CALL into calls of the kernel's function."""
        stand_in, real = call(RDONLY_CAST_CALL), call(self.function, BPF_PSEUDO_KFUNC_CALL)
        return b"".join(real if one == stand_in else one for one in split(instructions))


@cache
def rdonly_cast() -> RdonlyCast | None:
    """What `bpf_rdonly_cast` needs here, or None where the kernel or libbpf lacks it."""
    lib = library()
    if typed_tracepoints_reason():
        return None
    lib.btf__load_vmlinux_btf.restype = ct.c_void_p
    lib.btf__find_by_name_kind.argtypes = [ct.c_void_p, ct.c_char_p, ct.c_uint32]
    lib.btf__free.argtypes = [ct.c_void_p]
    btf = lib.btf__load_vmlinux_btf()
    if not btf:
        return None
    kinds = (
        (b"bpf_rdonly_cast", BTF_KIND_FUNC),
        (b"sk_buff", BTF_KIND_STRUCT),
    )
    ids = [lib.btf__find_by_name_kind(btf, name, kind) for name, kind in kinds]
    lib.btf__free(btf)
    return RdonlyCast(*ids) if min(ids) > 0 else None


def check(result: int) -> int:
    """A libbpf result as it is, or OSError: 1.x returns -errno, 0.x -1 with errno set."""
    if result >= 0:
        return result
    code = ct.get_errno() or -result
    raise OSError(code, os.strerror(code))


def typed_tracepoints_reason() -> str:
    """Why libbpf cannot load typed tracepoints; empty when it can.

    Before libbpf 0.7 `bpf_prog_load` was another function with other arguments.
    """
    lib = library()
    if not hasattr(lib, "libbpf_major_version") or not hasattr(lib, "libbpf_find_vmlinux_btf_id"):
        return "libbpf is older than 0.7"
    return ""


def target_id(target: str, attach_type: int) -> int:
    """BTF id of what a tracing program attaches to: a tracepoint or function. Raises OSError."""
    if reason := typed_tracepoints_reason():
        raise OSError(errno.EOPNOTSUPP, reason)
    return check(library().libbpf_find_vmlinux_btf_id(target.encode(), attach_type))


def load_typed(
    name: str, instructions: bytes, target: str, attach_type: int = BPF_TRACE_RAW_TP
) -> int:
    """Load a BPF_PROG_TYPE_TRACING program for a typed tracepoint or a function; returns its fd.

    Raises OSError; the verifier's last lines are in its `strerror`.
    """
    opts = ProgLoadOpts(
        sz=ct.sizeof(ProgLoadOpts),
        expected_attach_type=attach_type,
        attach_btf_id=target_id(target, attach_type),
    )
    return _load(BPF_PROG_TYPE_TRACING, name, instructions, opts)


def load_netfilter(name: str, instructions: bytes) -> int:
    """Load a BPF_PROG_TYPE_NETFILTER program (6.4: fd9c663b9ad6); its fd. Raises OSError."""
    opts = ProgLoadOpts(sz=ct.sizeof(ProgLoadOpts), expected_attach_type=BPF_NETFILTER)
    return _load(BPF_PROG_TYPE_NETFILTER, name, instructions, opts)


def _load(kind: int, name: str, instructions: bytes, opts: ProgLoadOpts) -> int:
    lib = library()
    arguments = (kind, name.encode(), b"GPL", instructions, ct.c_size_t(len(instructions) // 8))
    try:
        return check(lib.bpf_prog_load(*arguments, ct.byref(opts)))
    except OSError:
        # Again, with the verifier's words: it costs nothing when all is well.
        log = ct.create_string_buffer(LOG_BYTES)
        opts.log_level, opts.log_size = 1, LOG_BYTES
        opts.log_buf = ct.cast(log, ct.c_char_p)
        try:
            return check(lib.bpf_prog_load(*arguments, ct.byref(opts)))
        except OSError as error:
            told = log.value.decode(errors="replace").strip().splitlines()
            raise OSError(error.errno, " | ".join([str(error.strerror), *told[-4:]])) from error


def attach_tracepoint(program_fd: int, kind: str, tracepoint: str) -> int:
    """Attach a `raw_tp`, `tp_btf` or `fexit` program; returns the link's fd. Raises OSError."""
    # All but a raw one named what they are for when they were loaded.
    name = tracepoint.encode() if kind == RAW else None
    return check(library().bpf_raw_tracepoint_open(name, program_fd))
