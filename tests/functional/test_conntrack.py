"""`tracer conntrack`: the life of entries, with all the kernel tells, against what was sent."""

from __future__ import annotations

import socket

import pytest
from lab import namespaces, runner
from lab.expect import destination, source
from lab.namespaces import End
from lab.rules import iptables
from lab.shell import until
from lab.tracking import events, following, ruleset, send_flows, tracking, until_events
from lab.traffic import new_port, open_tcp, tcp_listener, udp_listener

pytestmark = pytest.mark.usefixtures("cluster")
"""First of all: it sweeps away the namespaces of a former run, `routed` among them."""

COUNT = 7
TIMEOUTS = {"netfilter/nf_conntrack_udp_timeout": 1, "netfilter/nf_conntrack_acct": 1,
            "netfilter/nf_conntrack_timestamp": 1}  # fmt: skip
VIP = "10.96.78.7"


@pytest.fixture
def router(routed):
    """The router, which tracks; without entries."""
    before = {key: routed.router.sysctl(key, value) for key, value in TIMEOUTS.items()}
    with tracking(routed.router):
        yield routed.router
    for key, value in before.items():
        routed.router.sysctl(key, value)


def collect(where, live, count, **wanted):
    """Deaths by timeout: the kernel looks for them at its leisure, or when the table is read."""

    def looked():
        where.run("conntrack", "-L")
        return len(events(live, event="destroy", **wanted)) >= count

    until(looked, f"{count} entries end")
    found = events(live, event="destroy", **wanted)
    assert len(found) == count
    return found


def test_birth_and_death_of_udp_flows(routed, router):
    """Seven flows: each born once, ended once by timeout, with all the kernel knows of them."""
    port, left, right = new_port(), routed.left, routed.right
    with udp_listener(right.where, port), following(router) as live:
        # An entry that ends before its time proves that this kernel tells what was left.
        open_tcp(left.where, (right.ip4, port), 2)
        until_events(live, 1, event="destroy", transport="tcp")
        ports = send_flows(left.where, (right.ip4, port), COUNT)
        wanted = {"dst_port": port, "transport": "udp"}
        born = until_events(live, COUNT, event="new", **wanted)
        ended = collect(router, live, COUNT, **wanted)
        done = live.stop()
    assert done.code == 0, done.err
    for records in (born, ended):
        assert sorted(record["src.port"] for record in records) == sorted(ports)
    common = {
        "netns": router.inode,
        "netns.name": router.name,
        "transport": "udp",
        "network.type": "ipv4",
        "src.address": left.ip4,
        "dst.address": right.ip4,
        "conntrack.orig.dst.port": port,
        "conntrack.reply.src.address": right.ip4,
        "conntrack.reply.src.port": port,
        "conntrack.zone": 0,
        "conntrack.mark": 0,
    }
    assert all(runner.matches(record, common) for record in born + ended)
    assert all(record["conntrack.timeout_s"] == 1 for record in born)
    last = {"conntrack.destroy.reason": "timeout", "inferred": False}
    last |= {"conntrack.orig.packets": 1, "conntrack.orig.bytes": 32 + 28}
    # The kernel's timeouts are counted in jiffies, its times in nanoseconds.
    last |= {"conntrack.start_time": lambda time: time >= born[0]["time"][:19]}
    last |= {"conntrack.reply.packets": 0, "duration_ns": lambda ns: ns > 0.9e9}
    last |= {"conntrack.status": ["confirmed", "dying"]}
    for record in ended:
        differs = {n: record.get(n) for n in last if not runner.matches(record, {n: last[n]})}
        assert not differs
    end = done.records[-1]
    assert (end["births"], end["deaths"]) == (COUNT + 1, COUNT + 1)
    assert (end["alive"], end["lost"]) == (0, {})


