"""Flat records → Hubble flows, one protojson object a line, as `hubble observe` reads them.

Checked against the protos of Cilium 1.19: proto names, enums by name, 64-bit integers as
strings, zero values left out. What Hubble has no field for goes into `extensions`, a
google.protobuf.Struct of flat names: nothing is lost, and no enum is invented.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import orjson

from tracer.errors import TracerError, like
from tracer.flow_table import records as rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.flow_table import FlowTable
    from tracer.model import Record
    from tracer.sinks.output import Output

_VERDICTS = {
    "forwarded": "FORWARDED",
    "delivered": "FORWARDED",
    "consumed": "FORWARDED",
    "dropped": "DROPPED",
    "unknown": "TRACED",
}
_DIRECTIONS = {"ingress": "INGRESS", "egress": "EGRESS"}
_EVENT_DROP, _EVENT_TRACE = 1, 4
_POINTS = {"egress": ("FROM_ENDPOINT", 5), "ingress": ("TO_ENDPOINT", 0)}
"""Trace observation point and event sub_type (cilium's TRACE_FROM_LXC, TRACE_TO_LXC)."""
_LAST_POINTS = {"delivered": ("TO_ENDPOINT", 0), "forwarded": ("TO_NETWORK", 11)}
"""The same for where the way of a followed packet ended."""

UNLISTED = 255
"""sub_type of a kernel reason that Hubble has no name for: 0 would print as "Success"."""
_DROP_REASONS = {
    "IP_RPFILTER": ("INVALID_SOURCE_IP", 132),
    "IP_INVALID_SOURCE": ("INVALID_SOURCE_IP", 132),
    "IP_LOCAL_SOURCE": ("INVALID_SOURCE_IP", 132),
    "IP_LOCALNET": ("INVALID_SOURCE_IP", 132),
    "NETFILTER_DROP": ("POLICY_DENIED", 133),
    "IP_CSUM": ("INVALID_PACKET_DROPPED", 134),
    "IP_INHDR": ("INVALID_PACKET_DROPPED", 134),
    "PKT_TOO_SMALL": ("INVALID_PACKET_DROPPED", 134),
    "IP_INNOROUTES": ("FIB_LOOKUP_FAILED", 169),
    "IP_OUTNOROUTES": ("FIB_LOOKUP_FAILED", 169),
    "NO_SOCKET": ("SOCKET_LOOKUP_FAILED", 178),
}
_TTL_EXCEEDED = ("TTL_EXCEEDED", 196)
_FORWARDING = ("ip_forward+", "ip6_forward+")

_MAPPED = frozenset(
    """
    type time direction verdict k8s.node.name k8s.src.namespace k8s.src.pod.name
    k8s.dst.namespace k8s.dst.pod.name src.dns.name dst.dns.name interface.name interface.index
    service.namespace service.name
    """.split()  # noqa: SIM905 - a list of names reads best as text
)
"""Flat names that have a field of their own in Hubble's flow."""
_IP_MAPPED = {"src.address", "dst.address"}
_L4_MAPPED = {"src.port", "dst.port", "tcp.flags", "icmp.type", "icmp.code"}
_MAPPED_OF = {
    (ip, l4): _MAPPED | (_IP_MAPPED if ip else set()) | (_L4_MAPPED if l4 else set())
    for ip in (False, True)
    for l4 in (False, True)
}
"""The same by whether a flow has Hubble's `IP` and `l4`, which not every kind of packet has."""

_PORTS = "source_port destination_port"
_PARTS = {
    "IP": "source source_xlated destination ipVersion",
    "l4": "TCP UDP SCTP ICMPv4 ICMPv6",
    "l4.TCP": f"{_PORTS} flags",
    "l4.TCP.flags": "FIN SYN RST PSH ACK URG ECE CWR NS",
    **{f"l4.{name}": _PORTS for name in ("UDP", "SCTP")},
    **{f"l4.{name}": "type code" for name in ("ICMPv4", "ICMPv6")},
    **dict.fromkeys(("source", "destination"), "namespace pod_name workloads"),
    **dict.fromkeys(("source_service", "destination_service"), "name namespace"),
    "event_type": "type sub_type",
    "interface": "index name",
}
FIELDS = frozenset(
    """
    time verdict drop_reason drop_reason_desc IP l4 source destination Type node_name is_reply
    event_type trace_observation_point source_names destination_names source_service
    destination_service traffic_direction interface Summary extensions
    """.split()  # noqa: SIM905 - a list of names reads best as text
) | {f"{whole}.{part}" for whole, parts in _PARTS.items() for part in parts.split()}
"""What `envelope` fills, and what is in that."""

_STRUCT = "type.googleapis.com/google.protobuf.Struct"


class Hubble:
    """Drops, flows, packets; summaries and end records have no form in Hubble: left out."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._node = ""

    def write(self, records: Sequence[Record]) -> None:
        """Write each drop, flow or packet as one line."""
        flows = [record for record in records if record["type"] in ("drop", "flow", "packet")]
        if flows:
            self._node = flows[-1].get("k8s.node.name", self._node)
        self._write([envelope(record) for record in flows])

    def lost(self, source: str, count: int) -> None:  # noqa: ARG002 - Hubble lists only its own
        """Write a `lost_events` line."""
        now = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}"
        self._write([_lost(count, self._node, now)])

    def close(self) -> None:
        """Close the output."""
        self._output.close()

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        self._output.write(b"".join(_encoded(lines)))


class FlowLines:
    """Flow tables as Hubble flows, with the fields of a field mask only, if there is one.

    A mask has Hubble's own names: `time`, `source.pod_name`, `l4`, `extensions`.
    """

    live = True
    header = b""

    def __init__(self, mask: Sequence[str] = ()) -> None:
        """Raise TracerError for a name that Hubble's flow does not have."""
        for path in mask:
            if path not in FIELDS:
                raise TracerError(
                    f"--fields '{path}': no field of Hubble's flow", like(path, sorted(FIELDS))
                )
        self._mask = [tuple(path.split(".")) for path in mask]

    def lines(self, table: FlowTable) -> list[bytes]:
        """One line a record."""
        return _encoded([self._line(record) for record in rows_of(table)])

    def _line(self, record: Record) -> dict[str, Any]:
        if record["type"] == "lost":
            return _lost(record["count"], record.get("k8s.node.name", ""), record["time"])
        line = envelope(record)
        if self._mask:
            line["flow"] = _masked(line["flow"], self._mask)
        return line


def _masked(message: dict[str, Any], mask: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """What a google.protobuf.FieldMask keeps."""
    kept = {}
    for name, value in message.items():
        deeper = [path[1:] for path in mask if path[0] == name]
        if not deeper:
            continue
        whole = () in deeper or not isinstance(value, dict)
        kept[name] = value if whole else _masked(value, deeper)
    return kept


def _lost(count: int, node: str, time: str) -> dict[str, Any]:
    lost = {"source": "PERF_EVENT_RING_BUFFER", "num_events_lost": str(count)}
    return _filled({"lost_events": lost, "node_name": node, "time": time})


def _encoded(lines: Sequence[dict[str, Any]]) -> list[bytes]:
    return [orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines]


def open_sink(output: Output) -> Hubble:
    """Write Hubble flows to `output`."""
    return Hubble(output)


def envelope(record: Record) -> dict[str, Any]:
    """Return the exporter's line for one flat record of type `drop`, `flow` or `packet`."""
    ip, l4 = _ip(record), _l4(record)
    mapped = _MAPPED_OF[bool(ip), bool(l4)]
    flow = {
        "time": record["time"],
        "verdict": _VERDICTS[record["verdict"]],
        **_drop_reason(record),
        "IP": ip,
        "l4": l4,
        "source": _endpoint(record, "src"),
        "destination": _endpoint(record, "dst"),
        "Type": "L3_L4",
        **_dns_names(record),
        "node_name": record.get("k8s.node.name"),
        "is_reply": _is_reply(record),
        **_event(record),
        **_service(record),
        "traffic_direction": _DIRECTIONS.get(record.get("direction", "")),
        "interface": _filled(
            {"index": record.get("interface.index"), "name": record.get("interface.name")}
        ),
        "Summary": _summary(record),
        "extensions": {
            "@type": _STRUCT,
            "value": {name: value for name, value in record.items() if name not in mapped},
        },
    }
    return _filled(
        {"flow": _filled(flow), "node_name": record.get("k8s.node.name"), "time": record["time"]}
    )


def _dns_names(record: Record) -> dict[str, Any]:
    return {
        f"{name}_names": record[f"{end}.dns.name"].split(",")
        for name, end in (("source", "src"), ("destination", "dst"))
        if f"{end}.dns.name" in record
    }


def _service(record: Record) -> dict[str, Any]:
    """The Service that is asked, or in an answer the one that sends it."""
    named = {"name": record.get("service.name"), "namespace": record.get("service.namespace")}
    address = record.get("service.address")
    answers = address is not None and address == record.get("src.address")
    return {"source_service" if answers else "destination_service": _filled(named)}


def _filled(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is unset or zero; False stands for a wrapped BoolValue and stays."""
    return {
        key: value
        for key, value in message.items()
        if value is False or value not in (None, "", 0, {})
    }


def _reason(record: Record) -> tuple[str, int] | None:
    """Hubble's name and number; None where it has none for the kernel's reason."""
    name = record.get("drop.reason", "")
    if name == "IP_INHDR" and record.get("drop.location", "").startswith(_FORWARDING):
        return _TTL_EXCEEDED
    return _DROP_REASONS.get(name)


def _drop_reason(record: Record) -> dict[str, Any]:
    if record["verdict"] != "dropped":
        return {}
    known = _reason(record)
    if known is None:
        return {"drop_reason": UNLISTED}
    return {"drop_reason": known[1], "drop_reason_desc": known[0]}


def _event(record: Record) -> dict[str, Any]:
    if record["verdict"] == "dropped":
        known = _reason(record)
        number = known[1] if known else UNLISTED
        return {"event_type": {"type": _EVENT_DROP, "sub_type": number}}
    if record["type"] == "packet":
        point, number = _LAST_POINTS.get(record["verdict"], (None, 0))
    else:
        point, number = _POINTS.get(record.get("direction", ""), (None, 0))
    event = _filled({"type": _EVENT_TRACE, "sub_type": number})
    return {"event_type": event, "trace_observation_point": point}


def _ip(record: Record) -> dict[str, Any]:
    version = {"ipv4": "IPv4", "ipv6": "IPv6"}.get(record.get("network.type", ""))
    source = record.get("src.address")
    ends = {"source": source, "destination": record.get("dst.address")}
    # Records that were summed may know one end, or only that it was IP.
    if version is None or not any(ends.values()):
        return {}
    if source == record.get("client.address", source):  # before SNAT
        ends["source_xlated"] = record.get("nat.src.address")
    return {**_filled(ends), "ipVersion": version}


def _l4(record: Record) -> dict[str, Any]:
    name = record.get("transport", "")
    if name in ("icmp", "icmpv6") and "icmp.type" in record:
        message = {"type": record["icmp.type"], "code": record.get("icmp.code")}
        return {"ICMPv4" if name == "icmp" else "ICMPv6": _filled(message)}
    ports = {"source_port": record.get("src.port"), "destination_port": record.get("dst.port")}
    if name not in ("tcp", "udp", "sctp") or not any(ports.values()):
        return {}
    layer: dict[str, Any] = _filled(ports)
    if record.get("tcp.flags"):
        layer["flags"] = dict.fromkeys(record["tcp.flags"].split(","), True)
    return {name.upper(): _filled(layer)}


def _endpoint(record: Record, end: str) -> dict[str, Any]:
    kind, owner = record.get(f"k8s.{end}.owner.kind"), record.get(f"k8s.{end}.owner.name")
    return _filled(
        {
            "namespace": record.get(f"k8s.{end}.namespace"),
            "pod_name": record.get(f"k8s.{end}.pod.name"),
            "workloads": [{"name": owner, "kind": kind}] if owner and kind else None,
        }
    )


def _is_reply(record: Record) -> bool | None:
    direction = record.get("conntrack.direction")
    return None if direction is None else direction == "reply"


def _summary(record: Record) -> str:
    if record["verdict"] == "dropped":
        where = f"{record.get('drop.reason')} at {record.get('drop.location')}"
        return f"{where}: {record['explanation']}" if "explanation" in record else where
    flags = record.get("tcp.flags")
    return (
        f"TCP Flags: {flags.replace(',', ', ')}" if flags else record.get("transport", "").upper()
    )
