"""What conntrack writes to the kernel's log of packets that it finds invalid.

It does so only with net.netfilter.nf_conntrack_log_invalid (and outside of the node's own
namespace with net.netfilter.nf_log_all_netns): settings that are nobody's but the administrator's.
"""

from __future__ import annotations

import os

MARK = "nf_ct_"
_LINE_BYTES = 8192
"""More than one record of /dev/kmsg ever has."""


class KernelLog:
    """Lines of the kernel's log from now on; none where /dev/kmsg may not be read."""

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self.lost = 0
        """How often lines were overwritten before they were read."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def read(self) -> list[str]:
        """Conntrack's lines since the last call, without the log's own prefix."""
        lines: list[str] = []
        while self._fd >= 0:
            try:
                raw = os.read(self._fd, _LINE_BYTES)
            except BrokenPipeError:
                self.lost += 1
                continue
            except OSError:
                break
            if not raw:
                break
            text = raw.decode(errors="replace").partition(";")[2].partition("\n")[0]
            if text.startswith(MARK):
                lines.append(text)
        return lines

    def close(self) -> None:
        """Close it. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