def test_life_of_a_tcp_connection(routed, router):
    """From SYN_SENT to TIME_WAIT, then thrown out by a program that asked by netlink."""
    port, left, right = new_port(), routed.left, routed.right
    with tcp_listener(right.where, port) as listener, following(router) as live:
        with left.where.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect((right.ip4, port))
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"x")
                accepted.recv(1)
                client.shutdown(socket.SHUT_WR)
                accepted.recv(1)
        wanted = {"dst_port": port, "transport": "tcp"}
        until(lambda: any(e.get("conntrack.tcp.state") == "TIME_WAIT" for e in events(live)), "end")
        router.run("conntrack", "-D", "-p", "tcp", "--dport", str(port))
        (ended,) = until_events(live, 1, event="destroy", **wanted)
        seen = [record["conntrack.tcp.state"] for record in events(live, **wanted)]
    assert seen[:3] == ["SYN_SENT", "SYN_RECV", "ESTABLISHED"]
    assert seen[-2:] == ["TIME_WAIT", "TIME_WAIT"]
    assert {"seen-reply", "assured"} <= set(ended["conntrack.status"])
    assert ended["conntrack.destroy.reason"] == "deleted"
    assert ended["inferred"] is False
    assert ended["conntrack.netlink.portid"] > 0


def test_reset_ends_an_entry(routed, router):
    port = new_port()
    with following(router) as live:
        assert open_tcp(routed.left.where, (routed.right.ip4, port), 2) is not None
        (ended,) = until_events(live, 1, event="destroy", dst_port=port)
    assert ended["conntrack.destroy.reason"] == "reset"
    assert ended["inferred"] is True


def test_zone_mark_and_labels(routed, router):
    port, right = new_port(), routed.right
    raw = f"""table ip zones {{
        chain early {{ type filter hook prerouting priority -300; udp dport {port} ct zone set 7; }}
        chain late {{ type filter hook prerouting priority -100; udp dport {port} ct mark set 42; }}
    }}"""
    xt = ("FORWARD", "-t", "mangle", "-p", "udp", "--dport", str(port))
    label = ("-m", "connlabel", "--label", "5", "--set")
    with (
        ruleset(router, raw),
        iptables(router, "iptables-legacy", *xt, *label),
        udp_listener(right.where, port),
        following(router) as live,
    ):
        send_flows(routed.left.where, (right.ip4, port), COUNT)
        born = until_events(live, COUNT, event="new", dst_port=port)
    wanted = {"conntrack.zone": 7, "conntrack.mark": 42, "conntrack.labels": [5]}
    assert all(runner.matches(record, wanted) for record in born), born[0]


def test_icmp(routed, router):
    with following(router) as live:
        routed.left.where.run("ping", "-c", "1", "-W", "2", routed.right.ip4)
        (born,) = until_events(live, 1, event="new", transport="icmp")
        (changed,) = until_events(live, 1, event="update", transport="icmp")
    assert born["conntrack.orig.icmp.type"] == 8
    assert born["conntrack.reply.icmp.type"] == 0
    assert born["conntrack.orig.icmp.id"] == changed["conntrack.reply.icmp.id"]
    assert "seen-reply" in changed["conntrack.status"]


def test_ftp_expects_a_connection(routed, router):
    """The helper reads `227 Entering Passive Mode`, and expects what will come."""
    if (
        "ftp"
        not in router.run(
            "sh", "-c", "zcat /proc/config.gz | grep -i NF_CONNTRACK_FTP=y || :"
        ).lower()
    ):
        pytest.skip("this kernel has no ftp helper built in")
    port, left, right = new_port(), routed.left, routed.right
    helper = f"""table ip helpers {{
        ct helper ftp {{ type "ftp" protocol tcp; }}
        chain c {{ type filter hook prerouting priority 0; tcp dport {port} ct helper set "ftp"; }}
    }}"""
    expected = 40001
    numbers = ",".join([*right.ip4.split("."), str(expected >> 8), str(expected & 255)])
    with (
        ruleset(router, helper),
        tcp_listener(right.where, port) as listener,
        following(router) as live,
    ):
        with left.where.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect((right.ip4, port))
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"220 here\r\n")  # the helper begins to read after a line
                client.recv(100)
                client.sendall(b"PASV\r\n")
                accepted.recv(100)
                accepted.sendall(f"227 Entering Passive Mode ({numbers})\r\n".encode())
                client.recv(100)
        (expects,) = until_events(live, 1, event="expect")
        tracked = events(live, dst_port=port)
    assert expects["dst.address"] == right.ip4
    assert expects["dst.port"] == expected
    assert expects["conntrack.master.dst.port"] == port
    assert any(record.get("conntrack.helper") == "ftp" for record in tracked)


