"""A recording is a line of magic and blocks: tag, sizes, checksum, compressed payload.

Blocks are whole or not there: whoever reads tells a file that was cut (the last block is
short) from one that is damaged (a checksum does not hold).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 1
MAGIC = b"tracer recording 1\n"
MAGIC_STEM = b"tracer recording "

HEAD, KIND, ROWS, CONTEXT = b"HEAD", b"KIND", b"ROWS", b"CTXT"
EVIDENCE, LOST, RULES, DONE = b"EVID", b"LOST", b"RULE", b"DONE"
"""Tags. A reader skips those it does not know."""

MAX_BYTES = 64 << 20
"""No payload is larger, compressed or not: a reader need not believe more."""

LEVEL = 1
"""zstd's fastest ordinary level: on recorded hops 3 is slower and saves nothing more."""

_FRAME = struct.Struct("<4sIII")  # tag, bytes stored, bytes of the payload, crc32 of all others
_CHECKED = struct.Struct("<4sII")


@dataclass(frozen=True, slots=True)
class Block:
    """One block, its payload as it was given to `encode`."""

    tag: bytes
    payload: bytes
    at: int
    """Its place in the file, bytes."""


class CutError(Exception):
    """The file ends in the middle of a block; `at` is where that began, bytes."""

    def __init__(self, at: int) -> None:
        super().__init__(f"cut at byte {at}")
        self.at = at


class DamageError(Exception):
    """A block is not what was written: its place and what is wrong with it."""


class Encoder:
    """Makes blocks; keeps the compressor's tables from one to the next."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=LEVEL)

    def encode(self, tag: bytes, payload: bytes) -> bytes:
        """One block as it stands in the file; ValueError for a payload over `MAX_BYTES`."""
        if len(payload) > MAX_BYTES:
            raise ValueError(f"a block of {len(payload)} bytes")
        stored = self._zstd.compress(payload)
        checked = _CHECKED.pack(tag, len(stored), len(payload))
        crc = zlib.crc32(stored, zlib.crc32(checked))
        return checked + crc.to_bytes(4, "little") + stored


def blocks(file: BinaryIO, only: bytes = b"") -> Iterator[Block]:
    """Blocks of `file` from its position on, or those of one tag; CutError or DamageError."""
    decompressor = zstandard.ZstdDecompressor()
    while True:
        at = file.tell()
        frame = file.read(_FRAME.size)
        if not frame:
            return
        if len(frame) < _FRAME.size:
            raise CutError(at)
        tag, stored_bytes, payload_bytes, crc = _FRAME.unpack(frame)
        if max(stored_bytes, payload_bytes) > MAX_BYTES:
            raise DamageError(f"byte {at}: impossible size")
        stored = file.read(stored_bytes)
        if len(stored) < stored_bytes:
            raise CutError(at)
        if zlib.crc32(stored, zlib.crc32(frame[: _CHECKED.size])) != crc:
            raise DamageError(f"byte {at}: the checksum does not hold")
        if not only or tag == only:
            yield Block(tag, _expand(decompressor, stored, payload_bytes, at), at)


def _expand(
    decompressor: zstandard.ZstdDecompressor, stored: bytes, payload_bytes: int, at: int
) -> bytes:
    try:
        # What the frame itself claims is what zstandard would allocate.
        if zstandard.frame_content_size(stored) != payload_bytes:
            raise DamageError(f"byte {at}: impossible size")
        return decompressor.decompress(stored, max_output_size=payload_bytes)
    except zstandard.ZstdError as error:
        raise DamageError(f"byte {at}: cannot be decompressed") from error
