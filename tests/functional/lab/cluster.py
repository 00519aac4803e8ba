"""Real pods: sandboxes and containers of a real containerd on a real CNI bridge."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lab import containerd, namespaces
from lab.cri import Runtime, container_config, sandbox_config
from lab.namespaces import End, Namespace
from lab.shell import run, until
from lab.topology import meet

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGS = Path("/var/log/pods")
UID_MARK = "7e57ab1e"
"""First part of every pod uid of ours, so that a killed run's cgroups and logs can be told."""
CGROUPS = Path("/sys/fs/cgroup")
SLEEP = ["/bin/busybox", "sleep", "1000000"]
BEFORE = Path("/run/tracer-tests.sysctl")
"""The node's forwarding sysctls as they were before the tests."""
FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


@dataclass(frozen=True, slots=True)
class Pod:
    """One running pod: what the test asked for, to compare with what tracer says."""

    namespace: str
    name: str
    uid: str
    sandbox: str
    labels: dict[str, str]
    addresses: tuple[str, ...]
    """IPv4, then IPv6; none for a pod on the node's network."""
    where: Namespace

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def ip4(self) -> str:
        """Its IPv4 address."""
        return self.addresses[0]

    @property
    def ip6(self) -> str:
        """Its IPv6 address."""
        return self.addresses[1]

    @property
    def node_device(self) -> str:
        """Name of the node's end of its veth pair."""
        peer = self.where.ip("-o link show dev eth0").split("eth0@if")[1].partition(":")[0]
        line = next(x for x in run("ip", "-o", "link").splitlines() if x.startswith(f"{peer}: "))
        return line.split()[1].partition("@")[0]


@dataclass(slots=True)
class Cluster:
    """The node's containerd, its pods by `namespace/name`, and a client outside of it."""

    runtime: containerd.Containerd
    outside: Namespace
    outside_ip4: str = field(default_factory=lambda: f"10.245.{containerd.SITE}.2")
    outside_ip6: str = field(default_factory=lambda: f"fd00:10:245:{containerd.SITE}::2")
    node_ip4: str = field(default_factory=lambda: f"10.245.{containerd.SITE}.1")
    node_ip6: str = field(default_factory=lambda: f"fd00:10:245:{containerd.SITE}::1")
    node_device: str = f"{namespaces.PREFIX}out"
    """The node's device towards `outside`."""
    pods: dict[str, Pod] = field(default_factory=dict)

    @property
    def client(self) -> Pod:
        """The pod that sends."""
        return self.pods["shop/client-0"]

    @property
    def web(self) -> Pod:
        """The pod that receives."""
        return self.pods["shop/web-0"]

    @property
    def agent(self) -> Pod:
        """A pod of another namespace."""
        return self.pods["ops/agent-0"]

    def run_pod(self, key: str, *, host_network: bool = False, **labels: str) -> Pod:
        """Start a pod with one sleeping container; `key` is `namespace/name`."""
        namespace, name = key.split("/")
        uid = f"{UID_MARK}{str(uuid.uuid4())[8:]}"
        config = sandbox_config(
            (name, namespace, uid), labels, str(LOGS), host_network=host_network
        )
        with closing(Runtime(str(self.runtime.socket))) as client:
            sandbox = client.run_sandbox(config)
            sleeper = container_config("main", containerd.IMAGE, SLEEP, {})
            client.start_container(sandbox, config, sleeper)
            addresses = tuple(client.addresses(sandbox))
            where = namespaces.node()
            if not host_network:
                path = client.netns_path(sandbox)
                where = Namespace(path, Path(path).name)
        made = Pod(namespace, name, uid, sandbox, labels, addresses, where)
        self.pods[key] = made
        return made

    def remove_pod(self, key: str) -> None:
        """Stop and remove a pod, and what kubelet would remove after it."""
        pod = self.pods.pop(key)
        with closing(Runtime(str(self.runtime.socket))) as client:
            client.remove_sandbox(pod.sandbox)
        _remove_traces(pod.uid)


