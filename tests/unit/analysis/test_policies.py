"""NetworkPolicies as the specification has them, and recorded ones on recorded pods."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.analysis.policies import (
    Attempt,
    Judgement,
    denial,
    denial_fields,
    judge,
    judge_drop,
    selects,
)
from tracer.cluster.parse import network_policy, pod
from tracer.explaining import Explainer
from tracer.model import (
    ClusterPod,
    Device,
    NetworkPolicy,
    Node,
    Pod,
    PolicyPeer,
    PolicyPort,
    PolicyRule,
    Requirement,
    Selector,
    Service,
    ServicePort,
)

DATA = Path(__file__).parents[2] / "data" / "kubernetes"
WEB = ClusterPod("shop", "web-0", "n1", ("10.244.0.5", "fd00::5"), labels={"app": "web"},
                 ports=(("http", "tcp", 8080), ("dns", "udp", 53)))  # fmt: skip
CLIENT = ClusterPod("shop", "client", "n1", ("10.244.0.6",), labels={"app": "client"})
OTHER = ClusterPod("ops", "client", "n2", ("10.244.1.6",), labels={"app": "client"})
HOST = ClusterPod("ops", "agent", "n1", ("198.51.100.10",), host_network=True)
PODS = (WEB, CLIENT, OTHER)
NODE = Node(
    "n1",
    1,
    devices={(1, 2): Device(1, 2, "eth0", addresses=("198.51.100.10",))},
    cluster_pods={one.key: one for one in (*PODS, HOST)},
    cluster_pod_by_address={address: one.key for one in PODS for address in one.addresses},
    node_by_address={"198.51.100.10": "n1", "198.51.100.11": "n2"},
    namespace_labels={"shop": {"team": "a"}, "ops": {"team": "b"}},
)
APP = Selector({"app": "web"})


def ingress(*rules, pods=APP, namespace="shop", name="one"):
    return NetworkPolicy(namespace, name, pods, ingress=rules)


def node_with(*policies):
    return replace(NODE, network_policies={policy.key: policy for policy in policies})


def to_web(other="10.244.0.6", port=8080, transport="tcp"):
    return Attempt("ingress", WEB, other, transport, port)


def peers(*rule_peers):
    return PolicyRule(peers=rule_peers)


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        (Selector(), {}, True),
        (Selector({"a": "1"}), {"a": "1", "b": "2"}, True),
        (Selector({"a": "1", "b": "1"}), {"a": "1"}, False),
        (Selector({}, (Requirement("a", "In", ("1", "2")),)), {"a": "2"}, True),
        (Selector({}, (Requirement("a", "In", ("1",)),)), {}, False),
        (Selector({}, (Requirement("a", "NotIn", ("1",)),)), {"a": "2"}, True),
        (Selector({}, (Requirement("a", "NotIn", ("1",)),)), {}, True),
        (Selector({}, (Requirement("a", "NotIn", ("1",)),)), {"a": "1"}, False),
        (Selector({}, (Requirement("a", "Exists"),)), {"a": ""}, True),
        (Selector({}, (Requirement("a", "Exists"),)), {}, False),
        (Selector({}, (Requirement("a", "DoesNotExist"),)), {}, True),
        (Selector({}, (Requirement("a", "DoesNotExist"),)), {"a": "1"}, False),
        (Selector({"b": "1"}, (Requirement("a", "Exists"),)), {"a": "1"}, False),
        (Selector({}, (Requirement("a", "Unheard"),)), {"a": "1"}, False),
    ],
)
def test_selectors(selector, labels, expected):
    assert selects(selector, labels) is expected


def test_without_a_policy_all_is_allowed():
    assert judge(NODE, to_web()) == Judgement()
    elsewhere = node_with(ingress(namespace="ops"), ingress(pods=Selector({"app": "api"})))
    assert judge(elsewhere, to_web()).allowed
    only_egress = node_with(NetworkPolicy("shop", "one", APP, egress=()))
    assert judge(only_egress, to_web()).allowed


def test_a_policy_without_rules_denies():
    judgement = judge(node_with(ingress()), to_web())
    assert not judgement.allowed
    assert judgement.selecting == ("shop/one",)


def test_an_empty_rule_allows_all():
    judgement = judge(node_with(ingress(PolicyRule())), to_web("203.0.113.9"))
    assert (judgement.by, judgement.rule) == ("shop/one", 0)


def test_policies_add_up():
    judgement = judge(
        node_with(ingress(name="deny"), ingress(peers(), peers(), name="open")), to_web()
    )
    assert judgement.selecting == ("shop/deny", "shop/open")
    assert judgement.by == "shop/open"


@pytest.mark.parametrize(
    ("peer", "other", "expected"),
    [
        (PolicyPeer(Selector({"app": "client"})), "10.244.0.6", True),
        (PolicyPeer(Selector({"app": "client"})), "10.244.1.6", False),  # another namespace
        (PolicyPeer(Selector({"app": "db"})), "10.244.0.6", False),
        (PolicyPeer(Selector()), "203.0.113.9", False),  # no pod
        (PolicyPeer(None, Selector({"team": "b"})), "10.244.1.6", True),
        (PolicyPeer(None, Selector({"team": "b"})), "10.244.0.6", False),
        (PolicyPeer(None, Selector()), "10.244.1.6", True),
        (PolicyPeer(Selector({"app": "client"}), Selector({"team": "b"})), "10.244.1.6", True),
        (PolicyPeer(Selector({"app": "db"}), Selector({"team": "b"})), "10.244.1.6", False),
        (PolicyPeer(block="203.0.113.0/24"), "203.0.113.9", True),
        (PolicyPeer(block="203.0.113.0/24", excepted=("203.0.113.8/29",)), "203.0.113.9", False),
        (PolicyPeer(block="203.0.113.0/24", excepted=("203.0.113.0/29",)), "203.0.113.9", True),
        (PolicyPeer(block="2001:db8::/32"), "203.0.113.9", False),
        (PolicyPeer(block="2001:db8::/32"), "2001:db8::1", True),
        (PolicyPeer(block="nonsense"), "203.0.113.9", False),
    ],
)
def test_peers(peer, other, expected):
    assert judge(node_with(ingress(peers(peer))), to_web(other)).allowed is expected


@pytest.mark.parametrize(
    ("port", "attempt", "expected"),
    [
        (PolicyPort("tcp", "8080"), to_web(), True),
        (PolicyPort("tcp", "80"), to_web(), False),
        (PolicyPort("udp", "8080"), to_web(), False),
        (PolicyPort("tcp"), to_web(port=1), True),
        (PolicyPort("tcp", "8000", 9000), to_web(), True),
        (PolicyPort("tcp", "8000", 8079), to_web(), False),
        (PolicyPort("tcp", "http"), to_web(), True),
        (PolicyPort("tcp", "http"), to_web(port=80), False),
        (PolicyPort("tcp", "dns"), to_web(port=53), False),  # that port is UDP's
        (PolicyPort("udp", "dns"), to_web(port=53, transport="udp"), True),
        (PolicyPort("tcp"), to_web(port=0, transport="icmp"), False),
    ],
)
def test_ports(port, attempt, expected):
    rule = PolicyRule(ports=(port,))
    assert judge(node_with(ingress(rule)), attempt).allowed is expected


def test_peers_and_ports_of_one_rule_must_both_fit():
    rule = PolicyRule((PolicyPeer(Selector({"app": "client"})),), (PolicyPort("tcp", "8080"),))
    node = node_with(ingress(rule))
    assert judge(node, to_web()).allowed
    assert not judge(node, to_web(port=80)).allowed
    assert not judge(node, to_web("203.0.113.9")).allowed


def test_egress_to_a_named_port_of_the_receiver():
    policy = NetworkPolicy(
        "shop", "one", Selector(), egress=(PolicyRule(ports=(PolicyPort("tcp", "http"),)),)
    )
    node = node_with(policy)
    assert judge(node, Attempt("egress", CLIENT, "10.244.0.5", "tcp", 8080)).allowed
    assert not judge(node, Attempt("egress", CLIENT, "203.0.113.9", "tcp", 8080)).allowed


def test_the_pods_node_and_the_pod_itself_are_exempt():
    node = node_with(ingress())
    assert judge(node, to_web("198.51.100.10")).exempt
    assert not judge(node, to_web("198.51.100.11")).allowed  # another node
    assert judge(node, to_web("10.244.0.5")).exempt
    host = Attempt("ingress", HOST, "203.0.113.9", "tcp", 80)
    assert judge(node_with(ingress(namespace="ops", pods=Selector())), host).exempt


# Recorded pods and policies

LOCAL = Pod("u1", "shop", "web-0", addresses=WEB.addresses, labels=WEB.labels)
SENDER = Pod("u2", "shop", "client", addresses=CLIENT.addresses, labels=CLIENT.labels)


def recorded():
    def items(kind, read):
        listed = json.loads((DATA / f"{kind}.json").read_text())["items"]
        return {one.key: one for one in map(read, listed)}

    pods = items("pods", pod)
    names = json.loads((DATA / "namespaces.json").read_text())["items"]
    return Node(
        "node1",
        1,
        cluster_pods=pods,
        cluster_pod_by_address={
            address: one.key for one in pods.values() if not one.host_network
            for address in one.addresses
        },
        network_policies=items("networkpolicies", network_policy),
        namespace_labels={one["metadata"]["name"]: one["metadata"]["labels"] for one in names},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("direction", "who", "other", "port", "by"),
    [  # as kube-router enforced them, and the recorded traffic shows
        ("ingress", "shop/web-77fcd85cb8-4j8cs", "10.244.0.9", 8080, "shop/web-allow-client"),
        ("ingress", "shop/web-77fcd85cb8-4j8cs", "10.244.0.9", 81, ""),
        ("ingress", "shop/web-77fcd85cb8-4j8cs", "198.51.100.20", 81, "shop/web-allow-client"),
        ("ingress", "shop/web-77fcd85cb8-4j8cs", "198.51.100.66", 8080, ""),
        ("egress", "ops/client2", "10.244.0.10", 8080, ""),
        ("ingress", "ops/hostport", "198.51.100.20", 8080, ""),
    ],
)
def test_recorded_policies(direction, who, other, port, by):
    node = recorded()
    attempt = Attempt(direction, node.cluster_pods[who], other, "tcp", port)
    judgement = judge(node, attempt)
    assert judgement.selecting
    assert judgement.by == by


# Drops

DROP = {
    "drop.reason": "NETFILTER_DROP", "netfilter.hook": "FORWARD", "transport": "tcp",
    "src.address": "10.244.0.6", "src.port": 40000, "dst.address": "10.244.0.5",
    "dst.port": 8080, "tcp.flags": "SYN",
}  # fmt: skip
DENYING = replace(
    node_with(ingress(name="a"), ingress(name="b")),
    pods={"u1": LOCAL, "u2": SENDER},
    pod_by_address={"10.244.0.5": "u1", "10.244.0.6": "u2"},
    services={"shop/web": Service("shop", "web", ports=(ServicePort("", "tcp", 80),))},
    service_by_address={"tcp/10.96.0.9/80": "shop/web"},
)


def test_a_drop_by_default_deny_is_explained():
    attempt, judgement = judge_drop(DENYING, DROP)
    assert denial(attempt, judgement, DENYING) == (
        "No NetworkPolicy allows it: shop/a and shop/b select pod shop/web-0 for ingress, and no"
        " rule of theirs allows tcp port 8080 from pod shop/client."
    )
    assert denial_fields(attempt, judgement) == {
        "policy.namespace": "shop",
        "policy.name": "a,b",
        "policy.direction": "ingress",
        "policy.source": "evaluated",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"netfilter.hook": "PREROUTING"},
        {"conntrack.state": "established"},
        {"tcp.flags": "SYN,ACK"},
        {"netfilter.object.kind": "Service"},
        {"policy.name": "a"},
        {"dst.address": "10.96.0.9", "dst.port": 80},
        {"dst.address": "203.0.113.9"},
    ],
)
def test_what_policies_do_not_explain(change):
    assert judge_drop(DENYING, DROP | change) is None


def test_a_drop_record_gets_the_sentence_and_the_policies():
    nodes = [DENYING]
    explainer = Explainer(lambda: nodes[0])
    record = explainer.explain({**DROP, "netns": 0})
    assert (
        "No NetworkPolicy allows it: shop/a and shop/b select pod shop/web-0"
        in (record["explanation"])
    )
    assert record["hint"] == "kubectl describe networkpolicy -n shop"
    assert record["policy.name"] == "a,b"
    other = explainer.explain({**DROP, "netns": 0, "tcp.flags": "ACK"})
    assert "policy.name" not in other
    nodes[0] = replace(DENYING, network_policies={})
    allowed = explainer.explain({**DROP, "netns": 0})
    assert "NetworkPolicy" not in allowed["explanation"]


def test_a_pod_of_another_node_is_judged_there():
    remote = replace(DENYING, pods={"u2": SENDER}, pod_by_address={"10.244.0.6": "u2"})
    assert judge_drop(remote, DROP) is None


def test_a_drop_at_a_device_may_be_an_ebpf_policy():
    record = {key: value for key, value in DROP.items() if key != "netfilter.hook"}
    assert judge_drop(DENYING, record) is None
    assert judge_drop(DENYING, record | {"drop.reason": "TC_EGRESS"})
