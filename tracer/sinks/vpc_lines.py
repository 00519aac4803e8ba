"""Flow tables as lines of AWS VPC flow logs, version 2, for what reads those.

`account-id` is `-`, `interface-id` the pod (`shop/web-0`), or where there is none the namespace.
Records of what was lost become `SKIPDATA` lines, an interval each; one of both directions becomes
a line of each that was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.flow_table import records
from tracer.wall_time import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.flow_table import FlowTable
    from tracer.model import Record

_HEADER = (
    "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start"
    " end action log-status"
)
_OTHER_END = {
    f"{end}.{name}": f"{other}.{name}"
    for end, other in (("src", "dst"), ("dst", "src"))
    for name in ("address", "port")
}
_ACTIONS = {"forwarded": "ACCEPT", "dropped": "REJECT"}


class FlowLines:
    """Fourteen fields a line, divided by blanks."""

    live = False
    header = f"{_HEADER}\n".encode()

    def lines(self, table: FlowTable) -> list[bytes]:
        """One line a record and direction."""
        rows = records(table)
        times = zip(*(_seconds(table, name) for name in ("time", "end_time")), strict=True)
        return [
            f"{' '.join(_words(way, *span))}\n".encode()
            for row, span in zip(rows, times, strict=True)
            for way in _ways(row)
        ]


def _ways(row: Record) -> list[Record]:
    """The record, and as another one what it says of the other direction."""
    if not row.get("flow.reverse.packets"):
        return [row]
    turned = {_OTHER_END.get(name, name): value for name, value in row.items()}
    back = turned | {name: row[f"flow.reverse.{name}"] for name in ("packets", "bytes")}
    return [row, back] if row["packets"] else [back]


def _seconds(table: FlowTable, name: str) -> Sequence[str]:
    seconds = table.columns[name].values.astype(np.int64) // NS_PER_S
    return [str(second) for second in seconds.tolist()]


def _words(row: Record, start: str, end: str) -> list[str]:
    if row["type"] == "lost":
        return ["2", *["-"] * 9, start, end, "-", "SKIPDATA"]
    has_ports = "transport" in row
    names = ("network.iana_number", "packets", "bytes")
    return [
        "2",
        "-",
        _place(row),
        row.get("src.address", "-"),
        row.get("dst.address", "-"),
        *(str(row.get(name, 0)) if has_ports else "-" for name in ("src.port", "dst.port")),
        *(str(row.get(name, "-")) for name in names),
        start,
        end,
        _ACTIONS[row["verdict"]],
        "OK",
    ]


def _place(row: Record) -> str:
    if "k8s.pod.name" in row:
        parts = (row.get("k8s.pod.namespace"), row["k8s.pod.name"])
        return "/".join(part for part in parts if part)
    return str(row.get("netns.name") or row.get("netns") or "-")