def _kill_orphans() -> None:
    """Pods of ours whose containerd is gone for good: end shims and containers, drop namespaces."""
    mark, spaces, victims = f"/pod{UID_MARK}", set(), set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if mark in Path(f"/proc/{process.pid}/cgroup").read_text():
                spaces.add(Path(f"/proc/{process.pid}/ns/net").stat().st_ino)
                parents = [p for p in process.parents() if p.name().startswith("containerd-shim")]
                victims |= {process, *parents}
    for process in victims:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, 5)
    for file in Path("/run/netns").glob("cni-*"):
        if file.stat().st_ino in spaces:
            run("ip", "netns", "delete", file.name)


def _remove_traces(uid: str) -> None:
    """What kubelet would remove after pods whose uid begins with `uid`: logs and cgroups."""
    for directory in LOGS.glob(f"*_{uid}*"):
        shutil.rmtree(directory)
    for directory in CGROUPS.glob(f"*/kubepods/besteffort/pod{uid}*"):
        for below in (path for path in directory.iterdir() if path.is_dir()):
            below.rmdir()  # of a container that was killed
        directory.rmdir()
        # A parent that others still use is not empty, and stays.
        with suppress(OSError):
            directory.parent.rmdir()
            directory.parent.parent.rmdir()


def _join_outside(cluster: Cluster) -> None:
    addresses = (f"{cluster.node_ip4}/24", f"{cluster.node_ip6}/64")
    there = (f"{cluster.outside_ip4}/24", f"{cluster.outside_ip6}/64")
    namespaces.join(
        End(namespaces.node(), cluster.node_device, addresses),
        End(cluster.outside, "eth0", there),
    )
    cluster.outside.ip(f"route add default via {cluster.node_ip4}")
    cluster.outside.ip(f"-6 route add default via {cluster.node_ip6}")


def _settle(cluster: Cluster) -> None:
    """Wait until no address is tentative, and until all that tests join know their neighbours."""
    places = [namespaces.node(), *(pod.where for pod in cluster.pods.values())]
    for place in places:
        until(lambda p=place: not p.ip("-6 -o address show tentative"), "duplicate address check")
    pairs = [(cluster.client, cluster.web), (cluster.web, cluster.client)]
    for one, other in [*pairs, (cluster.agent, cluster.web)]:
        meet(one.where, other.where, other.ip4)
        meet(one.where, other.where, other.ip6)
    for pod in (cluster.client, cluster.web, cluster.agent):
        for there, address in (
            (cluster.outside, cluster.outside_ip4),
            (places[0], cluster.node_ip4),
        ):
            meet(pod.where, there, address)
            meet(there, pod.where, pod.ip4)
        meet(pod.where, cluster.outside, cluster.outside_ip6)
        meet(places[0], pod.where, pod.ip6)


@contextmanager
def forwarding() -> Iterator[None]:
    """The node forwards for the block; its sysctls are put back afterwards."""
    here = namespaces.node()
    if not BEFORE.exists():  # a killed run has written it, and not put back what it says
        BEFORE.write_text(json.dumps({key: here.sysctl(key) for key in FORWARDING}))
    for key in FORWARDING:
        here.sysctl(key, 1)
    try:
        yield
    finally:
        for key, value in json.loads(BEFORE.read_text()).items():
            here.sysctl(key, value)
        BEFORE.unlink()


def _sweep() -> None:
    """Remove everything of ours, whether this run made it or one that was killed."""
    containerd.sweep()
    _kill_orphans()
    _remove_traces(UID_MARK)
    namespaces.sweep()
    run("ip", "link", "delete", containerd.BRIDGE, check=False)


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster of one node with four pods and a client outside; gone after the block."""
    _sweep()
    with forwarding():
        made = Cluster(containerd.Containerd(), namespaces.create("outside"))
        made.runtime.prepare()
        try:
            made.runtime.start()
            made.runtime.import_image()
            _join_outside(made)
            made.run_pod("shop/client-0", app="client", tier="front")
            made.run_pod("shop/web-0", app="web", tier="back")
            made.run_pod("ops/agent-0", app="agent", tier="back")
            made.run_pod("kube-system/proxy-0", host_network=True, app="proxy")
            _settle(made)
            yield made
        finally:
            made.runtime.stop()
            _sweep()
