"""Lines of the kernel's log about packets that conntrack found invalid → flat records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.addresses import address_bytes, address_text
from tracer.analysis.conntrack import flow_fields
from tracer.analysis.ct_filter import PROTOCOLS
from tracer.analysis.drops import end_fields
from tracer.ct_layout import ENTRY
from tracer.wall_time import time_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from tracer.model import Node, Record

_LINE = re.compile(
    r"nf_ct_\w+: (?P<why>.*?) IN=(?P<into>\S*) OUT=(?P<out>\S*) .*?"
    r"SRC=(?P<src>\S+) DST=(?P<dst>\S+) .*?PROTO=(?P<proto>\S+)"
    r"(?: SPT=(?P<sport>\d+) DPT=(?P<dport>\d+))?(?P<rest>.*)"
)
"""What nf_log_syslog writes of a packet, behind conntrack's own words."""
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_NAMES = {"icmp6": "icmpv6"}
MEANINGS = (
    ("invalid new", "it belongs to no connection that conntrack knows, and cannot open one"),
    ("seq is over", "its data is beyond the window that the receiver has offered"),
    ("seq is under", "its data was acknowledged long ago: it is an old copy"),
    ("ack is over", "it acknowledges data that conntrack has not seen"),
    ("ack is under", "its acknowledgement is older than any that is still possible"),
    ("packet (index", "it does not fit the state of its connection"),
    ("invalid state", "it does not fit the state of its connection"),
    ("invalid rst", "the reset's sequence number is outside of the window"),
    ("invalid tcp flag", "its TCP flags contradict each other"),
    ("bad", "its checksum or a length in its header is wrong"),
    ("short", "it is shorter than its header"),
    ("truncated", "it is shorter than its header says"),
)
"""How the kernel's words begin, and what they mean."""


@dataclass(frozen=True, slots=True)
class Invalid:
    """Packets that the kernel has called invalid, in the order of the log."""

    rows: NDArray[np.void]
    """(n,) ENTRY with family and `orig` only: enough to choose by."""
    records: list[Record]


def invalid_packets(lines: Iterable[str], node: Node, now_ns: int) -> Invalid:
    """Read lines; those of another form are left out. The log names no network namespace."""
    found = [match for line in lines if (match := _LINE.match(line))]
    rows = np.zeros(len(found), ENTRY)
    records = []
    for row, match in zip(rows, found, strict=True):
        name = match["proto"].lower()
        name = _NAMES.get(name, name)
        ports = int(match["sport"] or 0), int(match["dport"] or 0)
        number = PROTOCOLS.get(name) or (int(name) if name.isdecimal() else 0)
        ends = address_bytes(match["src"]), address_bytes(match["dst"])
        _fill(row, *ends, *ports, number)
        fields = flow_fields(*ends, *ports, number)
        records.append(_record(match, fields, node, now_ns))
    return Invalid(rows, records)


def _fill(row: np.void, saddr: bytes, daddr: bytes, sport: int, dport: int, number: int) -> None:
    flow = row["orig"]
    flow["saddr"], flow["daddr"] = (np.frombuffer(one, np.uint8) for one in (saddr, daddr))
    flow["sport"], flow["dport"], flow["protocol"] = sport, dport, number
    row["family"] = 10 if ":" in address_text(saddr) else 2


def _record(match: re.Match[str], fields: Record, node: Node, now_ns: int) -> Record:
    why = match["why"].strip()
    meaning = next((text for start, text in MEANINGS if why.lower().startswith(start)), "")
    flags = [flag for flag in _FLAGS if flag in match["rest"].partition("RES=")[2].split()]
    record: Record = {
        "type": "invalid",
        "time": time_text(now_ns),
        "k8s.node.name": node.name,
        **fields,
        **end_fields(node, None, "", fields),
        "why": why,
        "explanation": f"Conntrack called it invalid: {meaning or why}.",
    }
    if flags:
        record["tcp.flags"] = ",".join(flags)
    if device := match["into"] or match["out"]:
        record["interface.name"] = device
    return record
