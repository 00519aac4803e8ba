"""Frames → a pcapng file for Wireshark and tshark: one interface a device, a comment a packet.

Written by the rules of draft-ietf-opsawg-pcapng: one section, nanosecond time stamps, packet ids
that follow a packet from interface to interface.

A batch is one write, and no block of it crosses the end of a page (padding that readers pass over
stands before one that would): SIGKILL can stop a write only between two pages, so that whatever
ends the writer, the file holds whole blocks. Why, is told in line_file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tracer import __version__
from tracer.files import PAGE_BYTES, PieceFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tracer.model import DeviceKey, Frame

MAGIC = struct.pack("<I", 0x0A0D0D0A)
"""Type of a section header: how every pcapng file begins, in either byte order."""

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER, _LENGTH_UNKNOWN = 0x1A2B3C4D, 0xFFFFFFFFFFFFFFFF
_LINKTYPE_ETHERNET, _NO_SNAPLEN, _NANOSECONDS = 1, 0, 9
_COMMENT, _IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _SHB_USERAPPL = 1, 2, 3, 9, 4
_EPB_FLAGS, _EPB_PACKETID = 2, 5
_MAX_OPTION_BYTES = 0xFFFF
_PADDING = 0x80000001
"""A type that is left to local use: readers know no such block, and pass it over."""
_LEAST_BLOCK = 12


class Pcapng:
    """One capture file, written as the frames come."""

    def __init__(self, path: Path) -> None:
        """Begin the file; TracerError when it cannot be written, or holds something else."""
        self._file = PieceFile(path, MAGIC)
        self._interfaces: dict[tuple[DeviceKey, str, str], int] = {}
        section = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
        maker = _option(_SHB_USERAPPL, f"tracer {__version__}".encode())
        self._size = 0
        self._append([_block(_SECTION, section, maker)])

    def write(self, frames: Iterable[Frame]) -> None:
        """Write a batch; TracerError when there is no room."""
        made: list[bytes] = []
        for frame in frames:
            # A device that has changed its name or its pod is another interface.
            key = (frame.device, frame.name, frame.description)
            index = self._interfaces.get(key)
            if index is None:
                index = self._interfaces[key] = len(self._interfaces)
                made.append(_interface(frame))
            made.append(_packet(frame, index))
        self._append(made)

    def close(self) -> None:
        """Close the file; everything is written already."""
        self._file.close()

    def _append(self, made: Sequence[bytes]) -> None:
        piece = paged(made, self._size)
        self._file.append(piece)
        self._size += len(piece)


def paged(made: Sequence[bytes], at_bytes: int) -> bytes:
    """Blocks for a file of `at_bytes`, none of which crosses the end of a page.

    But one that is longer than a page.
    """
    data = bytearray()
    for block in made:
        room = PAGE_BYTES - (at_bytes + len(data)) % PAGE_BYTES
        # What is left must be nothing, or enough for padding.
        fits = len(block) == room or len(block) <= room - _LEAST_BLOCK
        if not fits and _LEAST_BLOCK <= room < PAGE_BYTES:
            data += _block(_PADDING, bytes(room - _LEAST_BLOCK))
        data += block
    return bytes(data)


def _interface(frame: Frame) -> bytes:
    return _block(
        _INTERFACE,
        struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, _NO_SNAPLEN),
        _option(_IF_NAME, frame.name.encode()),
        _option(_IF_DESCRIPTION, frame.description.encode()),
        _option(_IF_TSRESOL, bytes([_NANOSECONDS])),
    )


def _packet(frame: Frame, interface: int) -> bytes:
    high, low = divmod(frame.time_ns % (1 << 64), 1 << 32)
    length = min(frame.length_bytes, 0xFFFFFFFF)
    body = struct.pack("<IIIII", interface, high, low, len(frame.data), length)
    options = [_option(_COMMENT, frame.comment.encode())]
    if frame.flow:
        options.append(_option(_EPB_FLAGS, struct.pack("<I", frame.flow)))
    if frame.packet_id:
        options.append(_option(_EPB_PACKETID, struct.pack("<Q", frame.packet_id)))
    return _block(_PACKET, body + _padded(frame.data), *options)


def _option(code: int, value: bytes) -> bytes:
    value = value[:_MAX_OPTION_BYTES]
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes, *options: bytes) -> bytes:
    content = body + b"".join(options) + (_option(0, b"") if options else b"")
    size = struct.pack("<I", len(content) + _LEAST_BLOCK)
    return struct.pack("<I", kind) + size + content + size


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
