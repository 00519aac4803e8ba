"""A filter on one side of NAT chooses packets as they look on the other, too, and no others."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from lab import kube_node as kube
from lab import runner, ways
from lab.traffic import ask, converse, family_of, tcp_listener, udp_listener

COUNT = 5
SEGMENTS = {"SYN": 1, "FIN": 1, "PSH": 1}
"""Of each direction of a short conversation, how many segments have the flag."""


@pytest.fixture(scope="module")
def node(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    with kube.kube_node() as made, kube.rules(made.node, "nftables"):
        yield made


def conversation(node, env, expression):
    """What `trace` tells of `client` and `single`, who talk by the Service, then directly."""
    client, single = node.pods["client"], node.pods["single"]
    with (
        runner.whole("trace", expression, "-o", "json", env=env) as live,
        tcp_listener(single.where, kube.POD_PORT) as listener,
    ):
        port = converse(client.where, kube.SINGLE, listener)
        converse(client.where, (single.ip4, kube.POD_PORT), listener)
        runner.until_quiet(live)
    return port, [one for one in live.records() if one["type"] == "packet"]


def begins(record):
    return ways.told(record)[0]


def by_direction(records, opener_port):
    """The segments of a connection there and back, each complete and all of one flow."""
    there = [one for one in records if one["src.port"] == opener_port]
    back = [one for one in records if one["dst.port"] == opener_port]
    assert len(there) + len(back) == len(records), [one["packet"] for one in records]
    for segments in (there, back):
        found = {flag: sum(flag in one["tcp.flags"] for one in segments) for flag in SEGMENTS}
        assert found == SEGMENTS
    assert len({one["flow"] for one in records}) == 1
    return there, back


def test_filter_on_the_services_address(node, cri_env):
    """The request is chosen before DNAT, the answer before it is un-NATed; nothing directly."""
    client, single = node.pods["client"].where.name, node.pods["single"].where.name
    expression = f"host {kube.SINGLE[0]} and tcp port {kube.SINGLE[1]}"
    port, found = conversation(node, cri_env, expression)
    there, back = by_direction(found, port)
    assert {begins(one) for one in there} == {f"{client} eth0 nf ip OUTPUT"}
    assert {begins(one) for one in back} == {f"{single} eth0 nf ip OUTPUT"}
    for one in back:
        assert any(
            text.startswith("un-DNAT")
            for text in ways.changes(one, node.node.name, "nf ip POSTROUTING")
        )


def test_filter_on_the_pods_address(node, cri_env):
    """The first request is chosen once it has been translated, each later one from its start."""
    client, single = node.pods["client"], node.pods["single"]
    expression = f"host {single.ip4} and tcp port {kube.POD_PORT}"
    port, found = conversation(node, cri_env, expression)
    there, back = by_direction([one for one in found if port in _ports(one)], port)
    first, *later = there
    assert begins(first).startswith(f"{node.node.name} ")
    assert {begins(one) for one in later} == {f"{client.where.name} eth0 nf ip OUTPUT"}
    assert {begins(one) for one in back} == {f"{single.where.name} eth0 nf ip OUTPUT"}
    # What was said without the Service is the filter's own.
    direct = [one for one in found if port not in _ports(one)]
    assert {kube.POD_PORT} & _ports(direct[0])
    by_direction(direct, direct[0]["src.port"])


def _ports(record):
    return {record["src.port"], record["dst.port"]}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("side", ["src", "dst"])
def test_filter_on_one_direction_stays_one_direction(node, cri_env, version, side):
    """What is asked of the sender or the receiver is asked of the packet beyond NAT as well."""
    client, (service, port) = node.pods["client"], kube.WEB[version]
    expression = f"{side} host {service} and udp {side} port {port}"
    with ExitStack() as stack:
        live = stack.enter_context(
            runner.whole("trace", expression, "-o", "json", env=cri_env),
        )
        packets = runner.watch(live)
        servers = [
            stack.enter_context(udp_listener(pod.where, kube.WEB_PORT, family_of(service)))
            for pod in node.web
        ]
        asked_from, which = ask(client.where, (service, port), servers, COUNT)
        first, *later = packets.expect(COUNT, {"type": "packet"})
    other = {"src": "dst", "dst": "src"}[side]
    assert {one[f"{other}.port"] for one in (first, *later)} == {asked_from}
    sender = client if side == "dst" else node.web[which]
    start = f"{sender.where.name} eth0 {ways.nf(version, 'OUTPUT')[0]}"
    assert {begins(one) for one in later} == {start}
    # The first answer is known for one once it looks as the filter wants it.
    assert (begins(first) == start) is (side == "dst")


@pytest.mark.parametrize("version", [4, 6])
def test_first_of_each_direction(node, cri_env, version):
    """`--first` knows a flow beyond NAT, too: in the pods, which have no conntrack entries."""
    client, (service, port) = node.pods["client"], kube.WEB[version]
    both = f"udp and (port {port} or port {kube.WEB_PORT})"
    with ExitStack() as stack:
        live = stack.enter_context(
            runner.whole("trace", both, "--first", "3", "-o", "json", env=cri_env)
        )
        servers = [
            stack.enter_context(udp_listener(pod.where, kube.WEB_PORT, family_of(service)))
            for pod in node.web
        ]
        asked_from, which = ask(client.where, (service, port), servers, COUNT)
        runner.until_quiet(live)
    found = [one for one in live.records() if one["type"] == "packet"]
    starts = [begins(one) for one in found]
    output = ways.nf(version, "OUTPUT")[0]
    for sender in (client, node.web[which]):
        assert starts.count(f"{sender.where.name} eth0 {output}") == 3
    assert len(found) == 6
    assert all(asked_from in _ports(one) for one in found)
