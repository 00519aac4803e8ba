"""One CRI runtime (containerd, CRI-O, k3s) on its socket: sandboxes, and word of changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import orjson

from tracer.inventory.cri_errors import CriError, NoCriError
from tracer.inventory.cri_messages import MESSAGES, NETWORK_OF_NODE, SANDBOX_READY
from tracer.inventory.facts import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["CriError", "NoCriError", "Runtime", "read_sandbox"]

CALL_TIMEOUT_S = 2.0
CALLS_IN_FLIGHT = 32
VERSIONS = ("runtime.v1", "runtime.v1alpha2")
"""Tried in this order; containerd before 1.6 and old CRI-O know the second only."""
OPTIONS = (
    # Go servers refuse the escaped socket path that grpc would send as the authority.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 << 20),
)


Message = Any
"""A protobuf message of `cri_messages`; such classes exist at run time only."""
GrpcMethod = Any
"""A method of a grpc channel, or what it makes."""


class Runtime:
    """A connection to one runtime. Every call raises `CriError`; make a new one after that."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.name = ""
        self.listening = False
        """True while somebody iterates `events`; kept by the follower."""
        self._version = ""
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=OPTIONS)
        self._known: dict[str, Sandbox] = {}

    def close(self) -> None:
        """End every call under way, at once."""
        self._channel.close()

    def sandboxes(self) -> tuple[Sandbox, ...]:
        """Every sandbox. Details are asked once for each that is new or changed its state."""
        self._connect()
        items = self._call("ListPodSandbox", MESSAGES["ListPodSandboxRequest"]()).items
        fresh = [item for item in items if not self._is_known(item)]
        details = self._details([item.id for item in fresh])
        known = {item.id: self._known[item.id] for item in items if self._is_known(item)}
        for item in fresh:
            if status := details.get(item.id):
                known[item.id] = read_sandbox(item, status, self.name)
        self._known = known
        return tuple(known.values())

    def events(self) -> Iterator[None]:
        """Yield at each container event; ends at once where the runtime has no events."""
        method = self._method("GetContainerEvents", self._channel.unary_stream)
        try:
            for _ in method(MESSAGES["GetEventsRequest"]()):
                yield
        except grpc.RpcError as error:
            if _code(error) not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.CANCELLED):
                raise self._failure(error) from error
        except ValueError as error:  # grpc's word for "the channel is closed"
            raise CriError(f"{self.socket}: {error}") from error

    def _is_known(self, item: Message) -> bool:
        known = self._known.get(item.id)
        return known is not None and known.ready == (item.state == SANDBOX_READY)

    def _connect(self) -> None:
        if self._version:
            return
        for version in VERSIONS:
            self._version = version
            try:
                self.name = self._call("Version", MESSAGES["VersionRequest"]()).runtime_name
            except NoCriError:
                self._version = ""
            else:
                return
        raise NoCriError(f"{self.socket}: serves no CRI")

    def _details(self, ids: Sequence[str]) -> dict[str, Any]:
        """PodSandboxStatus of each id, many at once; one that vanished meanwhile is absent."""
        method = self._method("PodSandboxStatus", self._channel.unary_unary)
        request = MESSAGES["PodSandboxStatusRequest"]
        answers: dict[str, Any] = {}
        for start in range(0, len(ids), CALLS_IN_FLIGHT):
            calls = {
                id_: method.future(
                    request(pod_sandbox_id=id_, verbose=True), timeout=CALL_TIMEOUT_S
                )
                for id_ in ids[start : start + CALLS_IN_FLIGHT]
            }
            for id_, call in calls.items():
                try:
                    answers[id_] = call.result()
                except grpc.RpcError as error:
                    if _code(error) is not grpc.StatusCode.NOT_FOUND:
                        raise self._failure(error) from error
        return answers

    def _method(self, name: str, kind: GrpcMethod) -> GrpcMethod:
        response = {"GetContainerEvents": "ContainerEventResponse"}.get(name, f"{name}Response")
        return kind(
            f"/{self._version}.RuntimeService/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=MESSAGES[response].FromString,
        )

    def _call(self, name: str, request: Message) -> Message:
        try:
            return self._method(name, self._channel.unary_unary)(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._failure(error) from error
        except ValueError as error:  # grpc's word for "the channel is closed"
            raise CriError(f"{self.socket}: {error}") from error

    def _failure(self, error: grpc.RpcError) -> CriError:
        kind = NoCriError if _code(error) is grpc.StatusCode.UNIMPLEMENTED else CriError
        # grpc wraps the system's word: "failed to connect …; … error: Connection refused"
        detail = str(error.details()).partition("\n")[0].rpartition("error: ")[2]
        return kind(f"{self.socket}: {detail}")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    """Tell the status: every RpcError that a call raises is a Call, which grpc's types hide."""
    code: grpc.StatusCode = error.code()
    return code


def read_sandbox(item: Message, answer: Message, runtime: str) -> Sandbox:
    """Make a `Sandbox` of its line in ListPodSandbox and its verbose PodSandboxStatus."""
    status = answer.status
    info = orjson.loads(answer.info.get("info") or "{}")
    network = status.network
    addresses = (network.ip, *(extra.ip for extra in network.additional_ips))
    return Sandbox(
        id=item.id,
        uid=item.metadata.uid,
        namespace=item.metadata.namespace,
        name=item.metadata.name,
        runtime=runtime,
        created_ns=item.created_at,
        ready=item.state == SANDBOX_READY,
        labels=dict(item.labels),
        addresses=tuple(address for address in addresses if address),
        host_network=status.linux.namespaces.options.network == NETWORK_OF_NODE,
        pid=info.get("pid") or None,
        netns_path=_netns_path(info),
    )


def _netns_path(info: dict[str, Any]) -> str:
    """Where the runtime keeps the netns: in the OCI spec it gives to runc (both runtimes)."""
    spaces = info.get("runtimeSpec", {}).get("linux", {}).get("namespaces") or ()
    return next((s.get("path", "") for s in spaces if s.get("type") == "network"), "")
