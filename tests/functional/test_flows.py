"""`tracer flows` counts exactly: against what was sent, the devices' counters and nft's."""

from __future__ import annotations

import socket
import threading
import time
from datetime import datetime

import pytest
from lab import namespaces, runner
from lab.expect import destination, owner, source
from lab.rules import counted, nft
from lab.traffic import family_of, new_port, send_udp, tcp_listener, udp_listener

HEADERS = {4: 20 + 8, 6: 40 + 8}
SO_RCVBUFFORCE = 33
"""asm-generic/socket.h; root may go beyond rmem_max."""
TRANSFER_BYTES = 3_000_001


@pytest.fixture
def flows(cri_env):
    """Run flows around a block of traffic; its records once it has stopped."""

    def around(*options):
        return runner.running("flows", "--interval", "300ms", *options, env=cri_env)

    return around


def total(records, **wanted):
    """(packets, bytes) of the flow records that match."""
    wanted = {name.replace("_", "."): value for name, value in wanted.items()}
    found = [record for record in records if runner.matches(record, wanted)]
    return sum(r["packets"] for r in found), sum(r["bytes"] for r in found)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_both_ways(cluster, flows, version):
    """1,001 there and 377 back, counted at both pods' devices and by nft on the way."""
    there, back, size, port = 1001, 377, 100, new_port()
    client, web = cluster.client, cluster.web
    src, dst = (client.ip4, web.ip4) if version == 4 else (client.ip6, web.ip6)
    counter = f"udp dport {port} counter"
    with (
        nft(web.where, "inet", "input", counter),
        udp_listener(web.where, port, family_of(dst)) as server,
        udp_listener(client.where, port, family_of(dst)) as sender,
        flows() as live,
    ):
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        for _ in range(there):
            sender.sendto(bytes(size), (dst, port))
        for _ in range(back):
            server.sendto(bytes(size), (src, port))
        done = live.stop()
        assert counted(web.where, "inet") == there
    assert done.code == 0, done.err
    one_bytes = size + HEADERS[version]
    for pod, sent, received in ((client, there, back), (web, back, there)):
        mine = [r for r in done.records if runner.matches(r, {"netns": pod.where.inode})]
        out = total(mine, direction="egress", dst_port=port, verdict="forwarded")
        into = total(mine, direction="ingress", dst_port=port, verdict="forwarded")
        assert out == (sent, sent * one_bytes), pod.key
        assert into == (received, received * one_bytes), pod.key
    ends = {"src.address": src, "dst.port": port, **source(client), **destination(web)}
    named = [r for r in done.records if runner.matches(r, ends | owner(web, "ingress"))]
    assert named
    assert all(r["time"] <= r["end_time"] for r in named)


def transfer(cluster, port):
    """TRANSFER_BYTES over one TCP connection from client to web, closed in good order."""
    with tcp_listener(cluster.web.where, port) as listener:
        got = []

        def receive():
            connection, _ = listener.accept()
            with connection:
                while part := connection.recv(1 << 16):
                    got.append(len(part))

        thread = threading.Thread(target=receive)
        thread.start()
        with cluster.client.where.socket(socket.AF_INET, socket.SOCK_STREAM) as sender:
            sender.connect((cluster.web.ip4, port))
            sender.sendall(bytes(TRANSFER_BYTES))
            sender.shutdown(socket.SHUT_WR)
            assert sender.recv(1) == b""
        thread.join(10)
    assert sum(got) == TRANSFER_BYTES


def test_tcp_transfer_against_the_devices_counters(cluster, flows):
    """Packets as the device counts them (a GSO packet is one), bytes less the Ethernet header."""
    port, client = new_port(), cluster.client
    with flows("--pod", client.key) as live:
        names = [f"{way}_{what}" for way in ("tx", "rx") for what in ("packets", "bytes")]
        before = {name: client.where.device_statistic("eth0", name) for name in names}
        transfer(cluster, port)
        after = {name: client.where.device_statistic("eth0", name) for name in names}
        done = live.stop()
    grew = {name: after[name] - before[name] for name in names}
    mine = [r for r in done.records if runner.matches(r, {"netns": client.where.inode})]
    for direction, way in (("egress", "tx"), ("ingress", "rx")):
        packets, size = total(mine, direction=direction, verdict="forwarded")
        assert packets == grew[f"{way}_packets"], (direction, grew, mine)
        assert size == grew[f"{way}_bytes"] - 14 * packets
    egress = [r for r in mine if runner.matches(r, {"direction": "egress", "dst.port": port})]
    seen = {flag for record in egress for flag in record["tcp.flags"].split(",")}
    assert {"SYN", "ACK", "FIN"} <= seen
    assert total(egress)[1] > TRANSFER_BYTES


