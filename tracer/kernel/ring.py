"""The BPF ring buffer as numpy arrays: whole batches of equal-sized records, no call per event.

Layout of the mapping (kernel/bpf/ringbuf.c, since 5.8: 457f44363a88): one page with the
consumer's position, writable; one page with the producer's; the data, mapped twice in a row so
that a record that wraps is contiguous. Each record has an 8-byte header: its length with a
busy bit (reserved, not yet committed) and a discard bit.

Order: a load of the producer's position must come before the loads of headers, these before
the loads of data, and all of them before the store of the consumer's position. x86-64 keeps
loads in order and stores behind loads (TSO). Elsewhere `fence` asks the kernel for a full
barrier on this CPU, membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED), three times a batch.
Positions are read and written as aligned 8-byte units, which no CPU tears.
"""

from __future__ import annotations

import ctypes as ct
import mmap
import platform
import select
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES = 8
BUSY_BIT = np.uint32(1 << 31)
DISCARD_BIT = np.uint32(1 << 30)

SYS_MEMBARRIER = {"aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
MEMBARRIER_CMD_GLOBAL_EXPEDITED = 1 << 1


class RecordReader(Protocol):
    """Reads one ring of equal-sized records."""

    def fileno(self) -> int:
        """Descriptor that epoll finds readable when records wait."""

    def take(self) -> np.ndarray:
        """All committed records as one array of the record's dtype; empty when there are none."""

    def close(self) -> None:
        """Unmap; the map itself stays."""


def _fence() -> Callable[[], None]:
    """A full memory barrier for this thread, where the CPU needs one."""
    machine = platform.machine()
    if machine in ("x86_64", "AMD64"):
        return lambda: None
    libc = ct.CDLL(None, use_errno=True)
    number = SYS_MEMBARRIER.get(machine)
    if number is None or libc.syscall(number, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) < 0:
        raise TracerError(f"ring buffer: no memory barrier on {machine}", "use the callback reader")
    return lambda: libc.syscall(number, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0)


class MappedRing:
    """Reads a BPF_MAP_TYPE_RINGBUF through its memory mapping."""

    def __init__(self, fd: int, dtype: np.dtype[np.void], data_bytes: int) -> None:
        """Map `fd`, whose records all are `dtype`; `data_bytes` is the map's max_entries."""
        page = mmap.PAGESIZE
        self._fd, self._dtype, self._mask = fd, dtype, data_bytes - 1
        self._stride = HEADER_BYTES + (dtype.itemsize + 7) // 8 * 8
        self._slot = np.dtype(
            {
                "names": ["length", "record"],
                "formats": ["<u4", dtype],
                "offsets": [0, HEADER_BYTES],
                "itemsize": self._stride,
            }
        )
        self._fence = _fence()
        try:
            self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED)
            self._data_map = mmap.mmap(
                fd, page + 2 * data_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except (OSError, ValueError) as error:
            raise TracerError(f"ring buffer: mmap: {error}", "use the callback reader") from error
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._data_map, np.uint64, 1)
        self._data = np.frombuffer(self._data_map, np.uint8, offset=page)

    def fileno(self) -> int:
        """The map's descriptor."""
        return self._fd

    def take(self) -> np.ndarray:
        """A copy of all committed records, in order; their space goes back to the kernel."""
        position = int(self._consumer[0])
        count = (int(self._producer[0]) - position) // self._stride
        if not count:
            return np.empty(0, self._dtype)
        self._fence()
        start = position & self._mask
        slots = self._data[start : start + count * self._stride].view(self._slot)
        lengths = slots["length"].copy()
        busy = np.flatnonzero(lengths & BUSY_BIT)
        if len(busy):
            lengths = lengths[: busy[0]]
        self._fence()
        kept = np.flatnonzero((lengths & DISCARD_BIT) == 0)
        records = slots["record"][kept]
        self._fence()
        self._consumer[0] = position + len(lengths) * self._stride
        return records

    def close(self) -> None:
        """Unmap."""
        del self._consumer, self._producer, self._data
        self._consumer_map.close()
        self._data_map.close()


class CallbackRing:
    """Reads the same ring through bcc, one callback a record: slower, and the referee in tests.

    It keeps bcc's libraries in the process (about 100 MB), so it is only used where the ring
    cannot be mapped.
    """

    def __init__(self, fd: int, dtype: np.dtype[np.void], data_bytes: int = 0) -> None:
        """Open `fd`; `data_bytes` is not needed."""
        del data_bytes
        from bcc.libbcc import _RINGBUF_CB_TYPE, lib  # noqa: PLC0415 - loads LLVM

        self._lib, self._fd, self._dtype = lib, fd, dtype
        self._waiting: list[bytes] = []
        self._callback = _RINGBUF_CB_TYPE(self._keep)
        self._ring = lib.bpf_new_ringbuf(fd, self._callback, None)
        if not self._ring:
            raise TracerError("ring buffer: bcc cannot open it", "tracer doctor checks bcc")

    def _keep(self, _context: object, data: int, size: int) -> int:
        self._waiting.append(ct.string_at(data, size))
        return 0

    def fileno(self) -> int:
        """The map's descriptor."""
        return self._fd

    def take(self) -> np.ndarray:
        """All committed records."""
        self._lib.bpf_consume_ringbuf(self._ring)
        size = self._dtype.itemsize
        records = np.frombuffer(b"".join(r[:size] for r in self._waiting), self._dtype)
        self._waiting.clear()
        return records

    def close(self) -> None:
        """Free bcc's ring."""
        self._lib.bpf_free_ringbuf(self._ring)


def open_ring(fd: int, dtype: np.dtype[np.void], data_bytes: int) -> tuple[RecordReader, str]:
    """The mapped ring, or bcc's callback with a warning that says why."""
    try:
        return MappedRing(fd, dtype, data_bytes), ""
    except TracerError as error:
        warning = f"{error.message}: records are read one by one, through bcc"
        return CallbackRing(fd, dtype, data_bytes), warning


def wait(reader: RecordReader, timeout_s: float) -> bool:
    """Wait for records; True when some wait. For tests and tools without an event loop."""
    with select.epoll() as epoll:
        epoll.register(reader.fileno(), select.EPOLLIN)
        return bool(epoll.poll(timeout_s))
