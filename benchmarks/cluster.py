"""What the Kubernetes API costs: memory, CPU and time for a cluster of many pods.

    .venv/bin/python benchmarks/cluster.py [PODS]

The API server is the tests' fake, in a process of its own, with copies of recorded objects:
two addresses a pod, a Deployment for twenty pods with ten ReplicaSets, a Service with its
EndpointSlice for ten.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "cluster"))

PODS, NAMESPACES = 50_000, 200
PODS_A_DEPLOYMENT, REPLICASETS, PODS_A_SERVICE, PODS_A_NODE = 20, 10, 10, 100
SYNC_S, IDLE_S = 600.0, 5.0
MIB = 1 << 20

Json = dict[str, Any]


def copies(item: Json, count: int) -> Iterator[Json]:
    """`count` of an object, each its own."""
    text = json.dumps(item)
    return (json.loads(text) for _ in range(count))


def named(item: Json, number: int, name: str) -> Json:
    """The object under another name, in one of the namespaces."""
    item["metadata"] |= {"name": name, "namespace": f"ns{number % NAMESPACES}"}
    return item


def ipv4(prefix: int, number: int) -> str:
    """The address with this number under a prefix of eight bits."""
    return f"{prefix}.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def pods(base: Json, count: int) -> Iterator[Json]:
    """Pods of Deployments, spread over nodes."""
    for number, pod in enumerate(copies(base, count)):
        deployment = number // PODS_A_DEPLOYMENT
        named(pod, deployment, f"app{deployment}-77fcd85cb8-{number:05x}")
        pod["metadata"]["labels"] = {"app": f"app{deployment}", "pod-template-hash": "77fcd85cb8"}
        pod["metadata"]["ownerReferences"][0]["name"] = f"app{deployment}-77fcd85cb8"
        pod["spec"]["nodeName"] = f"node{number // PODS_A_NODE}"
        pod["status"]["podIPs"] = [{"ip": ipv4(10, number)}, {"ip": f"fd00::{number + 1:x}"}]
        yield pod


def replicasets(count: int) -> Iterator[Json]:
    """The present and the former ReplicaSets of each Deployment."""
    for number in range(count // PODS_A_DEPLOYMENT * REPLICASETS):
        deployment = number // REPLICASETS
        owner = {"kind": "Deployment", "name": f"app{deployment}", "controller": True}
        name = f"app{deployment}-{number % REPLICASETS:010x}"
        yield named({"metadata": {"ownerReferences": [owner]}}, deployment, name)


def services(base: Json, count: int) -> Iterator[Json]:
    """Services with a ClusterIP each."""
    for number, service in enumerate(copies(base, count // PODS_A_SERVICE)):
        service["spec"]["clusterIPs"] = [ipv4(100, number)]
        yield named(service, number, f"svc{number}")


def slices(base: Json, count: int) -> Iterator[Json]:
    """Their endpoints."""
    endpoint = base["endpoints"][0]
    for number, one in enumerate(copies(base, count // PODS_A_SERVICE)):
        named(one, number, f"svc{number}-abcde")
        one["metadata"]["labels"]["kubernetes.io/service-name"] = f"svc{number}"
        first = number * PODS_A_SERVICE
        one["endpoints"] = [
            {**endpoint, "addresses": [ipv4(10, pod)]}
            for pod in range(first, first + PODS_A_SERVICE)
        ]
        yield one


def serve(count: int, ready: Connection) -> None:
    """Be the API server."""
    from fake_api import FakeApi, recorded  # noqa: PLC0415

    def first(kind: str, start: str) -> Json:
        return next(one for one in recorded(kind) if one["metadata"]["name"].startswith(start))

    with FakeApi() as api:
        made = {
            "pods": pods(first("pods", "web-"), count),
            "replicasets": replicasets(count),
            "services": services(first("services", "web"), count),
            "endpointslices": slices(first("endpointslices", "web-m8ss6"), count),
        }
        for kind, items in made.items():
            api.objects[kind] = {api._key(item): item for item in items}  # noqa: SLF001
        ready.send(api.url)
        ready.recv()


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(url: str) -> None:
    """Follow the cluster, and say what it took."""
    import orjson  # noqa: F401, PLC0415 - tracer has it loaded in any case
    from fake_api import kubeconfig  # noqa: PLC0415

    from tracer.cluster.credentials import connect  # noqa: PLC0415

    before = resident_bytes()
    with tempfile.TemporaryDirectory() as directory:
        access = connect(kubeconfig(Path(directory, "config"), url))
    from tracer.cluster.cluster import Cluster  # noqa: PLC0415

    assert access is not None  # noqa: S101 - the kubeconfig is ours
    cluster, client = Cluster(access), resident_bytes()
    began_s, cpu_s = time.monotonic(), time.process_time()
    cluster.start()
    assert cluster.wait_synced(SYNC_S), cluster.warnings  # noqa: S101
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    time.sleep(1)
    held, idle_s = resident_bytes(), time.process_time()
    time.sleep(IDLE_S)
    idle_s = time.process_time() - idle_s
    view = cluster.view
    print(
        f"{len(view.cluster_pods)} pods, {len(view.services)} Services,"
        f" {len(view.endpoint_slices)} EndpointSlices, {len(view.owners)} ReplicaSets\n"
        f"memory: client {(client - before) / MIB:.0f} MiB, names {(held - client) / MIB:.0f} MiB\n"
        f"listed in {took_s:.1f} s (the fake server's time, mostly), CPU {cpu_s:.1f} s\n"
        f"idle: {idle_s / IDLE_S:.2%} of a CPU"
    )
    cluster.stop()


def main() -> None:
    """Run the server and the client."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PODS
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(count, theirs), daemon=True)
    server.start()
    try:
        measure(ours.recv())
    finally:
        ours.send("enough")
        server.join(10)


if __name__ == "__main__":
    main()
