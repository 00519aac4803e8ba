"""The mapped ring against a file laid out as the kernel lays out a ring buffer."""

import mmap
import os

import numpy as np
import pytest

from tracer.kernel.ring import BUSY_BIT, DISCARD_BIT, MappedRing

RECORD = np.dtype([("serial", "<u8"), ("rest", "V16")])
DATA_BYTES = 4096
STRIDE = 8 + RECORD.itemsize


class FakeRing:
    """Plays the kernel: consumer page, producer page, the data twice."""

    def __init__(self):
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * DATA_BYTES)
        self.produced = 0

    def start_at(self, position):
        self.produced = position
        os.pwrite(self.fd, position.to_bytes(8, "little"), 0)
        self._publish()

    def _publish(self):
        os.pwrite(self.fd, self.produced.to_bytes(8, "little"), mmap.PAGESIZE)

    def _poke(self, position, data):
        """Write at a ring position, in both images, wrapping as the kernel's memory does."""
        for index, byte in enumerate(data):
            offset = (position + index) % DATA_BYTES
            for image in (0, DATA_BYTES):
                os.pwrite(self.fd, bytes([byte]), 2 * mmap.PAGESIZE + image + offset)

    def put(self, serial, flags=0):
        length = (RECORD.itemsize | int(flags)).to_bytes(4, "little")
        self._poke(self.produced, length + bytes(4) + serial.to_bytes(8, "little"))
        self.produced += STRIDE
        self._publish()
        return self.produced - STRIDE

    def commit(self, position):
        self._poke(position, RECORD.itemsize.to_bytes(4, "little"))

    @property
    def consumed(self):
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")


@pytest.fixture
def ring():
    fake = FakeRing()
    yield fake
    os.close(fake.fd)


def _take(reader):
    return reader.take()["serial"].tolist()


def test_an_empty_ring_gives_no_records(ring):
    reader = MappedRing(ring.fd, RECORD, DATA_BYTES)
    assert _take(reader) == []
    reader.close()


def test_records_come_in_order_and_their_space_is_given_back(ring):
    reader = MappedRing(ring.fd, RECORD, DATA_BYTES)
    for serial in range(7):
        ring.put(serial)
    assert _take(reader) == list(range(7))
    assert ring.consumed == 7 * STRIDE
    assert _take(reader) == []
    reader.close()


def test_discarded_records_are_skipped(ring):
    reader = MappedRing(ring.fd, RECORD, DATA_BYTES)
    for serial in range(9):
        ring.put(serial, DISCARD_BIT if serial % 3 == 1 else 0)
    assert _take(reader) == [0, 2, 3, 5, 6, 8]
    assert ring.consumed == 9 * STRIDE
    reader.close()


def test_nothing_behind_an_uncommitted_record_is_taken_before_it(ring):
    reader = MappedRing(ring.fd, RECORD, DATA_BYTES)
    ring.put(0)
    waiting = ring.put(1, BUSY_BIT)
    ring.put(2)
    assert _take(reader) == [0]
    assert ring.consumed == STRIDE
    assert _take(reader) == []
    ring.commit(waiting)
    assert _take(reader) == [1, 2]
    reader.close()


def test_a_batch_that_wraps_is_whole(ring):
    start = DATA_BYTES * 1000 // STRIDE * STRIDE
    ring.start_at(start)
    reader = MappedRing(ring.fd, RECORD, DATA_BYTES)
    taken = []
    for serial in range(301):
        ring.put(serial)
        if serial % 100 == 99:
            taken += _take(reader)
    taken += _take(reader)
    assert taken == list(range(301))
    reader.close()
