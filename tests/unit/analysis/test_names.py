"""Names beyond the node: other nodes' pods, owners, Services; in drops and in flows."""

from dataclasses import replace

import numpy as np
import pytest

from tracer.analysis.addresses import address_bytes
from tracer.analysis.drops import Context, drop_record
from tracer.analysis.flow_columns import flow_table
from tracer.analysis.names import owner_of, pod_at, service_fields
from tracer.flow_table import records
from tracer.layout import layout
from tracer.model import ClusterPod, Device, Node, Owner, Pod, Service, ServicePort

NODE_NETNS, POD_NETNS = 4026531833, 4026532001
WEB = Pod("u1", "shop", "web-1", POD_NETNS, addresses=("10.244.0.5",))
REMOTE = ClusterPod(
    "data", "redis-0", "other", ("10.244.7.7",), owner=Owner("StatefulSet", "redis")
)
ALONE = Node(
    "n1",
    NODE_NETNS,
    pods={"u1": WEB},
    devices={(NODE_NETNS, 2): Device(NODE_NETNS, 2, "eth0", addresses=("198.51.100.10",))},
    pod_by_netns={POD_NETNS: "u1"},
    pod_by_address={"10.244.0.5": "u1"},
)
NODE = replace(
    ALONE,
    cluster_pods={
        "data/redis-0": REMOTE,
        "shop/web-1": ClusterPod("shop", "web-1", owner=Owner("ReplicaSet", "web-77fc")),
    },
    cluster_pod_by_address={"10.244.7.7": "data/redis-0"},
    node_by_address={"198.51.100.11": "other"},
    owners={"shop/ReplicaSet/web-77fc": Owner("Rollout", "web")},
    services={
        "data/redis": Service(
            "data", "redis", "NodePort", ("10.96.7.8",), (), (ServicePort("", "tcp", 6379, 30379),)
        )
    },
    service_by_address={"tcp/10.96.7.8/6379": "data/redis", "tcp//30379": "data/redis"},
)
STRUCTS = layout().structs
CONTEXT = Context(NODE, {12: "NETFILTER_DROP"}, lambda address: f"f+{address:#x}", 0)


def test_an_address_is_a_local_pods_before_a_remote_ones():
    assert pod_at(NODE, "10.244.0.5") is WEB
    assert pod_at(NODE, "10.244.7.7") is REMOTE
    assert pod_at(NODE, "10.244.9.9") is None
    assert pod_at(ALONE, "10.244.7.7") is None


def test_the_api_knows_owners_better_than_labels():
    labelled = replace(WEB, name="web-77fc-abcde", labels={"pod-template-hash": "77fc"})
    assert owner_of(ALONE, labelled) == ("Deployment", "web")
    assert owner_of(NODE, WEB) == ("Rollout", "web")
    assert owner_of(NODE, REMOTE) == ("StatefulSet", "redis")
    bare = replace(NODE, cluster_pods={"shop/web-1": ClusterPod("shop", "web-1")})
    assert owner_of(bare, WEB) is None


@pytest.mark.parametrize(
    ("record", "address"),
    [
        ({"dst.address": "10.96.7.8", "dst.port": 6379}, "10.96.7.8"),
        ({"src.address": "10.96.7.8", "src.port": 6379}, "10.96.7.8"),
        ({"dst.address": "198.51.100.10", "dst.port": 30379}, "198.51.100.10"),
        ({"dst.address": "198.51.100.11", "dst.port": 30379}, "198.51.100.11"),
        ({"dst.address": "203.0.113.9", "dst.port": 30379}, None),
        ({"dst.address": "10.96.7.8", "dst.port": 80}, None),
        (
            {
                "dst.address": "10.244.7.7",
                "dst.port": 6379,
                "conntrack.orig.dst.address": "10.96.7.8",
                "conntrack.orig.dst.port": 6379,
            },
            "10.96.7.8",
        ),
    ],
)
def test_the_service_of_a_packet(record, address):
    fields = service_fields(NODE, {"transport": "tcp", **record})
    assert fields.get("service.address") == address
    if address:
        assert (fields["service.namespace"], fields["service.name"]) == ("data", "redis")
        assert isinstance(fields["service.port"], int)
    assert service_fields(NODE, {"transport": "udp", **record}) == {}
    assert service_fields(ALONE, {"transport": "tcp", **record}) == {}


def test_a_drop_names_what_is_on_another_node():
    event = np.zeros(1, STRUCTS["drop_event"])[0]
    packet = bytes.fromhex("450000280000400040060000 0af40005 0af40707 9c4018eb") + bytes(16)
    event["tuple"]["ethertype"], event["reason"], event["netns"] = 0x0800, 12, POD_NETNS
    event["packet"][14 : 14 + len(packet)] = np.frombuffer(packet, np.uint8)
    event["captured_bytes"] = 14 + len(packet)
    record = drop_record(event, CONTEXT)
    assert (record["k8s.dst.namespace"], record["k8s.dst.pod.name"]) == ("data", "redis-0")
    assert (record["k8s.dst.owner.kind"], record["k8s.dst.owner.name"]) == ("StatefulSet", "redis")
    assert (record["k8s.owner.kind"], record["k8s.src.owner.name"]) == ("Rollout", "web")


def _flows(*ends):
    keys = np.zeros(len(ends), STRUCTS["flow_key"])
    keys["netns"], keys["ifindex"], keys["direction"] = POD_NETNS, 2, 1
    for key, (source, sport, destination, dport) in zip(keys, ends, strict=True):
        key["tuple"]["ethertype"], key["tuple"]["protocol"] = 0x0800, 6
        key["tuple"]["saddr"] = np.frombuffer(address_bytes(source), np.uint8)
        key["tuple"]["daddr"] = np.frombuffer(address_bytes(destination), np.uint8)
        key["tuple"]["sport"], key["tuple"]["dport"] = sport, dport
    counts = np.zeros(len(ends), STRUCTS["flow_count"])
    counts["packets"], counts["first_ns"] = 1, np.arange(1, len(ends) + 1)
    return keys, counts


ENDS = (
    ("10.244.0.5", 40000, "10.96.7.8", 6379),
    ("10.96.7.8", 6379, "10.244.0.5", 40000),
    ("10.244.0.5", 40001, "10.244.7.7", 6379),
    ("10.244.0.5", 40002, "198.51.100.11", 30379),
    ("10.244.0.5", 40003, "10.96.7.8", 80),
)


def test_flows_name_services_and_remote_pods():
    asked, answered, direct, node_port, other = records(flow_table(*_flows(*ENDS), CONTEXT))
    for record, address, port in (
        (asked, "10.96.7.8", 6379), (answered, "10.96.7.8", 6379),
        (node_port, "198.51.100.11", 30379),
    ):  # fmt: skip
        assert (record["service.namespace"], record["service.name"]) == ("data", "redis")
        assert (record["service.address"], record["service.port"]) == (address, port)
    assert direct["k8s.dst.pod.name"] == "redis-0"
    assert direct["k8s.dst.owner.kind"] == "StatefulSet"
    assert direct["k8s.src.owner.name"] == "web"
    for record in (direct, other):
        assert not any(name.startswith("service.") for name in record)


def test_flows_without_the_api_name_no_services():
    for record in records(flow_table(*_flows(*ENDS), replace(CONTEXT, node=ALONE))):
        assert not any(name.startswith("service.") for name in record)
        assert "k8s.dst.pod.name" not in record or record["dst.address"] == "10.244.0.5"
