"""What a map gives is what it takes back: against calls that keep entries as the kernel does."""

import ctypes as ct
import errno

import numpy as np
import pytest

from tracer.kernel import maps
from tracer.kernel.maps import Map
from tracer.kernel.program import MapInfo

KEY = np.dtype([("number", "<u4"), ("port", ">u2"), ("pad", "V2")])
"""A port as packets have it: the other way round than on most machines."""
BATCH = 3


class FakeHash:
    """BPF_MAP_TYPE_HASH behind libbpf's calls, up to BATCH entries a call."""

    def __init__(self, count):
        self.entries = {
            np.array((number, 8080 + number, b""), KEY).tobytes(): number.to_bytes(8, "little")
            for number in range(count)
        }

    def bpf_map_lookup_batch(self, _fd, start, end, keys, values, count, _options):
        at = start._obj.value if start else 0
        some = list(self.entries.items())[at : at + BATCH]
        for index, (key, value) in enumerate(some):
            ct.memmove(keys.value + index * len(key), key, len(key))
            ct.memmove(values.value + index * len(value), value, len(value))
        count._obj.value = len(some)
        end._obj.value = at + len(some)
        ct.set_errno(errno.ENOENT)
        return 0 if at + len(some) < len(self.entries) else -errno.ENOENT

    def bpf_map_lookup_and_delete_batch(self, fd, _start, end, keys, values, count, options):
        result = self.bpf_map_lookup_batch(fd, None, end, keys, values, count, options)
        for index in range(count._obj.value):
            del self.entries[ct.string_at(keys.value + index * KEY.itemsize, KEY.itemsize)]
        return result


class OldHash(FakeHash):
    """The same before 5.6: key by key."""

    def bpf_map_lookup_batch(self, *_):
        ct.set_errno(errno.EINVAL)
        return -errno.EINVAL

    bpf_map_lookup_and_delete_batch = bpf_map_lookup_batch

    def bpf_map_get_next_key(self, _fd, key, following):
        known = list(self.entries)
        at = known.index(key) + 1 if key else 0
        if at == len(known):
            return -errno.ENOENT
        following.raw = known[at]
        return 0

    def bpf_map_lookup_elem(self, _fd, key, value):
        ct.memmove(value.value, self.entries[key], 8)
        return 0

    def bpf_map_delete_elem(self, _fd, key):
        del self.entries[key]
        return 0


@pytest.mark.parametrize("kind", [FakeHash, OldHash])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_read_is_there_until_it_is_taken_out(monkeypatch, kind, count):
    fake = kind(count)
    monkeypatch.setattr(maps, "library", lambda: fake)
    one = Map(MapInfo("fake", 1, KEY.itemsize, 8, 4096), -1, KEY, "<u8")
    keys, values = one.read()
    assert keys["port"].tolist() == [8080 + number for number in range(count)]
    assert values.tolist() == keys["number"].tolist()
    assert {key.tobytes() for key in keys} == fake.entries.keys()
    taken = [(keys.copy(), values.copy()) for keys, values in one.drain()]
    assert np.concatenate([keys["number"] for keys, _ in taken]).tolist() == list(range(count))
    assert np.concatenate([values for _, values in taken]).tolist() == list(range(count))
    assert not fake.entries
