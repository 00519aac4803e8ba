"""The few messages of the CRI that we read, as protobuf classes made from a table.

Field names and numbers are those of Kubernetes' `runtime/v1/api.proto` (v1alpha2 has the
same). A table instead of generated code: generated modules demand a protobuf runtime at
least as new as the generator, and we need a dozen fields out of hundreds.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "tracer.cri"
STRING, INT64, BOOL, ENUM = 9, 3, 8, 5
"""FieldDescriptorProto types; enums are read as int32, which is the same on the wire."""
MAP = "map<string, string>"

SANDBOX_READY = 0
NETWORK_OF_NODE = 2
"""NamespaceMode.NODE."""

TABLE: dict[str, list[tuple[str, int, int | str, bool]]] = {
    # message: (field, number, type or message name, repeated)
    "VersionRequest": [],
    "VersionResponse": [("runtime_name", 2, STRING, False), ("runtime_version", 3, STRING, False)],
    "ListPodSandboxRequest": [],
    "ListPodSandboxResponse": [("items", 1, "PodSandbox", True)],
    "PodSandbox": [
        ("id", 1, STRING, False),
        ("metadata", 2, "PodSandboxMetadata", False),
        ("state", 3, ENUM, False),
        ("created_at", 4, INT64, False),
        ("labels", 5, MAP, True),
    ],
    "PodSandboxMetadata": [
        ("name", 1, STRING, False),
        ("uid", 2, STRING, False),
        ("namespace", 3, STRING, False),
    ],
    "PodSandboxStatusRequest": [("pod_sandbox_id", 1, STRING, False), ("verbose", 2, BOOL, False)],
    "PodSandboxStatusResponse": [("status", 1, "PodSandboxStatus", False), ("info", 2, MAP, True)],
    "PodSandboxStatus": [
        ("id", 1, STRING, False),
        ("network", 5, "PodSandboxNetworkStatus", False),
        ("linux", 6, "LinuxPodSandboxStatus", False),
    ],
    "PodSandboxNetworkStatus": [("ip", 1, STRING, False), ("additional_ips", 2, "PodIP", True)],
    "PodIP": [("ip", 1, STRING, False)],
    "LinuxPodSandboxStatus": [("namespaces", 1, "Namespace", False)],
    "Namespace": [("options", 2, "NamespaceOption", False)],
    "NamespaceOption": [("network", 1, ENUM, False)],
    "GetEventsRequest": [],
    "ContainerEventResponse": [("container_id", 1, STRING, False)],
}


def _add_map(message: descriptor_pb2.DescriptorProto, name: str) -> str:
    """Declare the entry type of a `map<string, string>` field; returns its name."""
    entry = message.nested_type.add(name="".join(p.title() for p in name.split("_")) + "Entry")
    entry.options.map_entry = True
    for number, key in enumerate(("key", "value"), 1):
        entry.field.add(name=key, number=number, type=STRING, label=1)
    return f"{message.name}.{entry.name}"


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="tracer_cri.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in TABLE.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            entry = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, int):
                entry.type = kind
            else:
                entry.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                target = _add_map(message, field) if kind == MAP else kind
                entry.type_name = f".{PACKAGE}.{target}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    get = message_factory.GetMessageClass
    return {name: get(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in TABLE}


MESSAGES = _classes()
"""Message name → protobuf class."""
