"""The kernel's trace of packets through nf_tables: its messages, put together to visits.

One call of nft_do_chain, that is one packet in one base chain, makes one visit. Its first message
has the packet's headers, the others are known by the trace id; that id changes on a packet's way
from hook to hook, so that packets are told by their headers.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from tracer.netfilter import nfnl
from tracer.netfilter.nft_table import FAMILIES, NFNL_SUBSYS_NFTABLES

NFNLGRP_NFTRACE = 9
NFT_MSG_TRACE = NFNL_SUBSYS_NFTABLES << 8 | 17
BUFFER_BYTES = 16 << 20
MAX_OPEN = 4096
"""Visits whose end has not come; more are there only where messages were lost."""
SO_RCVBUFFORCE = 33

(TABLE, CHAIN, HANDLE, TYPE, VERDICT, ID, _LL, NETWORK, TRANSPORT, IIF, _IIFTYPE, OIF, _OIFTYPE,
 MARK, _NFPROTO, POLICY) = range(1, 17)  # fmt: skip
"""enum nft_trace_attributes."""
_BY_POLICY, _BY_RETURN, _BY_RULE = 1, 2, 3
"""enum nft_trace_types."""
_VERDICTS = {
    -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return",
    0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat", 5: "stop",
}  # fmt: skip
_GOES_ON = ("continue", "break", "jump", "goto", "return")
_U32 = struct.Struct(">I")

Step = tuple[str, int, str]
"""(chain, handle of the rule, verdict): `accept`, `drop`, `queue`, `jump NAME`, `return`, …"""


@dataclass(slots=True)
class Visit:
    """One packet in one base chain: every rule that took it, in order."""

    family: str
    """Of the table: `ip`, `inet`, …"""
    table: str
    chain: str
    """The base chain."""
    network: bytes
    """Network header, at most 40 bytes, as it was when the first rule took the packet."""
    transport: bytes
    """At most 20 bytes; empty where there is none."""
    mark: int = 0
    steps: list[Step] = field(default_factory=list)
    verdict: str = ""
    by_policy: bool = False
    """Whether the policy of the base chain gave the verdict, and no rule."""


def open_events() -> socket.socket:
    """A non-blocking socket for the trace messages of the calling thread's namespace."""
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, nfnl.NETLINK_NETFILTER
    )
    sock.settimeout(0)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    sock.bind((0, 0))
    sock.setsockopt(nfnl.SOL_NETLINK, nfnl.NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)
    return sock


class Visits:
    """Puts the messages of one namespace together."""

    def __init__(self) -> None:
        self._open: dict[int, Visit] = {}

    def add(self, data: bytes) -> list[Visit]:
        """Take one datagram; the visits that it completes."""
        done: list[Visit] = []
        for kind, start, end in nfnl.messages(data):
            if kind == NFT_MSG_TRACE:
                visit = self._message(data, start, end)
                if visit:
                    done.append(visit)
        return done

    def _message(self, data: bytes, start: int, end: int) -> Visit | None:
        told = dict(nfnl.attributes(data, start + nfnl.BODY, end))
        number = _number(told, ID)
        visit = self._open.get(number)
        if NETWORK in told:
            if len(self._open) >= MAX_OPEN:
                self._open.clear()
            visit = self._open[number] = Visit(
                family=FAMILIES.get(data[start + nfnl.HEADER.size], "?"),
                table=_text(told.get(TABLE, b"")),
                chain=_text(told.get(CHAIN, b"")),
                network=told[NETWORK],
                transport=told.get(TRANSPORT, b""),
                mark=_number(told, MARK),
            )
        if visit is None or not _take(visit, told):
            return None
        del self._open[number]
        return visit


def _take(visit: Visit, told: dict[int, bytes]) -> bool:
    """Note what one message says; whether the visit is over."""
    if _number(told, TYPE) == _BY_POLICY:
        visit.verdict = _VERDICTS.get(_number(told, POLICY), "?")
        visit.by_policy = True
        return True
    verdict = _verdict(told.get(VERDICT, b""))
    word = verdict.partition(" ")[0]
    # The end of a base chain is told as a rule without a handle that continues.
    if _number(told, TYPE) == _BY_RULE and HANDLE in told:
        chain = _text(told.get(CHAIN, b""))
        visit.steps.append((chain, int.from_bytes(told.get(HANDLE, b""), "big"), verdict))
    visit.verdict = word
    return word not in _GOES_ON


def _verdict(data: bytes) -> str:
    inner = dict(nfnl.attributes(data, 0, len(data)))
    code = int.from_bytes(inner.get(1, b"\0\0\0\0"), "big", signed=True)
    # NF_DROP with an errno, NF_QUEUE with a queue's number in the upper half.
    word = _VERDICTS.get(code if code < 0 else code & 0xFF, "?")
    target = _text(inner.get(2, b""))
    return f"{word} {target}" if target else word


def _number(told: dict[int, bytes], kind: int) -> int:
    value = told.get(kind)
    return int(_U32.unpack(value)[0]) if value else 0


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
