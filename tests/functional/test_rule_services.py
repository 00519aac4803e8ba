"""Services by kube-proxy's rules, where nobody asks the Kubernetes API, in flows and drops."""

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
