"""What is written: limits, the forms of output, the summary and the exact totals of a flood."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from datetime import datetime, timezone

import pytest
from lab import captures, runner
from lab.expect import udp
from lab.rules import nft
from lab.shell import until
from lab.traffic import new_port, send_udp

from tracer.sinks.rotation import backups

COUNT = 7
FLOOD = 200_001


def lose(cluster, count=COUNT):
    """Datagrams from client to a closed port of web; the port."""
    port = new_port()
    send_udp(cluster.client.where, (cluster.web.ip4, port), count)
    return port


def only(port):
    """A pcap expression for one test's datagrams."""
    return f"udp dst port {port}"


def test_count(cluster, cri_env):
    port = new_port()
    options = ("drops", "-o", "json", "--count", "5", only(port))
    with runner.running(*options, env=cri_env) as live:
        send_udp(cluster.client.where, (cluster.web.ip4, port), COUNT)
        done = live.ended()
    assert done.code == 0, done.err
    assert len([record for record in done.records if record["type"] == "drop"]) == 5


def test_duration(cluster, cri_env):
    with runner.running("drops", "-o", "json", "--duration", "700ms", env=cri_env) as live:
        port = lose(cluster)
        began = time.monotonic()
        done = live.ended()
    assert 0.3 < time.monotonic() - began < 2
    assert done.code == 0, done.err
    about = udp(cluster.client.ip4, cluster.web.ip4, port)
    assert len([x for x in done.records if runner.matches(x, about)]) == COUNT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_summary_adds_up(cluster, cri_env, number):
    """By pod, reason and location, then the end with totals and what was lost."""
    port = new_port()
    with runner.running("drops", "-o", "json", only(port), env=cri_env) as live:
        watch = runner.watch(live)
        send_udp(cluster.client.where, (cluster.web.ip4, port), COUNT)
        watch.expect(COUNT, {"type": "drop"})
        done = live.stop(number)
    assert done.code == 0, done.err
    *_, summary, end = done.records
    assert [record["type"] for record in done.records] == ["drop"] * COUNT + ["summary", "end"]
    assert (summary["packets"], summary["shown"], end["packets"]) == (COUNT, COUNT, COUNT)
    assert summary["drop.reason"] == "NO_SOCKET"
    assert summary["drop.location"].startswith("__udp4_lib_rcv+")
    assert (summary["k8s.pod.namespace"], summary["k8s.pod.name"]) == ("shop", "web-0")
    assert not any(end["lost"].values())


def test_captures_rotate_by_age(cluster, cri_env, tmp_path):
    """What came before is in a capture of its own; all packets are in one of them."""
    port, path = new_port(), tmp_path / "lost.pcapng"
    options = ("--write", str(path), "--file-max-age", "300ms", "-o", "json")
    with runner.running("drops", only(port), *options, env=cri_env) as live:
        watch = runner.watch(live)
        send_udp(cluster.client.where, (cluster.web.ip4, port), COUNT)
        until(lambda: backups(path), "a backup")
        send_udp(cluster.client.where, (cluster.web.ip4, port), 5)
        watch.expect(COUNT + 5, {"type": "drop"})
        done = live.stop()
    assert done.code == 0, done.err
    found = [row for one in [*backups(path), path] for row in captures.rows(one, "udp.dstport")]
    assert found == [[str(port)]] * (COUNT + 5)


def test_time_is_the_time_of_the_drop(cluster, drops):
    watch = runner.watch(drops)
    before = datetime.now(timezone.utc)
    port = lose(cluster)
    after = datetime.now(timezone.utc)
    for record in watch.expect(COUNT, udp(cluster.client.ip4, cluster.web.ip4, port)):
        # Nanoseconds are more digits than fromisoformat takes.
        told = datetime.fromisoformat(record["time"][:26].rstrip("Z") + "+00:00")
        slack = (after - before) + (before - before)
        assert before - slack <= told <= after + slack


def test_text_fits_a_terminal(cluster, cri_env):
    port = new_port()
    with runner.running("drops", only(port), env={**cri_env, "COLUMNS": "120"}) as live:
        send_udp(cluster.client.where, (cluster.web.ip4, port), COUNT)
        send_udp(cluster.client.where, (cluster.web.ip6, port), COUNT)
        runner.until_lines(live, 2 * COUNT)
        done = live.stop()
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 120
    events = [line for line in done.out.splitlines() if f":{port}" in line]
    assert len(events) >= 2 * COUNT
    assert all("NO_SOCKET" in line and "web-0" in line for line in events[: 2 * COUNT])
    # The summary comes last: its row names pod, reason, place and number.
    tail = done.out.splitlines()[-12:]
    assert any("NO_SOCKET" in line and "shop/web-0" in line and str(COUNT) in line for line in tail)


