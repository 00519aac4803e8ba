"""A CRI server on a unix socket that answers with given bytes: recordings, or made ones."""

from __future__ import annotations

import threading
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tracer.inventory.cri_messages import MESSAGES

DATA = Path(__file__).parents[2] / "data" / "cri"


@dataclass
class FakeRuntime(grpc.GenericRpcHandler):
    """What the server knows, and what it was asked."""

    listing: bytes
    statuses: dict[str, bytes]
    name: str = "containerd"
    version: str = "runtime.v1"
    has_events: bool = False
    asked: list[str] = field(default_factory=list)
    changed: threading.Event = field(default_factory=threading.Event)

    def answer(self, method, request, context):
        self.asked.append(method)
        if method == "Version":
            return MESSAGES["VersionResponse"](runtime_name=self.name).SerializeToString()
        if method == "ListPodSandbox":
            return self.listing
        id_ = MESSAGES["PodSandboxStatusRequest"].FromString(request).pod_sandbox_id
        if id_ not in self.statuses:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such sandbox")
        return self.statuses[id_]

    def events(self, _request, context):
        while context.is_active():
            if self.changed.wait(0.05):
                self.changed.clear()
                yield MESSAGES["ContainerEventResponse"](container_id="x").SerializeToString()

    def service(self, details):
        prefix, _, method = details.method.lstrip("/").rpartition("/")
        if prefix != f"{self.version}.RuntimeService":
            return None
        if method == "GetContainerEvents":
            return grpc.unary_stream_rpc_method_handler(self.events) if self.has_events else None
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.answer(method, request, context)
        )


def recorded(folder, **options):
    """A runtime that answers what a real one did."""
    listing = (DATA / folder / "ListPodSandbox.pb").read_bytes()
    statuses = {}
    for path in (DATA / folder).glob("PodSandboxStatus-*.pb"):
        data = path.read_bytes()
        statuses[MESSAGES["PodSandboxStatusResponse"].FromString(data).status.id] = data
    return FakeRuntime(listing, statuses, **options)


@contextmanager
def serving(runtime, path):
    """`runtime` answers on the socket `path` for the block."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((runtime,))
    server.add_insecure_port(f"unix://{path}")
    server.start()
    try:
        yield runtime
    finally:
        server.stop(0).wait()
        Path(path).unlink(missing_ok=True)
