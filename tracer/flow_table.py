"""Flow records in columns: what they are called, of which type, and how tables are cut and joined.

`COLUMNS` is the one home of the names: Parquet's schema, CSV's header, the rows of JSON lines and
the table in docs/formats.md come from it. A new field is one line here, and whoever fills it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.errors import TracerError, like
from tracer.wall_time import time_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tracer.model import Record

SCHEMA_VERSION = 1
"""Of `COLUMNS`: grows when a name goes or changes its meaning or type; new names do not count."""

TIME, TEXT, BOOL = "time", "text", "bool"
"""Nanoseconds since 1970 in UTC; words; true or absent. Other kinds are numpy's integer types."""


@dataclass(frozen=True, slots=True)
class Field:
    """One column of flow records."""

    name: str
    kind: str
    meaning: str


COLUMNS = (
    Field("type", TEXT, "`flow`, or `lost`: then only times, node, `source` and `count` are there"),
    Field("time", TIME, "first packet in the interval; of what died, the interval's begin"),
    Field("end_time", TIME, "last packet in the interval; of what died, the interval's end"),
    Field("direction", TEXT, "`ingress` or `egress`, as the pod `k8s.pod.name` sees it"),
    Field("verdict", TEXT, "`forwarded` or `dropped`"),
    Field("k8s.node.name", TEXT, "the node"),
    Field("k8s.pod.namespace", TEXT, "of the pod the record is charged to"),
    Field("k8s.pod.name", TEXT, "the pod the record is charged to; its uid while unnamed"),
    Field("k8s.owner.kind", TEXT, "what made that pod, by its labels: `Deployment`, …"),
    Field("k8s.owner.name", TEXT, "its name"),
    Field("k8s.src.namespace", TEXT, "of the pod that sent, if it is known"),
    Field("k8s.src.pod.name", TEXT, "the pod that sent"),
    Field("k8s.src.owner.kind", TEXT, "what made it"),
    Field("k8s.src.owner.name", TEXT, "its name"),
    Field("k8s.dst.namespace", TEXT, "of the pod that was to receive, if it is known"),
    Field("k8s.dst.pod.name", TEXT, "the pod that was to receive"),
    Field("k8s.dst.owner.kind", TEXT, "what made it"),
    Field("k8s.dst.owner.name", TEXT, "its name"),
    Field("service.namespace", TEXT, "of the Service that was asked, or that answers"),
    Field("service.name", TEXT, "its name"),
    Field("service.address", TEXT, "its address, before DNAT"),
    Field("service.port", "u2", "its port, or NodePort"),
    Field("service.source", TEXT, "`rules`: by kube-proxy's rules; absent: by the Kubernetes API"),
    Field("network.type", TEXT, "`ipv4`, `ipv6`, `arp`, …"),
    Field("transport", TEXT, "`tcp`, `udp`, `icmp`, …; a protocol without a name as its number"),
    Field("network.iana_number", "u1", "the same as a number"),
    Field("src.address", TEXT, "who sent"),
    Field("src.port", "u2", "of TCP, UDP, UDP-Lite, DCCP, SCTP"),
    Field("dst.address", TEXT, "who was to receive"),
    Field("dst.port", "u2", "of the same"),
    Field("src.dns.name", TEXT, "with `--dns`: the names that had led the pod there, newest first"),
    Field("dst.dns.name", TEXT, "likewise; commas between several"),
    Field("icmp.type", "u1", "ICMP or ICMPv6"),
    Field("icmp.code", "u1", "of the same"),
    Field("packets", "u8", "how many"),
    Field("bytes", "u8", "from the network header on"),
    Field("sample.rate", "u2", "one packet in so many was counted, for all; absent: each was"),
    Field("dscp", "u1", "differentiated services, of the last packet looked at; absent: 0"),
    Field("tcp.flags", TEXT, "all that were seen: `SYN,ACK`"),
    Field("tcp.retransmits", "u8", "`egress`: how many the pod's TCP sent again; absent: 0"),
    Field("tcp.resets", "u8", "segments with RST; absent: 0"),
    Field("tcp.zero_windows", "u8", "segments without room for an answer; absent: 0"),
    Field("tcp.rtt_ns", "u8", "`egress`: round-trip time as the pod's TCP smooths it"),
    Field("tcp.handshake_ns", "u8", "from SYN to SYN-ACK, both at the pod's device"),
    Field("conntrack.state", TEXT, "`new`, `established`: of the node's entry for the connection"),
    Field("conntrack.direction", TEXT, "`original`: as it was opened; `reply`"),
    Field("conntrack.tcp.state", TEXT, "`SYN_SENT`, `ESTABLISHED`, …"),
    Field("conntrack.zone", "u2", "absent: 0"),
    Field("conntrack.mark", "u4", "absent: 0"),
    Field("flow.id", "u8", "of the connection: of both directions, both ends, both sides of NAT"),
    Field(
        "flow.reverse.packets", "u8", "`--bidirectional`: how many the other way; 0: none was seen"
    ),
    Field("flow.reverse.bytes", "u8", "of the same"),
    Field("flow.reverse.dscp", "u1", "the other way, as all that begins so"),
    Field("flow.reverse.tcp.flags", TEXT, "all that were seen"),
    Field("flow.reverse.tcp.retransmits", "u8", "where who answers is a pod of this node"),
    Field("flow.reverse.tcp.resets", "u8", "absent: 0"),
    Field("flow.reverse.tcp.zero_windows", "u8", "absent: 0"),
    Field("flow.reverse.tcp.rtt_ns", "u8", "where who answers is a pod of this node"),
    Field("flow.reverse.transit.count", "u8", "where both ends are pods of this node"),
    Field("flow.reverse.transit.sum_ns", "u8", "likewise"),
    Field("flow.reverse.transit.max_ns", "u8", "likewise"),
    Field("flow.reverse.transit.histogram", TEXT, "likewise"),
    Field("flow.both_here", BOOL, "true: the server's pod is on this node too, and not told again"),
    Field(
        "k8s.client.namespace", TEXT, "of the pod that opened the connection, if conntrack tells"
    ),
    Field("k8s.client.pod.name", TEXT, "the pod that opened it"),
    Field("k8s.client.owner.kind", TEXT, "what made it"),
    Field("k8s.client.owner.name", TEXT, "its name"),
    Field("k8s.backend.namespace", TEXT, "of the pod that answers, behind a Service or not"),
    Field("k8s.backend.pod.name", TEXT, "the pod that answers"),
    Field("k8s.backend.owner.kind", TEXT, "what made it"),
    Field("k8s.backend.owner.name", TEXT, "its name"),
    Field("client.address", TEXT, "who opened the connection, where NAT changed either end"),
    Field("client.port", "u2", "of the same"),
    Field("nat.src.address", TEXT, "where the connection comes from after SNAT"),
    Field("nat.src.port", "u2", "of the same"),
    Field("nat.dst.address", TEXT, "where it goes to after DNAT: the backend"),
    Field("nat.dst.port", "u2", "of the same"),
    Field("transit.count", "u8", "`ingress`: packets timed on their way across the node"),
    Field("transit.sum_ns", "u8", "from the sending pod's device to the receiving one's, together"),
    Field("transit.max_ns", "u8", "the longest"),
    Field(
        "transit.histogram", TEXT, "`4096:7,8192:1`: power of two in ns, how many up to the next"
    ),
    Field("drop.reason", TEXT, "why they died, in the kernel's words"),
    Field("drop.location", TEXT, "the code that dropped them, `symbol+0xoffset`"),
    Field("flow.other", BOOL, "true: flows of a device that found no room in the map, summed"),
    Field("interface.name", TEXT, "the pod's device; of what died, the one it was at"),
    Field("interface.index", "u4", "its number"),
    Field("netns", "u4", "network namespace of that device: inode"),
    Field("netns.name", TEXT, "its name, `node` for the node's own"),
    Field("source", TEXT, "of `lost`: what lost them"),
    Field("count", "u8", "of `lost`: how many"),
    Field(
        "tunnel.interface.name", TEXT, "the node's tunnel device to the other end, by its routes"
    ),
    Field("tunnel.type", TEXT, "of that device: `vxlan`, `ipip`, `wireguard`, …"),
)
FIELDS: Mapping[str, Field] = {field.name: field for field in COLUMNS}


