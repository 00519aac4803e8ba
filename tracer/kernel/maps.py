"""BPF maps as numpy columns: batch calls where the kernel has them, one by one where not."""

from __future__ import annotations

import ctypes as ct
import errno
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracer.kernel.libbpf import check, library

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracer.kernel.program import MapInfo

BPF_MAP_TYPE_PERCPU_HASH = 5
BPF_MAP_TYPE_PERCPU_ARRAY = 6
PERCPU = (BPF_MAP_TYPE_PERCPU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY)
BPF_ANY = 0
ENOTSUPP = 524
"""The kernel's own number, which <errno.h> does not have."""


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

    def read(self, expected: int = 4096) -> tuple[np.ndarray, np.ndarray]:
        """All entries as (keys, values). A first guess of their number saves calls."""
        try:
            return self._read_batch(max(expected, 64))
        except OSError as error:
            if error.errno not in (errno.EINVAL, ENOTSUPP):
                raise
            return self._read_one_by_one()

    def _read_batch(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """BPF_MAP_LOOKUP_BATCH, since 5.6 (cb4d03ab499d)."""
        lib = library()
        chunk = min(chunk, self.info.max_entries)
        cursor, started = ct.c_uint64(), False
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        while True:
            some_keys, raw = self._empty(chunk)
            count = ct.c_uint32(chunk)
            result = lib.bpf_map_lookup_batch(
                self.fd,
                ct.byref(cursor) if started else None,
                ct.byref(cursor),
                some_keys.ctypes.data_as(ct.c_void_p),
                raw.ctypes.data_as(ct.c_void_p),
                ct.byref(count),
                None,
            )
            code = 0 if result >= 0 else ct.get_errno() or -result
            if code == errno.ENOSPC and count.value == 0:
                chunk *= 2  # one bucket holds more than fits
                continue
            if code not in (0, errno.ENOENT, errno.ENOSPC):
                check(result)
            keys.append(some_keys[: count.value])
            values.append(self._values(raw, count.value))
            started = True
            if code == errno.ENOENT:
                return self._keys(keys), np.concatenate(values)

    def _read_one_by_one(self) -> tuple[np.ndarray, np.ndarray]:
        lib = library()
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        key: bytes | None = None
        following = ct.create_string_buffer(self._key.itemsize)
        while lib.bpf_map_get_next_key(self.fd, key, following) >= 0:
            key = following.raw
            found = self.lookup(key)
            if found is not None:
                keys.append(np.frombuffer(key, f"V{len(key)}"))
                values.append(found)
        if not keys:
            none, raw = self._empty(0)
            return self._keys([none]), self._values(raw, 0)
        return self._keys(keys), np.concatenate(values)

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

    def clear(self, keys: np.ndarray) -> None:
        """Remove all of `keys`, in one call where the kernel can (5.6)."""
        if not len(keys):
            return
        keys = np.ascontiguousarray(keys)
        count = ct.c_uint32(len(keys))
        result = library().bpf_map_delete_batch(
            self.fd, keys.ctypes.data_as(ct.c_void_p), ct.byref(count), None
        )
        if result < 0:
            self.delete(keys[index].tobytes() for index in range(len(keys)))

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
