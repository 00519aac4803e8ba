"""A strict reader of Hubble's flow JSON: its messages and enums as Cilium 1.19 declares them.

Field numbers are left to chance: JSON knows names only. What is not declared, or of another type,
or no name of an enum, is an error.
"""

from functools import cache

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

ENUMS = {
    "Verdict": "VERDICT_UNKNOWN FORWARDED DROPPED ERROR AUDIT REDIRECTED TRACED TRANSLATED",
    "FlowType": "UNKNOWN_TYPE L3_L4 L7 SOCK",
    "TrafficDirection": "TRAFFIC_DIRECTION_UNKNOWN INGRESS EGRESS",
    "IPVersion": "IP_NOT_USED IPv4 IPv6",
    "TraceObservationPoint": "UNKNOWN_POINT TO_PROXY TO_HOST TO_STACK TO_OVERLAY FROM_ENDPOINT"
    " FROM_PROXY FROM_HOST FROM_STACK FROM_OVERLAY FROM_NETWORK TO_NETWORK TO_ENDPOINT",
    "LostEventSource": "UNKNOWN_LOST_EVENT_SOURCE PERF_EVENT_RING_BUFFER OBSERVER_EVENTS_QUEUE"
    " HUBBLE_RING_BUFFER",
    "DropReason": "DROP_REASON_UNKNOWN INVALID_SOURCE_IP POLICY_DENIED INVALID_PACKET_DROPPED"
    " CT_MAP_INSERTION_FAILED SERVICE_BACKEND_NOT_FOUND UNKNOWN_CONNECTION_TRACKING_STATE"
    " FIB_LOOKUP_FAILED SOCKET_LOOKUP_FAILED TTL_EXCEEDED",
}
MESSAGES = {
    "Ethernet": {"source": "string", "destination": "string"},
    "IP": {"source": "string", "source_xlated": "string", "destination": "string",
           "ipVersion": "IPVersion", "encrypted": "bool"},
    "TCPFlags": {"FIN": "bool", "SYN": "bool", "RST": "bool", "PSH": "bool", "ACK": "bool",
                 "URG": "bool", "ECE": "bool", "CWR": "bool", "NS": "bool"},
    "TCP": {"source_port": "uint32", "destination_port": "uint32", "flags": "TCPFlags"},
    "UDP": {"source_port": "uint32", "destination_port": "uint32"},
    "SCTP": {"source_port": "uint32", "destination_port": "uint32"},
    "ICMPv4": {"type": "uint32", "code": "uint32"},
    "ICMPv6": {"type": "uint32", "code": "uint32"},
    "Layer4": {name: name for name in ("TCP", "UDP", "ICMPv4", "ICMPv6", "SCTP")},
    "Workload": {"name": "string", "kind": "string"},
    "Endpoint": {"ID": "uint32", "identity": "uint32", "cluster_name": "string",
                 "namespace": "string", "labels": "string*", "pod_name": "string",
                 "workloads": "Workload*"},
    "Service": {"name": "string", "namespace": "string"},
    "CiliumEventType": {"type": "int32", "sub_type": "int32"},
    "NetworkInterface": {"index": "uint32", "name": "string"},
    "Flow": {
        "time": "google.protobuf.Timestamp", "uuid": "string", "verdict": "Verdict",
        "drop_reason": "uint32", "ethernet": "Ethernet", "IP": "IP", "l4": "Layer4",
        "source": "Endpoint", "destination": "Endpoint", "Type": "FlowType",
        "node_name": "string", "source_names": "string*", "destination_names": "string*",
        "event_type": "CiliumEventType", "source_service": "Service",
        "destination_service": "Service", "traffic_direction": "TrafficDirection",
        "trace_observation_point": "TraceObservationPoint", "drop_reason_desc": "DropReason",
        "is_reply": "google.protobuf.BoolValue", "Summary": "string",
        "interface": "NetworkInterface", "extensions": "google.protobuf.Any",
    },
    "LostEvent": {"source": "LostEventSource", "num_events_lost": "uint64",
                  "cpu": "google.protobuf.Int32Value"},
    "ExportEvent": {"flow": "Flow", "lost_events": "LostEvent", "node_name": "string",
                    "time": "google.protobuf.Timestamp"},
}  # fmt: skip
_PACKAGE = "flow"
_KNOWN = (any_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
_Field = descriptor_pb2.FieldDescriptorProto


def _add_field(message, number, name, kind):
    label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
    kind = kind.removesuffix("*")
    field = message.field.add(name=name, number=number, label=label)
    if kind in ENUMS:
        field.type, field.type_name = _Field.TYPE_ENUM, f".{_PACKAGE}.{kind}"
    elif kind in MESSAGES or "." in kind:
        scope = "" if "." in kind else f"{_PACKAGE}."
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{scope}{kind}"
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")


@cache
def _pool():
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="flow.proto", package=_PACKAGE, syntax="proto3")
    for module in _KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        file.dependency.append(module.DESCRIPTOR.name)
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add_field(message, number, field, kind)
    pool.Add(file)
    return pool


def read(line):
    """One line of a Hubble export as a message; json_format.ParseError for what it may not hold."""
    pool = _pool()
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ExportEvent"))
    return json_format.Parse(line, made(), descriptor_pool=pool)