def test_hubble(cluster, cri_env):
    port = new_port()
    with runner.running("drops", "-o", "hubble", only(port), env=cri_env) as live:
        send_udp(cluster.client.where, (cluster.web.ip4, port), COUNT)
        runner.until_lines(live, COUNT)
        done = live.stop()
    flows = [record["flow"] for record in done.records if "flow" in record]
    assert len(flows) == COUNT
    for flow in flows:
        assert flow["verdict"] == "DROPPED"
        assert flow["IP"] == {
            "source": cluster.client.ip4, "destination": cluster.web.ip4, "ipVersion": "IPv4"
        } | {k: v for k, v in flow["IP"].items() if k == "source_xlated"}  # fmt: skip
        assert flow["l4"]["UDP"]["destination_port"] == port
        assert flow["source"]["pod_name"] == "client-0"
        assert flow["destination"]["namespace"] == "shop"
        assert flow["destination"]["pod_name"] == "web-0"
        assert flow["event_type"]["type"] == 1
        assert flow["traffic_direction"] == "INGRESS"
    assert all(len(line) < 64 * 1024 for line in done.out.splitlines())
    assert all(record["time"].endswith("Z") for record in done.records if "flow" in record)


def test_stack(cluster, cri_env):
    port = new_port()
    with runner.running("drops", "-o", "json", "--stack", only(port), env=cri_env) as live:
        watch = runner.watch(live)
        send_udp(cluster.client.where, (cluster.web.ip4, port), COUNT)
        found = watch.expect(COUNT, {"type": "drop"})
    for record in found:
        functions = [frame.split("+")[0] for frame in record["drop.stack"]]
        assert any(name.startswith("__udp4_lib_rcv") or name == "udp_rcv" for name in functions)
        assert "ip_local_deliver_finish" in " ".join(functions)


def test_flood_hides_nothing(cluster, cri_env):
    """The counts are exact, few of the many are shown, and every one of the rare is."""
    many, rare = new_port(), new_port()
    client, web = cluster.client, cluster.web
    expression = f"udp dst port {many} or udp dst port {rare}"
    with (
        nft(client.where, "inet", "output", f"udp dport {rare} drop"),
        runner.running("drops", "-o", "json", expression, env=cri_env) as live,
    ):
        watch = runner.watch(live)
        for part in (FLOOD // 3, FLOOD // 3, FLOOD - 2 * (FLOOD // 3)):
            send_udp(client.where, (web.ip4, many), part)
            send_udp(client.where, (web.ip4, rare), 1)
        watch.expect(3, {"dst.port": rare, "type": "drop"})
        done = live.stop()
    assert done.code == 0, done.err
    totals = {r["drop.reason"]: r for r in done.records if r["type"] == "summary"}
    assert totals["NO_SOCKET"]["packets"] == FLOOD
    assert totals["NETFILTER_DROP"]["packets"] == totals["NETFILTER_DROP"]["shown"] == 3
    shown = [r for r in done.records if r["type"] == "drop" and r["dst.port"] == many]
    assert 0 < len(shown) < FLOOD
    end = done.records[-1]
    lost = sum(end["lost"].values())
    assert len(shown) == totals["NO_SOCKET"]["shown"]
    assert end["packets"] == FLOOD + 3
    assert lost == 0, end


def test_the_reader_leaves(cluster, cri_env):
    """`tracer drops -o json | head -1` is no error, and the line is whole."""
    options = ("drops", "-o", "json", "--concurrent", "udp")
    process = runner.start(*options, env=cri_env)
    head = subprocess.Popen(["head", "-1"], stdin=process.stdout, stdout=subprocess.PIPE, text=True)
    process.stdout.close()
    end = time.monotonic() + 20
    while process.poll() is None:
        assert time.monotonic() < end, "tracer goes on without a reader"
        lose(cluster)
        time.sleep(0.1)
    assert json.loads(head.communicate(timeout=5)[0])["type"] == "drop"
    assert process.returncode == 0
    assert "Traceback" not in process.stderr.read()