def test_dnat_names_pods_on_both_sides(cluster, cri_env):
    """pod → Service address → pod: the node's entry has all three, and the NAT that was done."""
    node, client, web, port = namespaces.node(), cluster.client, cluster.web, new_port()
    dnat = ("PREROUTING", "-t", "nat", "-d", VIP, "-p", "udp", "-j", "DNAT")
    arguments = ("conntrack", "--pod", client.key, "-o", "json", "--event", "new")
    with (
        iptables(node, "iptables-nft", *dnat, "--to-destination", f"{web.ip4}:{port}"),
        udp_listener(web.where, port),
        runner.running(*arguments, env=cri_env) as live,
    ):
        ports = send_flows(client.where, (VIP, 53), COUNT)
        born = until_events(live, COUNT, **{"dst.address": VIP})
    wanted = source(client) | destination(web) | {
        "netns": node.inode,
        "src.address": client.ip4,
        "dst.port": 53,
        "service.address": VIP,
        "service.port": 53,
        "nat": "dnat",
        "nat.dst.address": web.ip4,
        "nat.dst.port": port,
    }  # fmt: skip
    assert all(runner.matches(record, wanted) for record in born), born[0]
    assert sorted(record["src.port"] for record in born) == sorted(ports)


def test_masquerade_and_hairpin(cluster, cri_env):
    """A pod that reaches itself by its Service: DNAT and masquerade in one entry."""
    node, client, port = namespaces.node(), cluster.client, new_port()
    dnat = ("PREROUTING", "-t", "nat", "-d", VIP, "-p", "udp", "-j", "DNAT")
    snat = ("POSTROUTING", "-t", "nat", "-s", client.ip4, "-d", client.ip4, "-j", "MASQUERADE")
    with (
        iptables(node, "iptables-nft", *dnat, "--to-destination", f"{client.ip4}:{port}"),
        iptables(node, "iptables-nft", *snat),
        udp_listener(client.where, port),
        runner.running("conntrack", "-n", "shop", "-o", "json", env=cri_env) as live,
    ):
        send_flows(client.where, (VIP, 53), COUNT)
        born = until_events(live, COUNT, event="new", **{"dst.address": VIP})
    wanted = source(client) | destination(client)
    wanted |= {"nat": "dnat+snat", "nat.hairpin": True, "nat.masquerade": "inferred"}
    wanted |= {"nat.src.address": "10.244.77.1", "nat.dst.port": port}
    assert all(runner.matches(record, wanted) for record in born), born[0]


def test_events_inside_a_pod_and_of_nobody_else(cluster, cri_env):
    """A pod's own namespace tracks; what others do there or elsewhere is not shown."""
    web, agent, port = cluster.web, cluster.agent, new_port()
    arguments = ("conntrack", "--pod", web.key, "-o", "json")
    with (
        tracking(web.where, "input"),
        tracking(agent.where, "input"),
        udp_listener(web.where, port),
        udp_listener(agent.where, port),
        runner.running(*arguments, env=cri_env) as live,
    ):
        send_flows(cluster.client.where, (agent.ip4, port), COUNT)
        send_flows(cluster.client.where, (web.ip4, port), COUNT)
        born = until_events(live, COUNT, event="new", netns=web.where.inode)
        assert not events(live, **{"dst.address": agent.ip4})
    wanted = {"k8s.pod.namespace": "shop", "k8s.pod.name": "web-0"}
    wanted |= source(cluster.client) | destination(web)
    assert all(runner.matches(record, wanted) for record in born), born[0]


def test_who_fills_the_table_by_pod(cluster, cri_env):
    """The node's entries by the pod that opened them, and the Service address they went to."""
    node, client, web, port = namespaces.node(), cluster.client, cluster.web, new_port()
    dnat = ("PREROUTING", "-t", "nat", "-d", VIP, "-p", "udp", "-j", "DNAT")
    with (
        iptables(node, "iptables-nft", *dnat, "--to-destination", f"{web.ip4}:{port}"),
        udp_listener(web.where, port),
    ):
        send_flows(client.where, (VIP, port), COUNT)
        asked = ("conntrack", "--netns", str(node.inode), "--top", "1000", "-o", "json")
        top = runner.finish(*asked, env=cri_env).records
    (pod,) = [r for r in top if runner.matches(r, {"top": "opener", **source(client)})]
    assert pod["entries"] >= COUNT
    goals = [r for r in top if r.get("dst.address") == VIP and r["dst.port"] == port]
    assert [r["entries"] for r in goals] == [COUNT]


