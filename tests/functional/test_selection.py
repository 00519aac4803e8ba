"""Which drops are shown: by pod, namespace, label, netns, device, reason and pcap expression."""

from __future__ import annotations

import time

import pytest
from lab import namespaces, runner
from lab.expect import udp
from lab.rules import nft
from lab.traffic import new_port, send_udp

COUNT = 7


@pytest.fixture(scope="module")
def closed_ports(cluster, routed):
    """Three losses at once, each told by its port: client → web, agent → web, left → right."""
    ways = {
        "client": (cluster.client.where, cluster.client.ip4, cluster.web.ip4),
        "agent": (cluster.agent.where, cluster.agent.ip4, cluster.web.ip4),
        "outside": (cluster.outside, cluster.outside_ip4, cluster.agent.ip4),
        "plain": (routed.left.where, routed.left.ip4, routed.right.ip4),
    }
    ports = {name: new_port() for name in ways}

    def provoke():
        for name, (where, _, dst) in ways.items():
            send_udp(where, (dst, ports[name]), COUNT)

    provoke.about = {n: udp(src, dst, ports[n]) for n, (_, src, dst) in ways.items()}
    provoke.ports = ports
    return provoke


def shown(closed_ports, env, *options):
    """Names of the losses that are shown, each whole, and nothing else that is a drop."""
    with runner.running("drops", "-o", "json", *options, env=env) as live:
        closed_ports()
        runner.until_quiet(live)
        done = live.stop()
    assert done.code == 0, done.err
    drops = [x for x in done.records if x["type"] == "drop" and x.get("transport") == "udp"]
    seen = {
        name: len([record for record in drops if runner.matches(record, about)])
        for name, about in closed_ports.about.items()
    }
    assert len(drops) == sum(seen.values())
    assert set(seen.values()) <= {0, COUNT}, f"shown in part: {seen}"
    return {name for name, count in seen.items() if count}


def test_pod(cluster, closed_ports, cri_env):
    assert shown(closed_ports, cri_env, "--pod", cluster.client.key) == {"client"}


def test_pod_that_receives(cluster, closed_ports, cri_env):
    assert shown(closed_ports, cri_env, "--pod", cluster.web.key) == {"client", "agent"}


def test_namespace(closed_ports, cri_env):
    assert shown(closed_ports, cri_env, "--namespace", "ops") == {"agent", "outside"}


def test_selector(closed_ports, cri_env):
    assert shown(closed_ports, cri_env, "--selector", "app=agent") == {"agent", "outside"}


def test_namespace_and_selector(closed_ports, cri_env):
    options = ("--namespace", "shop", "--selector", "tier=front")
    assert shown(closed_ports, cri_env, *options) == {"client"}


def test_netns_by_name(routed, closed_ports, cri_env):
    assert shown(closed_ports, cri_env, "--netns", routed.right.where.name) == {"plain"}


def test_netns_by_inode(cluster, closed_ports, cri_env):
    options = ("--netns", str(cluster.web.where.inode))
    assert shown(closed_ports, cri_env, *options) == {"client", "agent"}


def test_interface(cluster, cri_env):
    """The device as the drop shows it: here the node's end of the client's wire to outside."""
    node, client, port, other = namespaces.node(), cluster.client, new_port(), new_port()
    with (
        nft(node, "inet", "postrouting", f"udp dport {port} drop"),
        runner.running(
            "drops", "-o", "json", "--interface", cluster.node_device, env=cri_env
        ) as live,
    ):
        watch = runner.watch(live)
        send_udp(client.where, (cluster.web.ip4, other), COUNT)
        send_udp(client.where, (cluster.outside_ip4, port), COUNT)
        found = watch.expect(COUNT, udp(client.ip4, cluster.outside_ip4, port))
        assert not watch.find({"dst.port": other})
    assert {record["interface.name"] for record in found} == {cluster.node_device}


def test_reason(closed_ports, cri_env):
    every = {"client", "agent", "outside", "plain"}
    assert shown(closed_ports, cri_env, "--reason", "NO_SOCKET") == every
    assert shown(closed_ports, cri_env, "--reason", "IP_RPFILTER") == set()


def test_pcap_expression(closed_ports, cri_env):
    expression = f"udp and dst port {closed_ports.ports['agent']}"
    assert shown(closed_ports, cri_env, expression) == {"agent"}


def test_pcap_expression_with_host_and_pod(cluster, closed_ports, cri_env):
    options = ("--pod", cluster.web.key, f"src host {cluster.agent.ip4}")
    assert shown(closed_ports, cri_env, *options) == {"agent"}


def test_pod_that_starts_later(cluster, cri_env):
    """A selection holds for pods that come after tracer, and their names are known."""
    with runner.running("drops", "-o", "json", "--namespace", "ops", env=cri_env) as live:
        late = cluster.run_pod("ops/late-0", app="late")
        try:
            lose_until_named(live, late, cluster.web)
            watch, port = runner.watch(live), new_port()
            send_udp(late.where, (cluster.web.ip4, port), COUNT)
            found = watch.expect(COUNT, udp(late.ip4, cluster.web.ip4, port))
        finally:
            cluster.remove_pod("ops/late-0")
    assert {record["k8s.src.pod.name"] for record in found} == {"late-0"}


def lose_until_named(live, pod, to):
    """Send to a closed port until a record names the sender; how long that took is printed."""
    watch, port, began = runner.watch(live), new_port(), time.monotonic()
    named = {"dst.port": port, "k8s.src.pod.name": pod.name}
    while not watch.find(named):
        assert time.monotonic() < began + 5, f"{pod.key} stayed unknown"
        send_udp(pod.where, (to.ip4, port), 1)
        time.sleep(0.02)
    print(f"known after {time.monotonic() - began:.2f} s")
