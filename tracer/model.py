"""What tracer knows of a node and its cluster: passive, immutable data for every layer.

Network namespaces are named by their inode (`netns`, as in /proc/PID/ns/net and the
kernel's `net->ns.inum`); a device is named by (`netns`, `ifindex`). Addresses are
`str` in their canonical text form (RFC 5952 for IPv6), without prefix length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Record = dict[str, Any]
"""One flat output record: dotted names (docs/formats.md) to JSON values; unknown is absent."""

DeviceKey = tuple[int, int]
"""(netns inode, ifindex)."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod sandbox on this node, merged from every source that knows it."""

    uid: str
    namespace: str
    name: str
    netns: int | None = None
    """Inode of its network namespace; None while unknown."""
    host_network: bool = False
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    sandbox_id: str = ""
    runtime: str = ""
    """`containerd`, `cri-o`, …; empty without a CRI socket."""
    ready: bool = True
    gone: bool = False
    """True once the pod has disappeared; its names stay for late events."""
    sources: tuple[str, ...] = ()
    """Who told: `cri`, `logs`, `cgroup`, `cni`, `netns`, `proc`, `netlink`."""

    @property
    def key(self) -> str:
        """`namespace/name`, or the uid where no source knew the name."""
        return f"{self.namespace}/{self.name}" if self.name else self.uid


@dataclass(frozen=True, slots=True)
class Device:
    """One network device in one network namespace."""

    netns: int
    ifindex: int
    name: str
    kind: str = ""
    """rtnl kind: `veth`, `bridge`, `vxlan`, …; empty for physical and lo."""
    mac: str = ""
    addresses: tuple[str, ...] = ()
    peer: DeviceKey | None = None
    """The other end of a veth pair."""
    master: int | None = None
    """ifindex of the bridge or bond it is a port of, in the same netns."""

    @property
    def key(self) -> DeviceKey:
        """(netns, ifindex)."""
        return self.netns, self.ifindex


TUNNEL_KINDS = frozenset(
    """
    vxlan geneve bareudp ipip sit ip6tnl gre gretap erspan ip6gre ip6gretap ip6erspan vti vti6 xfrm
    wireguard tun
    """.split()  # noqa: SIM905 - a list of names reads best as text
)
"""Kinds of devices (IFLA_INFO_KIND) that put a packet into another one."""


@dataclass(frozen=True, slots=True)
class Route:
    """By which device a routing table sends what goes to some addresses."""

    network: bytes
    """4 or 16 bytes."""
    bits: int
    """Of `network`, how many must agree."""
    ifindex: int
    """0: by none (blackhole), or by several."""