def test_filter_events_and_count(routed, router):
    port, other, right = new_port(), new_port(), routed.right
    options = ("--event", "new", "--count", "3", "udp", "port", str(port), "and", "not", "tcp")
    with (
        udp_listener(right.where, port),
        udp_listener(right.where, other),
        following(router, *options) as live,
    ):
        send_flows(routed.left.where, (right.ip4, other), COUNT)
        send_flows(routed.left.where, (right.ip4, port), COUNT)
        done = live.ended(timeout_s=10)
    assert done.code == 0, done.err
    *shown, end = done.records
    assert [record["dst.port"] for record in shown] == [port] * 3
    assert {record["event"] for record in shown} == {"new"}
    assert end["shown"] == 3


def test_a_namespace_that_comes_and_goes(cri_env):
    """Its events are shown, and its end is not held up by our sockets."""
    here = namespaces.node()
    with runner.running("conntrack", "-o", "json", env=cri_env) as live:
        made = namespaces.create("passing")
        try:
            namespaces.join(
                End(here, f"{namespaces.PREFIX}pass", ("10.245.79.1/24",)),
                End(made, "eth0", ("10.245.79.2/24",)),
            )
            port = new_port()

            def heard():
                send_flows(made, ("10.245.79.1", port), 1)
                return events(live, event="new", netns=made.inode, dst_port=port)

            with tracking(made, "output"):
                until(heard, "an event of the new namespace")
        finally:
            namespaces.delete("passing")
        until(lambda: f"{namespaces.PREFIX}pass" not in here.ip("-o link"), "it has ended")
        done = live.stop()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


def test_list_top_and_stats_agree_with_the_kernel(routed, router):
    port, left, right = new_port(), routed.left, routed.right
    router.sysctl("netfilter/nf_conntrack_udp_timeout", 60)
    with udp_listener(right.where, port), udp_listener(left.where, port):
        send_flows(left.where, (right.ip4, port), COUNT)
        send_flows(right.where, (left.ip4, port), 2)
        asked = ("conntrack", "--netns", router.name, "-o", "json")
        listed = runner.finish(*asked, "--list", "udp").records
        top = runner.finish(*asked, "--top").records
        stats = runner.finish(*asked, "--stats").records
    assert len(listed) == COUNT + 2
    assert {record["event"] for record in listed} == {"listed"}
    assert [r["entries"] for r in top if r["type"] == "table"] == [COUNT + 2]
    openers = [(r["src.address"], r["entries"]) for r in top if r.get("top") == "opener"]
    assert openers == [(left.ip4, COUNT), (right.ip4, 2)]
    goals = {(r["dst.address"], r["dst.port"], r["entries"]) for r in top if "dst.port" in r}
    assert goals == {(right.ip4, port, COUNT), (left.ip4, port, 2)}
    kernel = router.run("conntrack", "-S").splitlines()
    words = [dict(word.split("=") for word in line.split()) for line in kernel]
    told = [
        {"cpu": str(r["cpu"])} | {n[6:]: str(v) for n, v in r.items() if n.startswith("stats.")}
        for r in stats
        if r["type"] == "cpu"
    ]
    assert told == words
    assert stats[0]["conntrack.udp_timeout"] == 60
    assert stats[0]["conntrack.max"] == int(router.sysctl("netfilter/nf_conntrack_max"))


def test_not_a_namespace_and_not_a_filter():
    for arguments, word in (
        (("--netns", "no-such"), "no such network namespace"),
        (("--netns", "1"), "no such network namespace"),
        (("port", "x"), "not understood"),
        (("--pod", "no/such"), "no such pod"),
    ):
        done = runner.finish("conntrack", *arguments)
        assert done.code == 2
        assert word in done.err
        assert done.out == ""


def test_text(routed, router):
    port, right = new_port(), routed.right
    arguments = ("conntrack", "--netns", router.name, "--event", "new")
    with udp_listener(right.where, port), runner.running(*arguments) as live:
        (source_port,) = send_flows(routed.left.where, (right.ip4, port), 1)
        runner.until_lines(live, 1)
        done = live.stop()
    line, end = done.out.splitlines()
    flow = f"{routed.left.ip4}:{source_port} → {right.ip4}:{port}"
    assert "new" in line
    assert flow in line
    assert "[UNREPLIED]" in line
    assert end.startswith("1 births, 0 deaths, 1 events shown")
