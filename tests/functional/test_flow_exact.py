"""`tracer flows`: every packet of hundreds of flows, through NAT and drops; and sampled ones."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack
from math import sqrt

import pytest
from lab import namespaces, runner
from lab.expect import owner
from lab.rules import counted, iptables, nft
from lab.traffic import new_port, send_udp, udp_listener

VIP = "10.96.77.9"
FLOWS, ROUNDS = 701, 4
"""At two pods in two directions each they need more room than the programs' cache of 1,024 has."""
DOOMED_BYTES = 200
HEADERS = 20 + 8
SAMPLED, RATE = 100_003, 256


@pytest.fixture
def flows(cri_env):
    def around(*options):
        # Whoever else sends on this machine takes no room in the maps.
        words = ("--namespace", "shop", "--interval", "300ms", *options)
        return runner.running("flows", *words, env=cri_env)

    return around


def exchange(senders, server, to, number, sent):
    """One round: a packet of each flow, some of them to be dropped, some answered."""
    vip, backend = (VIP, to[1]), to  # what dies is told as its sender wrote it
    for index, sender in enumerate(senders):
        ours = sender.getsockname()
        if (index + number) % 7 == 0:
            sender.sendto(bytes(DOOMED_BYTES), vip)
            count(sent, ("egress", "forwarded", ours, vip), DOOMED_BYTES)
            count(sent, ("", "dropped", ours, vip), DOOMED_BYTES)
        payload = index.to_bytes(4, "big") + bytes(index % 50)
        sender.sendto(payload, vip)
        count(sent, ("egress", "forwarded", ours, vip), len(payload))
        count(sent, ("ingress", "forwarded", ours, backend), len(payload))
        got, came_from = server.recvfrom(100)
        assert (got, came_from) == (payload, ours)
        if (index + number) % 2:
            server.sendto(payload + b"!", ours)
            assert sender.recvfrom(100) == (payload + b"!", vip)
            count(sent, ("egress", "forwarded", backend, ours), len(payload) + 1)
            count(sent, ("ingress", "forwarded", vip, ours), len(payload) + 1)


def sender_of(pod):
    """A UDP socket with an address and a port of the pod's."""
    made = pod.where.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((pod.ip4, 0))
    return made


def count(sums, key, payload_bytes):
    sums[(*key, "packets")] += 1
    sums[(*key, "bytes")] += payload_bytes + HEADERS


def test_every_flow_through_nat_and_drops(cluster, flows):
    """In every interval and between them, both directions at both pods, and where they died."""
    port, client, web = new_port(), cluster.client, cluster.web
    dnat = ("PREROUTING", "-t", "nat", "-d", VIP, "-p", "udp", "-j", "DNAT")
    doomed = f"udp dport {port} udp length {DOOMED_BYTES + 8} counter drop"
    sent = Counter()
    with ExitStack() as held:
        to = f"{web.ip4}:{port}"
        held.enter_context(
            iptables(namespaces.node(), "iptables-nft", *dnat, "--to-destination", to)
        )
        held.enter_context(nft(namespaces.node(), "ip", "forward", doomed))
        live = held.enter_context(flows())
        server = held.enter_context(udp_listener(web.where, port))
        senders = [held.enter_context(sender_of(client)) for _ in range(FLOWS)]
        for number in range(ROUNDS):
            exchange(senders, server, (web.ip4, port), number, sent)
            runner.until_quiet(live, quiet_s=0.5)
        done = live.stop()
    assert done.code == 0, done.err
    assert summed(done.records, port) == sent


def summed(records, port):
    sums = Counter()
    for record in records:
        if record.get("transport") != "udp" or port not in (record["src.port"], record["dst.port"]):
            continue
        ends = [(record[f"{end}.address"], record[f"{end}.port"]) for end in ("src", "dst")]
        direction = record["direction"] if record["verdict"] == "forwarded" else ""
        for name in ("packets", "bytes"):
            sums[(direction, record["verdict"], *ends, name)] += record[name]
    return sums


def test_a_budget_that_is_too_small(cluster, flows):
    """One packet in 256 is counted for all: within six standard deviations of what was sent."""
    port, client, web = new_port(), cluster.client, cluster.web
    with (
        nft(web.where, "inet", "input", f"udp dport {port} counter drop"),
        flows("--max-cpu", "0.001%") as live,
    ):
        live.wait_for_line(lambda line: f"one packet in {RATE} is counted" in line, 30)
        send_udp(client.where, (web.ip4, port), SAMPLED)
        done = live.stop()
        assert counted(web.where, "inet") == SAMPLED
    assert done.code == 0, done.err
    mine = [r for r in done.records if r.get("dst.port") == port]
    for pod, direction in ((client, "egress"), (web, "ingress")):
        wanted = {"verdict": "forwarded", **owner(pod, direction)}
        records = [r for r in mine if runner.matches(r, wanted)]
        rates = {record.get("sample.rate", 1) for record in records}
        assert max(rates) == RATE
        packets = sum(record["packets"] for record in records)
        assert abs(packets - SAMPLED) < 6 * sqrt(SAMPLED * RATE), (pod.key, packets)
        assert sum(record["bytes"] for record in records) == packets * (32 + HEADERS)
    died = [r for r in mine if r["verdict"] == "dropped"]
    assert sum(record["packets"] for record in died) == SAMPLED
    assert not any("sample.rate" in record for record in died)


def test_what_finds_no_room_is_summed_by_device(cluster, flows):
    """Far more flows than the map has room for: each packet is in its flow or in the sum."""
    port, client, web = new_port(), cluster.client, cluster.web
    with ExitStack() as held:
        live = held.enter_context(flows("--max-flows", "64"))
        server = held.enter_context(udp_listener(web.where, port))
        senders = [held.enter_context(sender_of(client)) for _ in range(FLOWS)]
        for sender in 2 * senders:
            sender.sendto(b"x", (web.ip4, port))
            server.recv(100)
        done = live.stop()
    assert done.code in (0, 1), done.err  # details of flows without room are lost, and said to be
    assert not [r for r in done.records if r.get("source") == "flow_other"]
    for pod, direction in ((client, "egress"), (web, "ingress")):
        wanted = {"verdict": "forwarded", "netns": pod.where.inode, **owner(pod, direction)}
        mine = [r for r in done.records if runner.matches(r, wanted)]
        sums = [r for r in mine if r.get("flow.other")]
        told = [r for r in mine if r.get("dst.port") == port]
        assert sums, pod.key
        assert sum(record["packets"] for record in sums + told) == 2 * FLOWS, pod.key