@dataclass(frozen=True, slots=True)
class Column:
    """One field of many records."""

    values: NDArray[np.generic]
    """(n,): numbers, int64 nanoseconds, booleans; of text int32 indices into `words`, or -1."""
    words: tuple[str, ...] | None = None
    """Text only; each once."""
    held: NDArray[np.bool_] | None = None
    """(n,): where a number is there; None: everywhere. Not used for text."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n,): where the field is known."""
        if self.words is not None:
            return np.asarray(self.values.astype(np.int32, copy=False) >= 0)
        return np.ones(len(self.values), bool) if self.held is None else self.held


@dataclass(frozen=True, slots=True)
class FlowTable:
    """Records of type `flow` and `lost`; a column that is not there is unknown in all of them."""

    rows: int
    columns: Mapping[str, Column]
    """By name, in the order of `COLUMNS`."""


def table(rows: int, columns: Mapping[str, Column]) -> FlowTable:
    """`columns` in the order of `COLUMNS`, those that tell nothing left out."""
    unknown = columns.keys() - FIELDS.keys()
    if unknown:
        raise ValueError(f"not in COLUMNS: {sorted(unknown)}")
    told = {name: columns[name] for name in FIELDS if name in columns}
    return FlowTable(rows, {name: one for name, one in told.items() if one.present.any()})


