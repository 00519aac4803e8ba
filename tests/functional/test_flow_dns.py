"""`flows --dns`: the names by which pods came to addresses, from a real server's answers."""

from __future__ import annotations

import os
import signal
import socket

import dns.message
import pytest
from lab import runner
from lab.name_server import DNS_PORT, answer, resolve, serving
from lab.shell import until
from lab.traffic import family_of, new_port, send_udp, udp_listener

SENT = 31


@pytest.fixture
def flows(cri_env):
    """Run flows with names around a block of traffic."""

    def around(*options):
        return runner.running("flows", "--interval", "300ms", "--dns", *options, env=cri_env)

    return around


def named(records, pod, port, way="egress"):
    """Names that the records of `pod` give the address it talked to on `port`, with packets."""
    end, mine = ("dst", "dst.port") if way == "egress" else ("src", "src.port")
    about = {"k8s.pod.name": pod.name, "direction": way, "verdict": "forwarded", mine: port}
    found = {}
    for record in (one for one in records if runner.matches(one, about)):
        name = record.get(f"{end}.dns.name")
        found[name] = found.get(name, 0) + record["packets"]
    return found


def lost(records):
    """What `lost` records say is missing."""
    found = {}
    for record in (one for one in records if one["type"] == "lost"):
        found[record["source"]] = found.get(record["source"], 0) + record["count"]
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_a_name_and_a_chain(cluster, flows, version):
    """The name that was asked for, whatever it was an alias of, in both directions."""
    client, web = cluster.client, cluster.web
    to = web.ip4 if version == 4 else web.ip6
    asker, kind = (client.ip4, "A") if version == 4 else (client.ip6, "AAAA")
    plain, aliased = new_port(), new_port()
    zone = {
        ("web.shop.test.", kind): [("web.shop.test.", 5, kind, to)],
        ("www.shop.test.", kind): [
            ("www.shop.test.", 30, "CNAME", "edge.cdn.test."),
            ("edge.cdn.test.", 30, "CNAME", "pop7.cdn.test."),
            ("pop7.cdn.test.", 5, kind, to),
        ],
    }
    with (
        serving(web.where, {asker: zone}, family_of(to)),
        udp_listener(web.where, plain, family_of(to)) as server,
        udp_listener(client.where, plain, family_of(to)) as sender,
        flows() as live,
    ):
        resolve(client.where, to, "Web.Shop.test.", kind)
        for _ in range(SENT):
            sender.sendto(b"question", (to, plain))
            server.sendto(b"answer", server.recvfrom(100)[1])
        until(
            lambda: named(live.records(), client, plain) == {"web.shop.test": SENT},
            "the first name is told",
            30,
        )
        resolve(client.where, to, "www.shop.test.", kind)
        send_udp(client.where, (to, aliased), SENT)
        done = live.stop()
    assert done.code == 0, done.err
    assert named(done.records, client, plain, "ingress") == {"web.shop.test": SENT}
    assert named(done.records, client, aliased) == {"www.shop.test,web.shop.test": SENT}
    assert named(done.records, web, plain, "ingress") == {None: SENT}


def test_each_pod_has_its_own_names(cluster, flows):
    """Two pods were led to one address by different names, a third by none."""
    port, web = new_port(), cluster.web
    outside = cluster.outside_ip4
    zones = {
        cluster.client.ip4: {("db.test.", "A"): [("db.test.", 5, "A", outside)]},
        cluster.agent.ip4: {("cache.test.", "A"): [("cache.test.", 5, "A", outside)]},
    }
    with serving(web.where, zones, socket.AF_INET), flows("--format", "hubble") as live:
        resolve(cluster.client.where, web.ip4, "db.test.")
        resolve(cluster.agent.where, web.ip4, "cache.test.")
        for pod in (cluster.client, cluster.agent, web):
            send_udp(pod.where, (outside, port), SENT)
        done = live.stop()
    sent = {"verdict": "FORWARDED", "traffic_direction": "EGRESS"}
    names = {
        flow["source"]["pod_name"]: flow.get("destination_names")
        for flow in (one["flow"] for one in done.records if "flow" in one)
        if flow.get("l4", {}).get("UDP", {}).get("destination_port") == port
        and runner.matches(flow, sent)
        and "source" in flow
    }
    assert names == {"client-0": ["db.test"], "agent-0": ["cache.test"], "web-0": None}


