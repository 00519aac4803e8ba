"""Records of both directions as a row for each direction and end, as `flows` usually tells them."""

from __future__ import annotations

from tracer.flow_table import FIELDS

REVERSE = "flow.reverse."
BOTH_HERE = "flow.both_here"
_ENDS = {"src.": "dst.", "dst.": "src.", "k8s.src.": "k8s.dst.", "k8s.dst.": "k8s.src."}
_FLIPPED = "CASE direction WHEN 'egress' THEN 'ingress' WHEN 'ingress' THEN 'egress' END"
_PEERS = {
    "k8s.pod.namespace": "namespace",
    "k8s.pod.name": "pod.name",
    "k8s.owner.kind": "owner.kind",
    "k8s.owner.name": "owner.name",
}
_AT_DEVICE = ("interface.name", "interface.index", "netns", "netns.name")
_TOLD_ONCE = ("tcp.rtt_ns", "tcp.retransmits", *(n for n in FIELDS if n.startswith("transit.")))


def ways_sql() -> str:
    """The view `ways`: `flows`, and as rows of their own what these say besides.

    `way` is 0 of a record as it was written, 1 of the other direction, 2 and 3 of the same two as
    the other end's pod sees them, where it is on the same node: its own counts were left out.
    """
    seen, here = f'"{REVERSE}packets" > 0', f'"{BOTH_HERE}"'
    ways = (
        (_back(), seen),
        (_at_peer(_FLIPPED), here),
        (_back() | _at_peer("direction"), f"{here} AND {seen}"),
    )
    parts = ["SELECT *, 0 AS way FROM flows"]
    parts += [
        f"SELECT * {_replaced(values)}, {number} AS way FROM flows WHERE {where}"
        for number, (values, where) in enumerate(ways, 1)
    ]
    return " UNION ALL ".join(parts)


def _replaced(values: dict[str, str]) -> str:
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in values.items())
    return f"REPLACE ({columns})"


def _back() -> dict[str, str]:
    """Column → SQL: what goes the other way."""
    values = {"direction": _FLIPPED}
    for name in FIELDS:
        for begin, other in _ENDS.items():
            if name.startswith(begin):
                values[name] = f'"{other}{name.removeprefix(begin)}"'
        if REVERSE + name in FIELDS:
            values[name] = f'"{REVERSE}{name}"'
    return values


def _at_peer(direction: str) -> dict[str, str]:
    """Column → SQL: the same packets as the pod of the server sees them."""
    values = {"direction": direction, **dict.fromkeys((*_AT_DEVICE, *_TOLD_ONCE), "NULL")}
    names = {name: f'coalesce("k8s.backend.{of}", "k8s.dst.{of}")' for name, of in _PEERS.items()}
    return values | names