def test_drops_by_reason(cluster, flows):
    """Forwarded where it was forwarded, dropped where it died: 31 each, told apart."""
    port, client = new_port(), cluster.client
    with (
        nft(namespaces.node(), "inet", "forward", f"udp dport {port} counter drop"),
        flows() as live,
    ):
        send_udp(client.where, (cluster.outside_ip4, port), 31)
        done = live.stop()
        assert counted(namespaces.node(), "inet") == 31
    about = {"dst_port": port, "src_address": client.ip4}
    assert total(done.records, verdict="forwarded", direction="egress", **about)[0] == 31
    assert total(done.records, verdict="dropped", **about)[0] == 31
    lost = [r for r in done.records if r.get("verdict") == "dropped" and r["dst.port"] == port]
    for record in lost:
        assert record["drop.reason"] == "NETFILTER_DROP"
        assert record["drop.location"].startswith("nft_do_chain+")
        assert runner.matches(record, owner(client, "egress"))


def test_drop_in_the_receiving_pod(cluster, flows):
    """Charged to the receiver as its ingress; both ends named right."""
    port, client, web = new_port(), cluster.client, cluster.web
    with flows() as live:
        send_udp(client.where, (web.ip4, port), 31)
        done = live.stop()
    wanted = {"verdict": "dropped", "dst.port": port, "drop.reason": "NO_SOCKET"}
    lost = [r for r in done.records if runner.matches(r, wanted)]
    assert sum(record["packets"] for record in lost) == 31
    right = owner(web, "ingress") | source(client) | destination(web)
    assert all(runner.matches(record, right) for record in lost), lost


def test_first_and_last_time(cluster, flows):
    """Seven datagrams over 0.6 s, in one interval."""
    port, client = new_port(), cluster.client
    with flows("--interval", "1m") as live, udp_listener(cluster.web.where, port):
        began_s = time.time()
        with client.where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(7):
                sender.sendto(b"x", (cluster.web.ip4, port))
                time.sleep(0.1)
        done = live.stop()
    about = {"dst.port": port} | owner(client, "egress")
    record = next(r for r in done.records if runner.matches(r, about))
    first_s, last_s = (unix_s(record[name]) for name in ("time", "end_time"))
    assert abs(first_s - began_s) < 0.1
    assert 0.55 < last_s - first_s < 1


def unix_s(text):
    """Seconds of a record's time; nanoseconds are more digits than fromisoformat takes."""
    return datetime.fromisoformat(f"{text[:26]}+00:00").timestamp()


def test_selection_leaves_others_out(cluster, flows):
    port = new_port()
    with flows("--namespace", "ops") as live:
        send_udp(cluster.client.where, (cluster.web.ip4, port), 7)
        send_udp(cluster.agent.where, (cluster.web.ip4, port), 5)
        done = live.stop()
    found = [r for r in done.records if r.get("dst.port") == port and r["verdict"] == "forwarded"]
    assert {record["k8s.pod.name"] for record in found} == {"agent-0"}
    assert sum(record["packets"] for record in found) == 5


def test_written_to_a_file_every_interval(cluster, flows, tmp_path):
    """While it runs, the file grows by whole lines; the last interval is there at the end."""
    port, target = new_port(), tmp_path / "flows.jsonl"
    with flows("--write", str(target)) as live:
        send_udp(cluster.client.where, (cluster.web.ip4, port), 7)
        runner.until(lambda: f'"dst.port":{port}' in target.read_text(), "a first interval")
        send_udp(cluster.client.where, (cluster.web.ip4, port), 5)
        done = live.stop()
    assert done.out == ""
    records = runner.Done(0, target.read_text(), "").records
    mine = [r for r in records if runner.matches(r, owner(cluster.client, "egress"))]
    assert total(mine, dst_port=port, verdict="forwarded")[0] == 12


def test_hubble(cluster, flows):
    port = new_port()
    with flows("--format", "hubble") as live:
        send_udp(cluster.client.where, (cluster.web.ip4, port), 7)
        done = live.stop()
    ours = [
        record["flow"]
        for record in done.records
        if record.get("flow", {}).get("l4", {}).get("UDP", {}).get("destination_port") == port
    ]
    assert {flow["verdict"] for flow in ours} == {"FORWARDED", "DROPPED"}
    assert {flow["source"]["pod_name"] for flow in ours} == {"client-0"}
    assert {flow["destination"]["pod_name"] for flow in ours} == {"web-0"}


def test_a_pod_that_comes_and_goes(cluster, flows):
    """Every packet of a pod that started after tracer counts; once known, its name stays."""
    early, late, web = new_port(), new_port(), cluster.web
    with flows() as live:
        brief = cluster.run_pod("shop/brief-0", app="brief")
        try:
            with udp_listener(web.where, early), udp_listener(web.where, late):
                send_udp(brief.where, (web.ip4, early), 7)
                time.sleep(1)
                send_udp(brief.where, (web.ip4, late), 5)
        finally:
            cluster.remove_pod("shop/brief-0")
        done = live.stop()
    at_web = [r for r in done.records if runner.matches(r, {"netns": web.where.inode})]
    for port, count in ((early, 7), (late, 5)):
        assert total(at_web, dst_port=port, verdict="forwarded", src_address=brief.ip4)[0] == count
    named = [r for r in done.records if r.get("dst.port") == late]
    assert {r.get("k8s.src.pod.name") for r in named} == {"brief-0"}
