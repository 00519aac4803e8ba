"""TCP segments that were sent before, told by their sequence numbers, in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.packet import ETH_P_IP, ETH_P_IPV6
from tracer.layout import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

KNOWN_SENDERS = 65536
FIN, SYN = 1, 2
_IPPROTO_TCP = 6
_IPV6_BYTES = 40
_HALF = 1 << 31


class Retransmissions:
    """Remembers how far each sender of a TCP connection had got."""

    def __init__(self, size: int = KNOWN_SENDERS) -> None:
        self._size = size
        self._sent: dict[bytes, tuple[int, int]] = {}

    def find(self, rows: np.ndarray) -> NDArray[np.bool_]:
        """Which of these `struct hop_event`, first hops of packets, were sent before.

        A segment that its own packet's first hop saw later than the end of its bytes.
        """
        again = np.zeros(len(rows), bool)
        tcp = np.flatnonzero(rows["tuple"]["protocol"] == _IPPROTO_TCP)
        tcp = tcp[np.argsort(rows["time_ns"][tcp], kind="stable")]
        if not len(tcp):
            return again
        begin, length = _sequence(rows.take(tcp))
        size = rows.dtype["tuple"].itemsize
        keys = rows["tuple"][tcp].tobytes()
        times, flags = rows["time_ns"][tcp].tolist(), rows["tcp_flags"][tcp].tolist()
        columns = zip(tcp.tolist(), begin.tolist(), length.tolist(), times, flags, strict=True)
        for at, (row, seq, count, time_ns, flag) in enumerate(columns):
            if count > 0:
                key = keys[at * size : (at + 1) * size]
                again[row] = self._was_sent(key, seq, count, time_ns, opens=bool(flag & SYN))
        return again

    def _was_sent(self, key: bytes, seq: int, count: int, time_ns: int, *, opens: bool) -> bool:
        end = (seq + count) % (2 * _HALF)
        known, known_ns = self._sent.get(key, (end, time_ns))
        ahead = (end - known) % (2 * _HALF)
        if key in self._sent and time_ns > known_ns:
            if ahead == 0 or (ahead >= _HALF and not opens):
                return True
        elif key in self._sent and ahead >= _HALF:
            return False  # an earlier packet that was complete later
        if len(self._sent) >= self._size:
            del self._sent[next(iter(self._sent))]
        self._sent[key] = end, time_ns
        return False


def _sequence(rows: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First sequence number, and how many of them; 0 where the bytes at hand do not tell."""
    packet = rows["packet"]
    l3 = layout().constants["L2_BYTES"]
    ethertype = rows["tuple"]["ethertype"]
    header = np.where(ethertype == ETH_P_IP, (packet[:, l3] & 0xF).astype(np.int64) * 4, 0)
    header = np.where(ethertype == ETH_P_IPV6, _IPV6_BYTES, header)
    l4 = l3 + header
    known = (header > 0) & (l4 + 14 <= rows["captured_bytes"])
    l4 = np.where(known, l4, 0)
    at = np.arange(len(rows))
    seq = sum(packet[at, l4 + 4 + byte].astype(np.int64) << (24 - 8 * byte) for byte in range(4))
    payload = rows["bytes"].astype(np.int64) - header - (packet[at, l4 + 12] >> 4) * np.int64(4)
    flags = rows["tcp_flags"]
    count = np.maximum(payload, 0) + (flags & FIN > 0) + (flags & SYN > 0)
    return np.asarray(seq), np.where(known, count, 0)
