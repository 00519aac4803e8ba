"""BPF maps as numpy columns: batch calls where the kernel has them, one by one where not."""

from __future__ import annotations

import ctypes as ct
import errno
import mmap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracer.kernel.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tracer.kernel.program import MapInfo

BPF_MAP_TYPE_PERCPU_HASH = 5
BPF_MAP_TYPE_PERCPU_ARRAY = 6
PERCPU = (BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY)
BPF_ANY = 0
ENOTSUPP = 524
"""The kernel's own number, which <errno.h> does not have."""
NO_BATCH = (errno.EINVAL, ENOTSUPP)
PIECE_BYTES = 1 << 20
"""Of entries that are read at once: the processor's own memory holds them."""
LEAST_ENTRIES = 64


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.rsplit(",", 1)[-1].rsplit("-", 1)[-1]) + 1


class Map:
    """One map: keys and values of given dtypes. Values come as shape (n, cpus) if per CPU."""

    def __init__(
        self,
        info: MapInfo,
        fd: int,
        key: np.dtype[np.generic] | str,
        value: np.dtype[np.generic] | str,
    ) -> None:
        """Wrap `fd`; ValueError when a dtype is not of the map's size."""
        self.info, self.fd = info, fd
        self._key, self._value = np.dtype(key), np.dtype(value)
        if (self._key.itemsize, self._value.itemsize) != (info.key_bytes, info.value_bytes):
            raise ValueError(f"map {info.name}: dtypes do not fit its {info}")
        self._cpus = possible_cpus() if info.kind in PERCPU else 0
        self._stride = (self._value.itemsize + 7) // 8 * 8 if self._cpus else self._value.itemsize

    @property
    def entry_bytes(self) -> int:
        """Size of one key's value as the kernel takes it: of all CPUs, if there is one for each."""
        return (self._cpus or 1) * self._stride

    def _empty(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for keys and values as they lie in the kernel."""
        return (
            np.empty(count, f"V{self._key.itemsize}"),
            np.empty(count * self.entry_bytes, np.uint8),
        )

    def _keys(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Raw keys as one array of the key's dtype.

        Joined while they are raw: numpy joins records in the machine's own byte order, and what is
        given back to the kernel must be what came from it.
        """
        return np.concatenate(parts).view(self._key)

    def _values(self, raw: np.ndarray, count: int) -> np.ndarray:
        """Raw bytes of `count` entries → values, (count,) or (count, cpus)."""
        shape = (count, self._cpus) if self._cpus else (count,)
        slot = np.dtype({"names": ["v"], "formats": [self._value], "itemsize": self._stride})
        used = raw[: count * self.entry_bytes]
        values: np.ndarray = used.view(slot)["v"].reshape(shape)
        return values

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All entries as (keys, values)."""
        try:
            pieces = [
                (keys.copy(), values.copy())
                for keys, values in self._pieces(library().bpf_map_lookup_batch)
            ]
        except OSError as error:
            if error.errno not in NO_BATCH:
                raise
            pieces = [self._read_one_by_one()]
        keys, values = zip(*pieces, strict=True)
        return self._keys(keys), np.concatenate(values)

    def mapped(self) -> np.ndarray:
        """The entries of an array that has BPF_F_MMAPABLE (5.5, fc9702273e2e), as they change."""
        memory = mmap.mmap(self.fd, self.info.max_entries * self._value.itemsize)
        return np.frombuffer(memory, self._value)

    def drain(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Take all entries out: pieces of (keys, values), each overwritten by the next."""
        try:
            for keys, values in self._pieces(library().bpf_map_lookup_and_delete_batch):
                yield keys.view(self._key), values
        except OSError as error:
            if error.errno not in NO_BATCH:
                raise
            keys, values = self._read_one_by_one()
            self.delete(key.tobytes() for key in keys)
            yield keys.view(self._key), values

    def _pieces(self, batch: Callable[..., int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Raw keys and values by BPF_MAP_LOOKUP_(AND_DELETE_)BATCH, since 5.6 (cb4d03ab499d).

        They lie where the next ones will: little memory is used again and again.
        """
        room = PIECE_BYTES // (self._key.itemsize + self.entry_bytes)
        room = min(max(room, LEAST_ENTRIES), self.info.max_entries)
        keys, raw = self._empty(room)
        cursor, started, code = ct.c_uint64(), False, 0
        while code != errno.ENOENT:
            count = ct.c_uint32(room)
            result = batch(
                self.fd,
                ct.byref(cursor) if started else None,
                ct.byref(cursor),
                keys.ctypes.data_as(ct.c_void_p),
                raw.ctypes.data_as(ct.c_void_p),
                ct.byref(count),
                None,
            )
            code = 0 if result >= 0 else ct.get_errno() or -result
            if code == errno.ENOSPC and count.value == 0:
                room *= 2  # one bucket holds more than fits
                keys, raw = self._empty(room)
                continue
            if code not in (0, errno.ENOENT, errno.ENOSPC):
                check(result)
            started = True
            yield keys[: count.value], self._values(raw, count.value)

    def _read_one_by_one(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw keys and values."""
        lib = library()
        none, raw = self._empty(0)
        keys, values = [none], [self._values(raw, 0)]
        key: bytes | None = None
        following = ct.create_string_buffer(self._key.itemsize)
        while lib.bpf_map_get_next_key(self.fd, key, following) >= 0:
            key = following.raw
            found = self.lookup(key)
            if found is not None:
                keys.append(np.frombuffer(key, none.dtype))
                values.append(found)
        return np.concatenate(keys), np.concatenate(values)

    def lookup(self, key: bytes) -> np.ndarray | None:
        """Values of one key, shape (1,) or (1, cpus); None when it is absent."""
        _, raw = self._empty(1)
        result = library().bpf_map_lookup_elem(self.fd, key, raw.ctypes.data_as(ct.c_void_p))
        return None if result < 0 else self._values(raw, 1)

    def update(self, key: bytes, value: bytes) -> None:
        """Set one entry; OSError (E2BIG) when the map is full."""
        check(library().bpf_map_update_elem(self.fd, key, value, ct.c_uint64(BPF_ANY)))

    def delete(self, keys: Iterable[bytes]) -> None:
        """Remove entries; absent ones are none of our business."""
        for key in keys:
            library().bpf_map_delete_elem(self.fd, key)

    def replace(self, wanted: dict[bytes, bytes]) -> int:
        """Make the map hold just `wanted`; returns how many entries did not fit."""
        present, values = self.read()
        held = {present[index].tobytes(): values[index].tobytes() for index in range(len(present))}
        self.delete(key for key in held if key not in wanted)
        refused = 0
        for key, value in wanted.items():
            if held.get(key) == value:
                continue
            try:
                self.update(key, value)
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise
                refused += 1
        return refused