def coded(texts: Iterable[str | None]) -> Column:
    """Texts as a column; None and the empty text are absent."""
    words: dict[str, int] = {}
    indices = [words.setdefault(text, len(words)) if text else -1 for text in texts]
    return Column(np.array(indices, np.int32), tuple(words))


def constant(text: str, rows: int) -> Column:
    """One text in every row."""
    return Column(np.zeros(rows, np.int32), (text,))


def powers_text(powers: Iterable[tuple[int, int]]) -> str:
    """A histogram as records have it, `4096:7,8192:1`: power of two, how many up to the next."""
    return ",".join(f"{power}:{count}" for power, count in powers if count)


def powers_of(text: str) -> dict[int, int]:
    """What `powers_text` has written: power of two → how many."""
    pairs = (one.split(":") for one in text.split(",") if one)
    return {int(power): int(count) for power, count in pairs}


def lost_table(source: str, count: int, node: str, time_ns: int) -> FlowTable:
    """One record that says that `count` of `source` are missing."""
    times = Column(np.array([time_ns], np.int64))
    columns = {
        "type": coded(["lost"]),
        "time": times,
        "end_time": times,
        "k8s.node.name": coded([node]),
        "source": coded([source]),
        "count": Column(np.array([count], np.uint64)),
    }
    return table(1, columns)


def take(whole: FlowTable, rows: NDArray[np.generic] | slice) -> FlowTable:
    """Some rows, by mask, indices or slice."""
    columns = {
        name: Column(one.values[rows], one.words, None if one.held is None else one.held[rows])
        for name, one in whole.columns.items()
    }
    return FlowTable(len(np.empty(whole.rows, np.int8)[rows]), columns)


def only(whole: FlowTable, names: Iterable[str]) -> FlowTable:
    """Some columns; `type` stays, and what a lost record tells."""
    kept = {*names, "type", "source", "count"}
    return FlowTable(whole.rows, {name: one for name, one in whole.columns.items() if name in kept})


