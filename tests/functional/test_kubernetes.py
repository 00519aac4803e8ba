"""Names from the Kubernetes API on real packets; the API server is a fake that dies on demand."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from fake_api import KINDS, FakeApi, kubeconfig
from lab import namespaces
from lab.expect import owner, source, udp
from lab.rules import iptables, nft
from lab.runner import finish, running, watch
from lab.shell import until
from lab.traffic import new_port, send_udp

COUNT = 7
PROBE, FIRST, SECOND = b"p" * 10, b"f" * 20, b"s" * 30
"""Payloads, so that packets of one time are told from those of another."""
HEADERS_BYTES = 28
VIP, SERVICE_PORT = "10.96.77.9", 6379


def item(namespace, name, **more):
    return {"metadata": {"namespace": namespace, "name": name}, **more}


@pytest.fixture
def api(cluster):
    """A cluster where the address outside of the node is a pod of another one."""
    fake = FakeApi()
    for kind in KINDS:
        fake.objects[kind].clear()
    controlled = [{"kind": "StatefulSet", "name": "redis", "controller": True}]
    redis = item(
        "data",
        "redis-0",
        spec={"nodeName": "other"},
        status={"phase": "Running", "podIPs": [{"ip": cluster.outside_ip4}]},
    )
    redis["metadata"]["ownerReferences"] = controlled
    service = item(
        "data",
        "redis",
        spec={
            "clusterIPs": [VIP],
            "ports": [{"name": "redis", "protocol": "UDP", "port": SERVICE_PORT}],
        },
    )
    policy = item(
        cluster.client.namespace,
        "default-deny",
        spec={"podSelector": {}, "policyTypes": ["Egress"]},
    )
    for kind, one in (("pods", redis), ("services", service), ("networkpolicies", policy)):
        fake.objects[kind][fake._key(one)] = one
    with fake:
        yield fake


@pytest.fixture
def to_service(cluster):
    """The Service's address leads to the pod on the other node; forwarding there is forbidden."""
    port = new_port()
    dnat = ("PREROUTING", "-t", "nat", "-d", VIP, "-p", "udp", "-j", "DNAT")
    target = f"{cluster.outside_ip4}:{port}"
    with (
        iptables(namespaces.node(), "iptables-nft", *dnat, "--to-destination", target),
        nft(namespaces.node(), "inet", "forward", f"udp dport {port} drop"),
    ):
        yield port


REDIS = {
    "k8s.dst.namespace": "data",
    "k8s.dst.pod.name": "redis-0",
    "k8s.dst.owner.kind": "StatefulSet",
    "k8s.dst.owner.name": "redis",
}
SERVICE = {
    "service.namespace": "data",
    "service.name": "redis",
    "service.address": VIP,
    "service.port": SERVICE_PORT,
}


def until_known(cluster, seen, port, wanted):
    """Send until a record has the names: from then on tracer knows them."""

    def is_known():
        send_udp(cluster.client.where, (VIP, SERVICE_PORT), 1, PROBE)
        return seen.find(wanted | {"dst.port": port})

    until(is_known, "names of the API in the records", 20)


def test_drops_name_what_lies_beyond_the_node(cluster, cri_env, api, tmp_path, to_service):
    config = kubeconfig(tmp_path / "config", api.url)
    client, about = cluster.client, udp(cluster.client.ip4, cluster.outside_ip4, to_service)
    policy = {
        "policy.namespace": client.namespace,
        "policy.name": "default-deny",
        "policy.direction": "egress",
    }
    with running("drops", "-o", "json", "--kubeconfig", str(config), env=cri_env) as live:
        # Each kind is watched for itself: one may be known before another.
        until_known(cluster, watch(live), to_service, REDIS | SERVICE | policy)
        seen = watch(live)
        send_udp(client.where, (VIP, SERVICE_PORT), COUNT, FIRST)
        wanted = about | REDIS | SERVICE | policy | owner(client, "egress") | source(client)
        found = seen.expect(COUNT, wanted | {"ip.length": HEADERS_BYTES + len(FIRST)})
        told = (
            f"No NetworkPolicy allows it: {client.namespace}/default-deny selects pod {client.key}"
            f" for egress, and no rule of it allows udp port {to_service} to pod data/redis-0."
        )
        assert all(told in record["explanation"] for record in found)

        api.close()  # the events go on, and so do the names
        live.wait_for_line(lambda line: "kubernetes API" in line and "no answer" in line, 20)
        seen = watch(live)
        send_udp(client.where, (VIP, SERVICE_PORT), COUNT, SECOND)
        seen.expect(COUNT, wanted | {"ip.length": HEADERS_BYTES + len(SECOND)})
        done = live.stop()
    assert done.code == 0, done.err
    assert live.stop_s < 5
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("to_service")
def test_flows_name_services(cluster, cri_env, api, tmp_path):
    config = kubeconfig(tmp_path / "config", api.url)
    wanted = {"type": "flow", "verdict": "forwarded", "src.address": cluster.client.ip4} | SERVICE
    run = ("flows", "--interval", "500ms", "--kubeconfig", str(config), "--format", "flat")
    with running(*run, "--service", "data/redis", env=cri_env) as live:
        other = new_port()
        send_udp(cluster.client.where, (cluster.outside_ip4, other), COUNT)
        until_known(cluster, watch(live), SERVICE_PORT, wanted)
        done = live.stop()
    assert done.code == 0, done.err
    flows = [record for record in done.records if record["type"] == "flow"]
    assert {record["service.name"] for record in flows} == {"redis"}


