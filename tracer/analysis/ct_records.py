"""Conntrack events and entries → flat records, with pods on both sides of NAT.

Rows are numpy records with the names of `ct_layout.ENTRY`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.analysis.conntrack import flow_fields, protocol_state, status_names
from tracer.analysis.drops import place_fields
from tracer.analysis.names import pod_at, pod_fields, service_fields, who_fields
from tracer.ct_layout import ENTRY, Event, Has
from tracer.wall_time import time_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from tracer.analysis.ct_death import Death
    from tracer.model import Node, Record

EVENTS = ("listed", "new", "update", "destroy", "expect", "expect-destroy")
"""ct_layout.Event in words."""
FOUND = "found"
"""An entry that lives and whose birth was lost, as a dump has shown."""
EXPECTATIONS = (int(Event.EXPECT_NEW), int(Event.EXPECT_DESTROY))
_NEW, _DESTROY = int(Event.NEW), int(Event.DESTROY)
_TIMEOUT, _COUNTERS = int(Has.TIMEOUT), int(Has.COUNTERS)
"""Plain numbers: an operation on an enum costs twenty times as much."""
MAX_FLOWS = 8192
"""A connection's events come close together, but for its end."""
_NETWORK = {2: "ipv4", 10: "ipv6"}


@dataclass(slots=True)
class Describer:
    """Makes records; what concerns a connection as a whole is worked out once for its events."""

    node: Node
    _flows: dict[tuple[int, bytes, bool], Record] = field(default_factory=dict)

    def update(self, node: Node) -> None:
        """Pods have come or gone: names are looked up anew."""
        self.node = node
        self._flows.clear()

    def records(
        self,
        rows: NDArray[np.void],
        born_ns: NDArray[np.int64] | None = None,
        deaths: Mapping[int, Death] | None = None,
        event: str = "",
    ) -> list[Record]:
        """One record a row; `born_ns` as `Table.follow` gives it, `deaths` as `ct_death.deaths`.

        `event` is a word for all of them, where it is not the rows' own.
        """
        births = born_ns.tolist() if born_ns is not None else [0] * len(rows)
        made = []
        columns = zip(_flow_keys(rows), _states(rows), *_lists(rows, _TOLD), strict=True)
        for index, (pair, state, *told) in enumerate(columns):
            kind, time_ns, netns, entry, start_ns, stop_ns, event_ns = told
            at_ns = event_ns or (kind == _NEW and start_ns) or (kind == _DESTROY and stop_ns)
            record: Record = {
                "type": "conntrack",
                "event": event or EVENTS[kind],
                "time": _time_text(at_ns or time_ns),
                **self._flow(netns, pair, kind, rows, index),
                "conntrack.id": entry,
                **_state(*state),
            }
            if start_ns:
                record["conntrack.start_time"] = time_text(start_ns)
            if kind == _DESTROY:
                begun_ns = start_ns or births[index]
                record.update(_end(begun_ns, at_ns or time_ns, (deaths or {}).get(index)))
            made.append(record)
        if (rows["present"] & _COUNTERS).any():
            _add_counters(made, rows)
        return made

    def _flow(self, netns: int, pair: bytes, kind: int, rows: NDArray[np.void], row: int) -> Record:
        key = netns, pair, kind in EXPECTATIONS
        known = self._flows.pop(key, None) if kind == _DESTROY else self._flows.get(key)
        if known is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.clear()
            known = _describe(self.node, rows[row])
            if kind != _DESTROY:
                self._flows[key] = known
        return known


_TOLD = ("event", "time_ns", "netns", "id", "start_ns", "stop_ns", "event_ns")
_STATE = (
    "event", "present", "status", "proto_state", "timeout_s", "mark", "zone", "helper", "portid",
)  # fmt: skip
_PAIR = slice(ENTRY.fields["orig"][1], ENTRY.fields["master"][1])  # type: ignore[index]
"""Bytes of an ENTRY: both tuples."""
_TUPLE = struct.Struct("!16s16sHHHHB7x")
"""ct_layout.TUPLE."""


def _lists(rows: NDArray[np.void], names: tuple[str, ...]) -> list[list[Any]]:
    """Columns as lists of Python values: a tenth of the price of numpy's rows."""
    return [rows[name].tolist() for name in names]


def _states(rows: NDArray[np.void]) -> Iterator[tuple[Any, ...]]:
    """Of each row the arguments of `_state`."""
    labels = [rows["labels"][:, word].tolist() for word in (0, 1)]
    protocols = rows["orig"]["protocol"].tolist()
    return zip(protocols, *labels, *_lists(rows, _STATE), strict=True)


def _flow_keys(rows: NDArray[np.void]) -> list[bytes]:
    """Both tuples of each row, as they stand there."""
    raw = (
        np.ascontiguousarray(rows)
        .view(np.uint8)
        .reshape(len(rows), ENTRY.itemsize)[:, _PAIR]
        .tobytes()
    )
    size = _PAIR.stop - _PAIR.start
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def space_fields(node: Node, netns: int) -> Record:
    """Node, pod and name of a network namespace."""
    return {
        "k8s.node.name": node.name,
        **pod_fields("", node.pods.get(node.pod_by_netns.get(netns, ""))),
        **place_fields(node, netns, 0),
    }