@dataclass(frozen=True, slots=True)
class TcFilter:
    """What tc runs for each packet at one side of a device: it may send it elsewhere, or end it."""

    ifindex: int
    side: str
    """`ingress`, behind netif_receive_skb, or `egress`, before net_dev_queue."""
    kind: str
    """The classifier: `bpf`, `flower`, `matchall`, `u32`, …; `tcx`: a program on a link."""
    name: str = ""
    """Of a BPF program: as who attached it calls it, of tcx its own."""
    program_id: int = 0
    """Of a BPF program; 0: none, or not told."""
    actions: tuple[str, ...] = ()
    """`mirred`, `gact`, …"""

    @property
    def text(self) -> str:
        """`bpf cil_from_container id 7`, `matchall: mirred`."""
        words = [self.kind, self.name, f"id {self.program_id}" if self.program_id else ""]
        what = " ".join(filter(None, words))
        return f"{what}: {', '.join(self.actions)}" if self.actions else what


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace, whoever made it."""

    inode: int
    name: str = ""
    """Name under /run/netns or /run/docker/netns, `node` for the node's own; may be empty."""
    pid: int | None = None
    """A process that lives in it, if any."""
    gone: bool = False
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """A controller: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob and others."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Named:
    """An object of the Kubernetes API, in its namespace."""

    namespace: str
    name: str

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ClusterPod(Named):
    """One pod of the cluster, on whatever node, as the Kubernetes API tells it."""

    node: str = ""
    addresses: tuple[str, ...] = ()
    """Its own; of a host-network pod the node's."""
    host_network: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    """Its controller, which may have one itself: `Node.owners`."""
    ports: tuple[tuple[str, str, int], ...] = ()
    """Named container ports: (name, `tcp`, number)."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service or of an EndpointSlice."""

    name: str
    """Empty where the only port has none."""
    transport: str
    """`tcp`, `udp`, `sctp`."""
    port: int
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service(Named):
    """One Service."""

    kind: str = "ClusterIP"
    addresses: tuple[str, ...] = ()
    """ClusterIPs; none of a headless Service."""
    external_addresses: tuple[str, ...] = ()
    """externalIPs and those of load balancers."""
    ports: tuple[ServicePort, ...] = ()
    internal_local: bool = False
    """internalTrafficPolicy Local: only endpoints on the sender's node."""
    external_local: bool = False
    """externalTrafficPolicy Local: only endpoints on the node that is asked."""
    source: str = ""
    """Who told of it: `rules` of kube-proxy; empty: the Kubernetes API."""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A part of the endpoints of one Service."""

    namespace: str
    service: str
    ports: tuple[ServicePort, ...] = ()
    ready: tuple[str, ...] = ()
    """Addresses that get traffic."""
    unready: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of a selector's matchExpressions."""

    key: str
    operator: str
    """`In`, `NotIn`, `Exists`, `DoesNotExist`."""
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """A Kubernetes label selector; without anything in it, it selects all."""

    labels: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyPeer:
    """Whom a rule is about: pods, by labels and namespace, or a block of addresses."""

    pods: Selector | None = None
    namespaces: Selector | None = None
    """None: the policy's own namespace."""
    block: str = ""
    """CIDR; empty unless the peer is an ipBlock."""
    excepted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """Which ports of the receiver a rule is about."""

    transport: str = "tcp"
    port: str = ""
    """A number or the name of a container port; empty: all."""
    end_port: int = 0
    """Last of a range that begins at `port`; 0: no range."""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One ingress or egress rule; without peers (ports), it is about all."""

    peers: tuple[PolicyPeer, ...] = ()
    ports: tuple[PolicyPort, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkPolicy(Named):
    """One NetworkPolicy of networking.k8s.io/v1."""

    pods: Selector = Selector()
    ingress: tuple[PolicyRule, ...] | None = None
    """None: it says nothing of ingress; without rules: it allows none."""
    egress: tuple[PolicyRule, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """What only the Kubernetes API tells, at one moment; empty without it."""

    cluster_pods: Mapping[str, ClusterPod] = field(default_factory=dict)
    """Pods of the whole cluster by `namespace/name`."""
    cluster_pod_by_address: Mapping[str, str] = field(default_factory=dict)
    """Never a host-network pod's."""
    node_by_address: Mapping[str, str] = field(default_factory=dict)
    """Names of the cluster's nodes that run pods, by address."""
    owners: Mapping[str, Owner] = field(default_factory=dict)
    """`namespace/kind/name` of a controller → its own controller."""
    services: Mapping[str, Service] = field(default_factory=dict)
    """By `namespace/name`."""
    service_by_address: Mapping[str, str] = field(default_factory=dict)
    """`tcp/10.96.0.1/443` → `namespace/name`; a NodePort is `tcp//30080`."""
    endpoint_slices: Mapping[str, EndpointSlice] = field(default_factory=dict)
    """By `namespace/name` of the slice."""
    network_policies: Mapping[str, NetworkPolicy] = field(default_factory=dict)
    """By `namespace/name`."""
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def over(self, node: Node) -> Node:
        """`node` with what the API knows."""
        return replace(node, **{one.name: getattr(self, one.name) for one in fields(ClusterView)})


@dataclass(frozen=True, slots=True)
class Node(ClusterView):
    """A snapshot of the node; `pods` and every `pod_by_*` index use the pod's uid."""

    name: str
    netns: int
    """Inode of the node's own network namespace."""
    pods: Mapping[str, Pod] = field(default_factory=dict)
    namespaces: Mapping[int, Namespace] = field(default_factory=dict)
    devices: Mapping[DeviceKey, Device] = field(default_factory=dict)
    pod_by_netns: Mapping[int, str] = field(default_factory=dict)
    pod_by_device: Mapping[DeviceKey, str] = field(default_factory=dict)
    """Devices in the pod and their veth peers on the node."""
    pod_by_address: Mapping[str, str] = field(default_factory=dict)
    """Pod addresses that are unique on this node; never a host-network pod's."""
    pod_by_cgroup: Mapping[int, str] = field(default_factory=dict)
    """cgroup v2 id (the directory's inode) → pod; tells host-network pods apart."""
    warnings: tuple[str, ...] = ()
    """Sources that could not be read, and what that costs."""
    version: int = 0
    """Grows with every change, so that a reader can tell cheaply whether to look again."""
    tc_filters: Mapping[int, tuple[TcFilter, ...]] = field(default_factory=dict)
    """By namespace, in the order they run; one whose filters nobody has read is absent."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One packet as a capture file holds it."""

    device: DeviceKey
    """Where it was seen; ifindex 0 where no device is known."""
    name: str
    """The device's name."""
    description: str
    """Whose it is, in words."""
    time_ns: int
    """Wall clock, since 1970."""
    data: bytes
    """From the Ethernet header on, as much as was captured."""
    length_bytes: int
    """What it had with the same header, captured or not."""
    comment: str
    packet_id: int = 0
    """The same wherever one packet was seen; 0: not known."""
    flow: int = 0
    """1 inbound, 2 outbound, 0 not known: as epb_flags of pcapng has it."""


class State(str, Enum):
    """What a finding means for running tracer, best first."""

    OK = "ok"
    DEGRADED = "degraded"
    """Runs, but the finding's detail says what is lost."""
    MISSING = "missing"
    """Cannot run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `tracer doctor` looked at on this node."""

    check: str
    """What was looked at: `btf`, `bcc`, `cri /run/containerd/containerd.sock`, …"""
    state: State
    detail: str
    """What was found; what is lost, unless the state is ok."""
    hint: str = ""
    """What to do about it; empty when there is nothing to do."""
