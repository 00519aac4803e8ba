"""One running instance a command, without a file that could outlive it."""

from __future__ import annotations

import contextlib
import socket
import struct

from tracer.errors import TracerError


def claim(command: str) -> socket.socket:
    """Claim `command` for this process until the returned socket closes, kill -9 included.

    An abstract Unix socket: it vanishes with the process. Raises TracerError naming the pid of
    the instance that runs already (in this network namespace).
    """
    address = f"\0node-packet-tracer-{command}"
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claimed.bind(address)
    except OSError:
        claimed.close()
        raise TracerError(
            f"{command}: already running{_holder(address)}",
            "stop it first, or say --concurrent to run another beside it",
        ) from None
    claimed.listen()
    return claimed


def _holder(address: str) -> str:
    """` as pid N`, or nothing when the holder is just ending."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(address)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return f" as pid {struct.unpack('3i', credentials)[0]}"
    return ""