def _describe(node: Node, row: np.void) -> Record:
    """All that does not change while the entry lives: place, ends, pods, NAT."""
    netns = int(row["netns"])
    record: Record = {
        **space_fields(node, netns),
        "network.type": _NETWORK.get(int(row["family"]), "unknown"),
    }
    orig, reply = _tuple(row["orig"].tobytes()), _tuple(row["reply"].tobytes())
    is_expected = int(row["event"]) in EXPECTATIONS
    record.update(orig)
    if not is_expected:
        pods = {"src": orig["src.address"], "dst": reply["src.address"]}
        found = {end: pod_at(node, address) for end, address in pods.items()}
        for end, pod in found.items():
            record.update(who_fields(node, end, pod))
        record.update(_nat(node, netns, orig, reply))
        if record.get("nat") and found["src"] and found["src"] is found["dst"]:
            record["nat.hairpin"] = True
    record.update(_prefixed("conntrack.orig.", orig))
    record.update(_prefixed("conntrack.mask." if is_expected else "conntrack.reply.", reply))
    if int(row["present"]) & Has.MASTER:
        record.update(_prefixed("conntrack.master.", _tuple(row["master"].tobytes())))
    record.update(service_fields(node, record))
    return record


def _tuple(raw: bytes) -> Record:
    saddr, daddr, sport, dport, icmp_id, zone, protocol = _TUPLE.unpack(raw)
    fields = flow_fields(saddr, daddr, sport, dport, protocol)
    if "icmp.type" in fields:
        fields["icmp.id"] = icmp_id
    if zone:
        fields["zone"] = zone
    return fields


def _prefixed(prefix: str, fields: Record) -> Record:
    return {prefix + name: value for name, value in fields.items() if name != "transport"}


def _nat(node: Node, netns: int, orig: Record, reply: Record) -> Record:
    """What NAT changed, by comparing what was sent with what answers look like."""
    found: Record = {}
    kinds = []
    if _end_of(orig, "dst") != _end_of(reply, "src"):
        kinds.append("dnat")
        found |= _named("service", orig, "dst") | _named("nat.dst", reply, "src")
    if _end_of(orig, "src") != _end_of(reply, "dst"):
        kinds.append("snat")
        found |= _named("nat.src", reply, "dst")
        if reply["dst.address"] != orig["src.address"]:
            own = _addresses(node, netns)
            if reply["dst.address"] in own and orig["src.address"] not in own:
                # The kernel does not tell which rule did it: an own address is masquerade's choice.
                found["nat.masquerade"] = "inferred"
    return {"nat": "+".join(kinds), **found} if kinds else {}


def _end_of(fields: Record, end: str) -> tuple[Any, Any]:
    return fields[f"{end}.address"], fields.get(f"{end}.port")


def _named(name: str, fields: Record, end: str) -> Record:
    address, port = _end_of(fields, end)
    return {f"{name}.address": address} | ({f"{name}.port": port} if port else {})


def _addresses(node: Node, netns: int) -> set[str]:
    devices = (device for device in node.devices.values() if device.netns == netns)
    return {address for device in devices for address in device.addresses}


_time_text = lru_cache(maxsize=16)(time_text)
"""All events that are read together have one time."""


@lru_cache(maxsize=4096)
def _state(  # noqa: PLR0913, PLR0917 - the columns of _STATE
    protocol: int, low: int, high: int, event: int, present: int, status: int, proto_state: int,
    timeout_s: int, mark: int, zone: int, helper: bytes, portid: int,
) -> Record:  # fmt: skip
    """What differs from event to event, but is the same for many connections."""
    record: Record = {}
    if event not in EXPECTATIONS:
        record["conntrack.status"] = status_names(status)
        record.update(protocol_state(protocol, proto_state))
        record["conntrack.mark"] = mark
    record["conntrack.zone"] = zone
    if present & _TIMEOUT:
        record["conntrack.timeout_s"] = timeout_s
    if low or high:
        bits = low | high << 64
        record["conntrack.labels"] = [bit for bit in range(128) if bits >> bit & 1]
    if helper:
        record["conntrack.helper"] = helper.decode(errors="replace")
    if portid:
        record["conntrack.netlink.portid"] = portid
    return record


def _add_counters(records: list[Record], rows: NDArray[np.void]) -> None:
    """What nf_conntrack_acct counts."""
    names = [(way, what) for way in ("orig", "reply") for what in ("packets", "bytes")]
    columns = _lists(rows, tuple(f"{way}_{what}" for way, what in names))
    for record, *values in zip(records, *columns, strict=True):
        for (way, what), value in zip(names, values, strict=True):
            record[f"conntrack.{way}.{what}"] = value


def _end(begun_ns: int, ended_ns: int, death: Death | None) -> Record:
    """How long it lived, and why it ended."""
    record: Record = {}
    # Born and ended between two reads: how long it lived is known by the kernel's times only.
    if begun_ns and ended_ns > begun_ns:
        record["duration_ns"] = ended_ns - begun_ns
    if death:
        record["conntrack.destroy.reason"] = death.reason
        record["inferred"] = death.inferred
    return record
