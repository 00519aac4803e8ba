"""A CRI client of the tests' own: the few calls that make and remove pods.

Messages are built from the field numbers of the `runtime.v1` protocol with protobuf's own
wire format, so that the tests do not lean on the client of the program they test.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Fields = tuple[tuple[int, object], ...]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def message(*fields: tuple[int, object]) -> bytes:
    """One protobuf message: (field number, str, bytes of a nested message, int or str map)."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        elif isinstance(value, dict):
            out += b"".join(message((number, message((1, k), (2, v)))) for k, v in value.items())
        else:
            body = value.encode() if isinstance(value, str) else bytes(value)
            out += _varint(number << 3 | 2) + _varint(len(body)) + body
    return out


def strings(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, bytes) of every length-delimited field at the top of `answer`."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = answer[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(answer):
        key = varint()
        if key & 7 == 0:
            varint()
            continue
        size = varint()
        yield key >> 3, answer[at : at + size]
        at += size


class Runtime:
    """`RuntimeService` behind a unix socket."""

    def __init__(self, socket_path: str) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket_path}")

    def close(self) -> None:
        """Give the connection back."""
        self._channel.close()

    def call(self, method: str, request: bytes, timeout_s: float = 30) -> bytes:
        """Answer of one unary call; grpc.RpcError when it fails."""
        unary = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        return unary(request, timeout=timeout_s)

    def version(self) -> bytes:
        """Any answer: the runtime is up."""
        return self.call("Version", b"", timeout_s=2)

    def sandboxes(self) -> list[str]:
        """Ids of all pod sandboxes."""
        answer = self.call("ListPodSandbox", b"")
        return [next(v for k, v in strings(pod) if k == 1).decode() for _, pod in strings(answer)]

    def run_sandbox(self, config: bytes) -> str:
        """Start a pod sandbox; its id."""
        return next(
            v for k, v in strings(self.call("RunPodSandbox", message((1, config))))
        ).decode()

    def start_container(self, sandbox: str, sandbox_config: bytes, config: bytes) -> str:
        """Create and start a container in a sandbox; its id."""
        request = message((1, sandbox), (2, config), (3, sandbox_config))
        created = next(v for _, v in strings(self.call("CreateContainer", request))).decode()
        self.call("StartContainer", message((1, created)))
        return created

    def addresses(self, sandbox: str) -> list[str]:
        """Addresses that the runtime got from CNI for a sandbox; none for the node's network."""
        answer = self.call("PodSandboxStatus", message((1, sandbox)))
        status = next(v for k, v in strings(answer) if k == 1)
        network = next((v for k, v in strings(status) if k == 5), b"")
        found = [v if k == 1 else next(ip for _, ip in strings(v)) for k, v in strings(network)]
        return [address.decode() for address in found]

    def netns_path(self, sandbox: str) -> str:
        """Path of the network namespace that a sandbox was given."""
        answer = self.call("PodSandboxStatus", message((1, sandbox), (2, 1)))
        entry = next(v for k, v in strings(answer) if k == 2)
        info = json.loads(next(v for k, v in strings(entry) if k == 2))
        listed = info["runtimeSpec"]["linux"]["namespaces"]
        return next(each["path"] for each in listed if each["type"] == "network")

    def remove_sandbox(self, sandbox: str) -> None:
        """Stop and remove a sandbox with its containers."""
        self.call("StopPodSandbox", message((1, sandbox)))
        self.call("RemovePodSandbox", message((1, sandbox)))


def sandbox_config(
    metadata: tuple[str, str, str], labels: Mapping[str, str], logs: str, *, host_network: bool
) -> bytes:
    """PodSandboxConfig as kubelet fills it; `metadata` is (name, namespace, uid)."""
    name, namespace, uid = metadata
    own = {
        "io.kubernetes.pod.name": name,
        "io.kubernetes.pod.namespace": namespace,
        "io.kubernetes.pod.uid": uid,
    }
    namespaces = message((1, 2)) if host_network else message((2, 1))
    linux = message((1, f"/kubepods/besteffort/pod{uid}"), (2, message((1, namespaces))))
    return message(
        (1, message((1, name), (2, uid), (3, namespace))),
        (2, "" if host_network else name),
        (3, f"{logs}/{namespace}_{name}_{uid}"),
        (6, {**own, **labels}),
        (8, linux),
    )


def container_config(name: str, image: str, command: list[str], labels: Mapping[str, str]) -> bytes:
    """ContainerConfig of one plain container."""
    return message(
        (1, message((1, name))),
        (2, message((1, image))),
        *((3, word) for word in command),
        (9, {"io.kubernetes.container.name": name, **labels}),
        (11, f"{name}/0.log"),
    )
