"""Frames → a pcapng file for Wireshark and tshark: one interface a device, a comment a packet.

Written by the rules of draft-ietf-opsawg-pcapng: one section, nanosecond time stamps, packet ids
that follow a packet from interface to interface.

A batch is one write, and no block of it crosses the end of a page (padding that readers pass over
stands before one that would): SIGKILL can stop a write only between two pages, so that whatever
ends the writer, the file holds whole blocks. Why, is told in line_file.
"""

from __future__ import annotations

import contextlib
import struct
import time
from typing import TYPE_CHECKING

from tracer import __version__
from tracer.errors import TracerError
from tracer.files import PAGE_BYTES, NoRoomError, PieceFile, sync, unwritable
from tracer.sinks import rotation
from tracer.sinks.rotation import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
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


CAPTURE = Policy(max_bytes=None, max_backups=None)
"""What is usual for captures: one file, and of those that rotate none is removed."""


class Pcapng:
    """A capture, written as the frames come: one file, or several that are captures of their own.

    By a policy that rotates, what exists becomes a backup, and a new file takes the path when its
    section header is there: whatever ends the writer, `path` is a capture, or not there.
    """

    def __init__(
        self,
        path: Path,
        policy: Policy = CAPTURE,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin a file; TracerError when it cannot be written, or holds something else."""
        self.name = str(path)
        self._path, self._policy, self._tell = path, policy, tell
        self._told_removal = False
        self._file: PieceFile | None = None
        self._interfaces: dict[tuple[DeviceKey, str, str], int] = {}
        self._size = self._head_bytes = len(_section())
        self._opened_s = time.monotonic()
        if policy.rotates:
            self._resume()
            self._begin()
        else:
            self._file = PieceFile(path, MAGIC)
            self._file.append(_section())

    def write(self, frames: Iterable[Frame]) -> None:
        """Write a batch, to each file at once; TracerError when there is no room."""
        made = bytearray()
        for frame in frames:
            piece = self._piece(frame, len(made))
            if self._is_too_much(len(made), len(piece)):
                self._append(made)
                made.clear()
                self._begin()
                piece = self._piece(frame, 0)
            made += piece
        self._append(made)

    def tick(self) -> None:
        """To be called now and then: begins a new file if this one is old enough."""
        most_s = self._policy.max_age_s
        if most_s and time.monotonic() - self._opened_s >= most_s:
            if not self._has_packets(0):
                self._opened_s = time.monotonic()
                return
            # Where there is no room, the next write tries again, and says so.
            with contextlib.suppress(NoRoomError):
                self._begin()

    def close(self) -> None:
        """Close the file; everything is written already. May be called twice."""
        if self._file:
            self._sync("rotate", "batch")
            self._file.close()
            self._file = None

    def _resume(self) -> None:
        if self._path.exists() and not self._path.is_file():
            raise TracerError(f"{self.name}: not a file that rotates", "leave out --file-max-…")
        try:
            rotation.resume(self._path)
        except OSError as error:
            raise unwritable(self.name, error) from error

    def _begin(self) -> None:
        """Begin a file under a hidden name, and have it take the path."""
        grows = rotation.partial(self._path)
        fresh = PieceFile(grows, MAGIC)
        try:
            fresh.append(_section())
            self._replace(grows)
        except BaseException:
            fresh.close()
            grows.unlink(missing_ok=True)
            raise
        if self._file:
            self._file.close()
        fresh.name = self.name
        self._file = fresh
        self._interfaces = {}
        self._size = self._head_bytes
        self._opened_s = time.monotonic()

    def _replace(self, grows: Path) -> None:
        """Make a backup of what is at the path, if it has packets, and put `grows` there."""
        try:
            there = self._path.exists()
            # Locked one after the other: of two tracers one is refused, whenever they come.
            if there and self._file is None:
                self._file = PieceFile(self._path, MAGIC, keep=True)
            if there and self._path.stat().st_size > len(_section()):
                self._give_way()
            grows.rename(self._path)
        except OSError as error:
            raise unwritable(self.name, error) from error

    def _give_way(self) -> None:
        self._sync("rotate", "batch")
        removed = rotation.shift(self._path, time.time_ns(), self._policy, self._tell)
        if removed and not self._told_removal:
            self._told_removal = True
            self._tell(f"{self.name}: old backups are removed from now on")

    def _piece(self, frame: Frame, waiting_bytes: int) -> bytes:
        """Blocks of a frame for behind so many bytes that are not written yet."""
        blocks = []
        # A device that has changed its name or its pod is another interface.
        key = (frame.device, frame.name, frame.description)
        index = self._interfaces.get(key)
        if index is None:
            index = self._interfaces[key] = len(self._interfaces)
            blocks.append(_interface(frame))
        blocks.append(_packet(frame, index))
        return paged(blocks, self._size + waiting_bytes)

    def _has_packets(self, waiting_bytes: int) -> bool:
        return self._size + waiting_bytes > self._head_bytes

    def _is_too_much(self, waiting_bytes: int, piece_bytes: int) -> bool:
        most = self._policy.max_bytes
        return (
            most is not None
            and self._has_packets(waiting_bytes)
            and self._size + waiting_bytes + piece_bytes > most
        )

    def _append(self, made: bytearray) -> None:
        if made and self._file:
            self._file.append(bytes(made))
            self._size += len(made)
            self._sync("batch")

    def _sync(self, *when: str) -> None:
        """Wait for the disk, if the policy is one of `when`."""
        if self._policy.fsync in when and self._path.is_file():
            sync(self._path)


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


def _section() -> bytes:
    body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
    return _block(_SECTION, body, _option(_SHB_USERAPPL, f"tracer {__version__}".encode()))


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
