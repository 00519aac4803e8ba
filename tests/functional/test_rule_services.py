"""Services by kube-proxy's rules, where nobody asks the Kubernetes API, in all that names them."""

from __future__ import annotations

import pytest
from lab import kube_node, namespaces, runner
from lab.expect import NETFILTER
from lab.rules import nft
from lab.shell import until
from lab.traffic import new_port, send_udp

WEB = {"service.namespace": "shop", "service.name": "web", "service.source": "rules"}
COUNT = 5


@pytest.fixture(scope="module")
def kube_proxy(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    """The rules of a real node (nftables mode), on the node itself."""
    here = namespaces.node()
    rules = kube_node.RULES / "nftables" / "kube-proxy.nft"
    here.run("nft", "-f", str(rules))
    try:
        yield
    finally:
        for family in ("ip", "ip6"):
            here.run("nft", "delete", "table", family, "kube-proxy", check=False)


@pytest.mark.usefixtures("kube_proxy")
def test_flows_name_services_by_rules(cluster, cri_env):
    client, to = cluster.client, kube_node.WEB[4]
    about = {"type": "flow", "src.address": client.ip4, "service.address": to[0]}
    run = ("flows", "--interval", "500ms", "--format", "flat")
    with runner.running(*run, env=cri_env) as live:
        watch = runner.watch(live)

        def is_named():
            send_udp(client.where, to, COUNT)
            return watch.find(about | WEB | {"service.port": to[1]})

        until(is_named, "a flow to the ClusterIP has the Service's name")
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("kube_proxy")
def test_drops_name_services_by_rules(cluster, cri_env):
    """What dies after DNAT: conntrack tells what was asked for, the rules whose address it is."""
    client, to, port = cluster.client, kube_node.WEB[4], new_port()
    with (
        nft(namespaces.node(), "inet", "forward", f"udp sport {port} drop"),
        runner.running("drops", f"udp src port {port}", "-o", "json", env=cri_env) as live,
    ):
        watch = runner.watch(live)

        def is_named():
            with client.where.socket(2, 2) as sender:
                sender.bind(("", port))
                sender.sendto(b"question", to)
            return watch.find(WEB | {"type": "drop", "service.address": to[0]})

        until(is_named, "a drop of a packet to the ClusterIP has the Service's name")
        done = live.stop()
    assert done.code == 0, done.err


def counted(live, client, to, about):
    """Once the Services are known, each of `COUNT` packets to a ClusterIP has its name."""
    first = runner.watch(live)

    def is_named():
        send_udp(client.where, to, 1)
        return first.find(about | WEB)

    until(is_named, "the ClusterIP has the Service's name")
    watch = runner.watch(live)
    port = send_udp(client.where, to, COUNT)
    return watch, about | {"src.port": port}


@pytest.mark.usefixtures("kube_proxy")
@pytest.mark.parametrize("version", [4, 6])
def test_trace_names_services_by_rules(cluster, cri_env, version):
    client, to = cluster.client, kube_node.WEB[version]
    with runner.running("trace", f"udp port {to[1]}", "-o", "json", env=cri_env) as live:
        about = {"type": "packet", "dst.address": to[0], "service.address": to[0]}
        watch, about = counted(live, client, to, about)
        for record in watch.expect(COUNT, about):
            assert runner.matches(record, WEB | {"service.port": to[1]}), record
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("kube_proxy")
@pytest.mark.parametrize("version", [4, 6])
def test_conntrack_names_services_by_rules(cluster, cri_env, version):
    client, to = cluster.client, kube_node.WEB[version]
    with runner.running("conntrack", "--event", "new", "-o", "json", env=cri_env) as live:
        about = {"type": "conntrack", "event": "new", "service.address": to[0]}
        watch, about = counted(live, client, to, about)
        (record,) = watch.expect(1, about)  # one entry of one socket's packets
        assert runner.matches(record, WEB | {"service.port": to[1]}), record
        assert record["nat"].startswith("dnat"), record
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


def test_without_such_rules_nothing_is_named(cluster, cri_env):
    client, port = cluster.client, new_port()
    with (
        nft(namespaces.node(), "inet", "forward", f"udp sport {port} drop"),
        runner.running("drops", f"udp src port {port}", "-o", "json", env=cri_env) as live,
    ):
        watch = runner.watch(live)
        with client.where.socket(2, 2) as sender:
            sender.bind(("", port))
            sender.sendto(b"question", (cluster.outside_ip4, 53))
        (record,) = watch.expect(1, NETFILTER)
        live.stop()
    assert "service.name" not in record