def test_flows_of_a_service_need_somebody_who_knows_it():
    env = {"KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": ""}
    done = finish("flows", "--concurrent", "--service", "data/redis", env=env)
    assert done.code == 2
    assert "error: service: nobody tells of Services" in done.err


def test_without_credentials_nothing_is_asked(cluster, cri_env, api, to_service):
    client = cluster.client
    env = {**cri_env, "KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": ""}
    with running("drops", "-o", "json", env=env) as live:
        seen = watch(live)
        send_udp(client.where, (VIP, SERVICE_PORT), COUNT)
        found = seen.expect(COUNT, udp(client.ip4, cluster.outside_ip4, to_service))
        done = live.stop()
    assert done.code == 0, done.err
    assert "kubernetes" not in done.err
    assert api.requests == []
    for record in found:
        assert not any(name.startswith(("service.", "policy.", "k8s.dst.")) for name in record)


def test_a_bad_kubeconfig_ends_the_run_at_once(tmp_path):
    done = finish("drops", "--concurrent", "--kubeconfig", str(tmp_path / "nothing"))
    assert done.code == 2
    assert "error: kubeconfig" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("told_by", ["the API", "kube-proxy's rules"])
def test_a_service_is_selected(cluster, cri_env, api, tmp_path, to_service, told_by):
    """What is dropped before DNAT, and after it where the API tells of endpoints."""
    client, node = cluster.client, namespaces.node()
    labels = {"kubernetes.io/service-name": "redis"}
    endpoints = item(
        "data",
        "redis-abc",
        ports=[{"protocol": "UDP", "port": to_service}],
        endpoints=[{"addresses": [cluster.outside_ip4]}],
    )
    endpoints["metadata"]["labels"] = labels
    api.objects["endpointslices"][api._key(endpoints)] = endpoints
    config = kubeconfig(tmp_path / "config", api.url)
    options = ("--kubeconfig", str(config)) if told_by == "the API" else ()
    env = {**cri_env, "KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": ""}
    other = new_port()
    before_dnat = f"ip daddr {VIP} udp length {8 + len(FIRST)} drop"
    with (
        kube_proxy_rule(node),
        nft(node, "ip", "prerouting", f"udp dport {other} drop; {before_dnat}", -150),
        running("drops", "-o", "json", "--service", "data/redis", *options, env=env) as live,
    ):
        seen = watch(live)
        send_udp(client.where, (cluster.outside_ip4, other), COUNT, PROBE)
        send_udp(client.where, (VIP, SERVICE_PORT), COUNT, SECOND)
        send_udp(client.where, (VIP, SERVICE_PORT), COUNT, FIRST)
        seen.expect(COUNT, udp(client.ip4, VIP, SERVICE_PORT))
        after = COUNT if told_by == "the API" else 0
        seen.expect(after, udp(client.ip4, cluster.outside_ip4, to_service))
        seen.expect(0, udp(client.ip4, cluster.outside_ip4, other))
        done = live.stop()
    assert done.code == 0, done.err
    assert ("endpoints are not selected" in done.err) == (told_by != "the API")


@contextmanager
def kube_proxy_rule(node):
    """The rule by which kube-proxy tells of the Service, in a chain that nobody jumps to."""
    chain = "KUBE-SERVICES"
    node.run("iptables-nft", "-w", "-t", "nat", "-N", chain)
    comment = "data/redis:redis cluster IP"
    rule = ("-d", f"{VIP}/32", "-p", "udp", "-m", "comment", "--comment", comment)
    rule += ("-m", "udp", "--dport", str(SERVICE_PORT), "-j", "RETURN")
    try:
        node.run("iptables-nft", "-w", "-t", "nat", "-A", chain, *rule)
        yield
    finally:
        node.run("iptables-nft", "-w", "-t", "nat", "-F", chain)
        node.run("iptables-nft", "-w", "-t", "nat", "-X", chain)


def test_a_service_that_nobody_knows(api, tmp_path):
    config = kubeconfig(tmp_path / "config", api.url)
    done = finish("trace", "--concurrent", "--kubeconfig", str(config), "--service", "data/nope")
    assert done.code == 2
    assert "error: --service 'data/nope': no such Service" in done.err
    assert "data/redis" in done.err