def concat(tables: Sequence[FlowTable]) -> FlowTable:
    """All rows of several tables, in their order; of none, none."""
    tables = [one for one in tables if one.rows]
    if len(tables) == 1:
        return tables[0]
    names = [name for name in FIELDS if any(name in one.columns for one in tables)]
    joined = {name: _joined(name, tables) for name in names}
    return FlowTable(sum(one.rows for one in tables), joined)


def _joined(name: str, tables: Sequence[FlowTable]) -> Column:
    parts = [one.columns.get(name) for one in tables]
    rows = [one.rows for one in tables]
    if FIELDS[name].kind == TEXT:
        return _joined_text(parts, rows)
    known = next(part for part in parts if part is not None)
    values = [
        np.zeros(count, known.values.dtype) if part is None else part.values
        for part, count in zip(parts, rows, strict=True)
    ]
    held = [
        np.zeros(count, bool) if part is None else part.present
        for part, count in zip(parts, rows, strict=True)
    ]
    everywhere = np.concatenate(held)
    return Column(np.concatenate(values), None, None if everywhere.all() else everywhere)


def _joined_text(parts: Sequence[Column | None], rows: Sequence[int]) -> Column:
    words: dict[str, int] = {}
    values = []
    for part, count in zip(parts, rows, strict=True):
        if part is None:
            values.append(np.full(count, -1, np.int32))
            continue
        codes = [words.setdefault(word, len(words)) for word in part.words or ()]
        values.append(np.array([*codes, -1], np.int32)[part.values.astype(np.int32)])
    return Column(np.concatenate(values), tuple(words))


def texts(column: Column) -> list[str | None]:
    """A column of text, row by row."""
    words = np.array([*(column.words or ()), None], object)
    found: list[str | None] = words[column.values.astype(np.int32)].tolist()
    return found


def _cells(field: Field, column: Column) -> list[object]:
    if field.kind == TEXT:
        return list(texts(column))
    if field.kind == TIME:
        return list(time_texts(column.values))
    cells: list[object] = column.values.tolist()
    return cells


def records(whole: FlowTable) -> list[Record]:
    """Flat records, a dictionary each; what is not known is left out."""
    names = list(whole.columns)
    cells = [_cells(FIELDS[name], column) for name, column in whole.columns.items()]
    present = [column.present for column in whole.columns.values()]
    if not names:
        return [{} for _ in range(whole.rows)]
    # Rows that know the same fields are made together: no look at each cell.
    packed = np.packbits(np.stack(present, axis=1), axis=1)
    shapes, shape = _unique_rows(packed)
    made = np.empty(whole.rows, object)
    for index, bits in enumerate(shapes):
        rows = np.flatnonzero(shape == index)
        known = np.flatnonzero(np.unpackbits(bits, count=len(names))).tolist()
        columns = [_picked(cells[at], rows, whole.rows) for at in known]
        keys = [names[at] for at in known]
        made[rows] = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)] or [
            {}
        ] * len(rows)
    return list(made)


def _picked(cells: list[object], rows: NDArray[np.int64], count: int) -> list[object]:
    return cells if len(rows) == count else [cells[row] for row in rows.tolist()]


def _unique_rows(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Distinct rows of (n, bytes), and which of them each row is."""
    wide = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
    wide[:, : packed.shape[1]] = packed
    words = wide.view(np.uint64)
    shape = np.zeros(len(packed), np.int64)
    for column in words.T:  # few words of few distinct values each
        distinct, code = np.unique(column, return_inverse=True)
        shape = shape * len(distinct) + code.ravel()
    _, first, inverse = np.unique(shape, return_index=True, return_inverse=True)
    return packed[first], inverse.ravel()


def known_fields(names: Sequence[str], option: str) -> tuple[str, ...]:
    """`names`, each a column or the begin of some (`k8s.src`); TracerError for what is neither."""
    found: list[str] = []
    for name in names:
        some = [one for one in FIELDS if one == name or one.startswith(f"{name}.")]
        if not some:
            raise TracerError(f"{option} '{name}': no such field", like(name, FIELDS))
        found += some
    return tuple(dict.fromkeys(found))