def test_garbage_is_counted(cluster, flows):
    """Answers that are none, cut anywhere, and what is no answer at all: flows go on."""
    port, client, web = new_port(), cluster.client, cluster.web
    good = answer(dns.message.make_query("a.test.", "A"), [("a.test.", 9, "A", web.ip4)])
    header = bytes.fromhex("0001 8180 0001 0001 0000 0000")
    garbage = [header + bytes([0xC0, 0x0C] * 9), header + b"\xff" * 40, good[:-3], good[:11]]
    quiet = [b"", b"hello", good[:7], bytes(40)]
    with (
        udp_listener(web.where, DNS_PORT) as server,
        udp_listener(client.where, port) as asker,
        flows() as live,
    ):
        for message in (*garbage, *quiet, good):
            server.sendto(message, (client.ip4, port))
            asker.recv(4096)
        send_udp(client.where, (web.ip4, port), SENT)
        done = live.stop()
    assert "Traceback" not in done.err
    assert lost(done.records) == {"dns_answers_malformed": len(garbage)}
    assert named(done.records, client, port) == {"a.test": SENT}
    assert done.code == 1


def test_longer_than_what_is_looked_at(cluster, flows):
    """Of 60 addresses those in the first 512 bytes are named, and it is told that some are not."""
    port, client, web = new_port(), cluster.client, cluster.web
    many = [f"192.0.2.{number}" for number in range(1, 60)]
    records = [("many.test.", 9, "A", address) for address in (web.ip4, *many)]
    zone = {("many.test.", "A"): records}
    wanted = '{"destination_fqdn":["many.*"]}'
    with (
        serving(web.where, {client.ip4: zone}, socket.AF_INET),
        flows("--allow", wanted) as live,
    ):
        assert len(resolve(client.where, web.ip4, "many.test.").to_wire()) > 512
        send_udp(client.where, (web.ip4, port), SENT)
        send_udp(client.where, (cluster.outside_ip4, port), SENT)
        done = live.stop()
    assert named(done.records, client, port) == {"many.test": SENT}
    assert lost(done.records) == {"dns_answers_cut": 1}


def test_answers_without_room_are_counted(cluster, flows):
    """While tracer stands still the ring fills up; what it had no room for is told."""
    client, web, sent = cluster.client, cluster.web, 2501
    garbage = bytes.fromhex("0001 8180 0001 0001 0000 0000") + b"\xff" * 9
    with udp_listener(web.where, DNS_PORT) as server, flows() as live:
        os.kill(live.process.pid, signal.SIGSTOP)
        try:
            for _ in range(sent):
                server.sendto(garbage, (client.ip4, 9))
        finally:
            os.kill(live.process.pid, signal.SIGCONT)
        done = live.stop()
    missing = lost(done.records)
    assert missing["dns_answers"] > 0
    assert missing["dns_answers"] + missing["dns_answers_malformed"] == sent


def test_nothing_is_looked_at_unless_asked(cluster, cri_env):
    port, client, web = new_port(), cluster.client, cluster.web
    zone = {("web.test.", "A"): [("web.test.", 5, "A", web.ip4)]}
    with (
        serving(web.where, {client.ip4: zone}, socket.AF_INET),
        runner.running("flows", env=cri_env) as live,
    ):
        resolve(client.where, web.ip4, "web.test.")
        send_udp(client.where, (web.ip4, port), SENT)
        done = live.stop()
    assert named(done.records, client, port) == {None: SENT}


def test_names_are_not_filtered_by_unless_asked_for():
    done = runner.finish("flows", "--allow", '{"source_fqdn":["a.test"]}')
    assert (done.code, done.out) == (2, "")
    assert "error: fqdn: nobody tells of DNS names" in done.err
