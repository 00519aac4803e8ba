"""Conntrack events and entries → flat records, with pods on both sides of NAT.

Rows are numpy records with the names of `ct_layout.ENTRY`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tracer.analysis.conntrack import flow_fields, protocol_state, status_names
from tracer.analysis.drops import place_fields, pod_fields
from tracer.analysis.time import format_time
from tracer.ct_layout import Event, Has

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from tracer.analysis.ct_death import Death
    from tracer.model import Node, Record

EVENTS = ("listed", "new", "update", "destroy", "expect", "expect-destroy")
"""ct_layout.Event in words."""
FOUND = "found"
"""An entry that lives and whose birth was lost, as a dump has shown."""
EXPECTATIONS = (Event.EXPECT_NEW, Event.EXPECT_DESTROY)
MAX_FLOWS = 65536
_NETWORK = {2: "ipv4", 10: "ipv6"}


@dataclass(slots=True)
class Describer:
    """Makes records; what concerns a connection as a whole is worked out once for its events."""

    node: Node
    _flows: dict[tuple[int, bytes], Record] = field(default_factory=dict)

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
        columns = _columns(rows)
        births = born_ns.tolist() if born_ns is not None else [0] * len(rows)
        made = []
        for index, row in enumerate(zip(*columns, strict=True)):
            values = dict(zip(_NAMES, row, strict=True))
            record: Record = {
                "type": "conntrack",
                "event": event or EVENTS[values["event"]],
                "time": format_time(_moment(values)),
                **self._flow(values, rows[index]),
                **_state(values),
            }
            if values["event"] == Event.DESTROY:
                record.update(_end(values, births[index], (deaths or {}).get(index)))
            made.append(record)
        return made

    def _flow(self, values: dict[str, Any], row: np.void) -> Record:
        key = (
            values["netns"],
            values["orig"] + values["reply"] + bytes([values["event"] in EXPECTATIONS]),
        )
        known = self._flows.get(key)
        if known is None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.clear()
            known = self._flows[key] = _describe(self.node, row)
        return known


_PLAIN = (
    "time_ns", "netns", "portid", "present", "event", "proto_state", "id", "status", "timeout_s",
    "mark", "zone", "orig_packets", "orig_bytes", "reply_packets", "reply_bytes", "start_ns",
    "stop_ns", "event_ns", "helper",
)  # fmt: skip
_NAMES = (*_PLAIN, "labels", "protocol", "orig", "reply")


def _columns(rows: NDArray[np.void]) -> list[list[Any]]:
    """The columns of `_NAMES` as lists of Python values: a tenth of the price of rows."""
    labels = rows["labels"][:, 0].tolist(), rows["labels"][:, 1].tolist()
    return [
        *(rows[name].tolist() for name in _PLAIN),
        [low | high << 64 for low, high in zip(*labels, strict=True)],
        rows["orig"]["protocol"].tolist(),
        *([row.tobytes() for row in rows[way]] for way in ("orig", "reply")),
    ]


def _moment(values: dict[str, Any]) -> int:
    """When it happened: by the kernel where it says so, else when it was read."""
    kernel = values["event_ns"] or {
        Event.NEW: values["start_ns"],
        Event.DESTROY: values["stop_ns"],
    }.get(values["event"], 0)
    return int(kernel or values["time_ns"])


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
    orig, reply = _tuple(row["orig"]), _tuple(row["reply"])
    is_expected = int(row["event"]) in EXPECTATIONS
    record.update(orig)
    if not is_expected:
        pods = {"src": orig["src.address"], "dst": reply["src.address"]}
        found = {end: node.pod_by_address.get(address, "") for end, address in pods.items()}
        for end, pod in found.items():
            record.update(pod_fields(end, node.pods.get(pod)))
        record.update(_nat(node, netns, orig, reply))
        if record.get("nat") and found["src"] and found["src"] == found["dst"]:
            record["nat.hairpin"] = True
    record.update(_prefixed("conntrack.orig.", orig))
    record.update(_prefixed("conntrack.mask." if is_expected else "conntrack.reply.", reply))
    if int(row["present"]) & Has.MASTER:
        record.update(_prefixed("conntrack.master.", _tuple(row["master"])))
    return record


def _tuple(flow: np.void) -> Record:
    ports = int(flow["sport"]), int(flow["dport"])
    fields = flow_fields(
        flow["saddr"].tobytes(), flow["daddr"].tobytes(), *ports, int(flow["protocol"])
    )
    if "icmp.type" in fields:
        fields["icmp.id"] = int(flow["icmp_id"])
    if flow["zone"]:
        fields["zone"] = int(flow["zone"])
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


@lru_cache(maxsize=1024)
def _status(status: int) -> tuple[str, ...]:
    return tuple(status_names(status))


def _state(values: dict[str, Any]) -> Record:
    """All that may differ from event to event."""
    record: Record = {"conntrack.id": values["id"]}
    if values["event"] not in EXPECTATIONS:
        record["conntrack.status"] = list(_status(values["status"]))
        record.update(protocol_state(values["protocol"], values["proto_state"]))
        record["conntrack.mark"] = values["mark"]
    record["conntrack.zone"] = values["zone"]
    present = values["present"]
    if present & Has.TIMEOUT:
        record["conntrack.timeout_s"] = values["timeout_s"]
    if values["labels"]:
        record["conntrack.labels"] = [bit for bit in range(128) if values["labels"] >> bit & 1]
    if values["helper"]:
        record["conntrack.helper"] = values["helper"].decode(errors="replace")
    if present & Has.COUNTERS:
        for way in ("orig", "reply"):
            record[f"conntrack.{way}.packets"] = values[f"{way}_packets"]
            record[f"conntrack.{way}.bytes"] = values[f"{way}_bytes"]
    if present & Has.TIMES and values["start_ns"]:
        record["conntrack.start_time"] = format_time(values["start_ns"])
    if values["portid"]:
        record["conntrack.netlink.portid"] = values["portid"]
    return record


def _end(values: dict[str, Any], born_ns: int, death: Death | None) -> Record:
    """How long it lived, and why it ended."""
    record: Record = {}
    lived_ns = _moment(values) - (values["start_ns"] or born_ns)
    # Born and ended between two reads: how long it lived is known by the kernel's times only.
    if lived_ns > 0 and (values["start_ns"] or born_ns):
        record["duration_ns"] = lived_ns
    if death:
        record["conntrack.destroy.reason"] = death.reason
        record["inferred"] = death.inferred
    return record
