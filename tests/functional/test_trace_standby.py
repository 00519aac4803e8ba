"""`trace` on standby: one hook chooses; the others come with the first packet that is chosen."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timezone

import pytest
from lab import rules, runner, topology, ways
from lab.leftovers import netfilter_links
from lab.shell import until
from lab.traffic import flood, new_port, send_numbered, udp_listener

COUNT = 7
STANDBY_S = 60
"""Ten seconds of heavy traffic, on a machine that other work may keep from sending it."""
LINKS = 4
"""Of one namespace on standby: INPUT and POSTROUTING, of IPv4 and IPv6."""


@pytest.fixture(scope="module", autouse=True)
def _made(cluster, routed):
    """The cluster first: it sweeps away what a killed run left, and `routed` looks the same."""


def followers():
    """Netfilter programs that follow packets."""
    return [name for name in netfilter_links() if name != "nf_watch"]


@contextmanager
def standby(cri_env, *arguments):
    """`trace --standby` while only what chooses is attached."""
    with runner.running("trace", *arguments, "--standby", "-o", "json", env=cri_env) as live:
        assert not followers()
        yield live


def wake(live, send):
    """Send one packet that is chosen; all hooks are attached then."""
    send(1)
    until(followers, "the other hooks are attached")
    until(lambda: len(live.records()) == 1, "the first packet is told")


def packets_of(done):
    """What was told, the first apart, in the order of time."""
    assert done.code == 0, done.err
    return sorted((r for r in done.records if r["type"] == "packet"), key=lambda r: r["time"])


def whole_way():
    """Of a packet through `routed`, to the socket."""
    through = ways.forwarded("trt-router", ("to-left", "to-right"))
    return ways.sent("trt-left") + through + ways.received("trt-right")


@pytest.mark.usefixtures("nothing_left")
def test_hooks_come_with_the_first_packet(routed, cri_env):
    """Nothing is attached for packets that nobody chose; a packet that came before says so."""
    chosen, other = new_port(), new_port()

    def send(count, port=chosen):
        send_numbered(routed.left.where, (routed.right.ip4, port), count)

    with (
        standby(cri_env, f"udp port {chosen}") as live,
        udp_listener(routed.right.where, chosen) as listener,
        udp_listener(routed.right.where, other),
    ):
        send(COUNT, other)
        assert not followers()
        wake(live, send)
        send(COUNT)
        for _ in range(1 + COUNT):
            listener.recv(100)
        done = live.stop()
    first, *later = packets_of(done)
    assert "standby" in first["incomplete"]
    assert first["dst.port"] == chosen
    assert len(later) == COUNT
    for record in later:
        ways.check(record, whole_way(), "delivered")
        assert "incomplete" not in record


@pytest.mark.usefixtures("nothing_left")
def test_heavy_traffic_that_is_not_chosen_meets_few_hooks(routed, cri_env):
    """Unasked: standby once the node is busy with other packets, all hooks with the next chosen."""
    chosen, other = new_port(), new_port()
    with (
        runner.running("trace", f"udp port {chosen}", "-o", "json", env=cri_env) as live,
        udp_listener(routed.right.where, chosen) as listener,
        udp_listener(routed.right.where, other),
    ):

        def send(count):
            send_numbered(routed.left.where, (routed.right.ip4, chosen), count)

        assert followers()
        with flood(routed.left.where, (routed.right.ip4, other)):
            live.wait_for_line(lambda line: line.startswith("on standby: "), STANDBY_S)
            until(lambda: not followers(), "the hooks are gone")
            wake(live, send)
            send(COUNT)
            for _ in range(1 + COUNT):
                listener.recv(100)
        done = live.stop()
    first, *later = packets_of(done)
    assert "standby" in first["incomplete"]
    assert len(later) == COUNT
    for record in later:
        ways.check(record, whole_way(), "delivered")
        assert "incomplete" not in record


@pytest.mark.usefixtures("nothing_left")
def test_heavy_traffic_is_sampled_in_bursts(routed, cri_env):
    """Hooks come and go; what is told between is whole, or says why not."""
    port = new_port()
    sample = ("--sample", "1/100", "-o", "json")
    with (
        runner.running("trace", f"udp port {port}", *sample, env=cri_env) as live,
        udp_listener(routed.right.where, port),
    ):
        assert followers()
        with flood(routed.left.where, (routed.right.ip4, port)):
            live.wait_for_line(lambda line: line.startswith("sampling in bursts: "), STANDBY_S)
            until(lambda: not followers(), "the hooks are gone")
            began, since = datetime.now(timezone.utc).isoformat(), len(live.lines)

            def whole():
                packets = [one for one in live.records(since) if one["type"] == "packet"]
                return [p for p in packets if p["time"] > began and "incomplete" not in p]

            until(whole, "hooks came and packets were sampled", STANDBY_S)
            until(lambda: not followers(), "the hooks are gone again")
        sampled = whole()
        done = live.stop()
    end = done.records[-1]
    assert end["bursts"] >= 1
    assert end["sample.rate"] > 1
    for record in sampled:
        assert record["hops"][0]["hook"] == "nf ip OUTPUT"
        assert record["verdict"] in ("delivered", "dropped")


@pytest.mark.usefixtures("nothing_left")
def test_never(routed, cri_env):
    """Asked to keep every hook, it has no program for standby."""
    chosen = new_port()
    with (
        runner.whole(
            "trace", f"udp port {chosen}", "--standby=never", "-o", "json", env=cri_env
        ) as live,
        udp_listener(routed.right.where, chosen) as listener,
    ):
        assert "nf-watch" not in live.err
        send_numbered(routed.left.where, (routed.right.ip4, chosen), COUNT)
        for _ in range(COUNT):
            listener.recv(100)
        until(lambda: len(live.records()) == COUNT, "all are told")


@pytest.mark.parametrize("looks", ["before", "after"])
def test_chosen_on_either_side_of_nat(cri_env, looks):
    """One look at each packet, and yet a filter may match before NAT alone, or behind it alone."""
    port, goal = new_port(), new_port()
    udp = ("-t", "nat", "-p", "udp", "--dport")
    with (
        topology.routed("-sb") as own,
        rules.iptables(
            own.router, "iptables-nft", "PREROUTING", *udp, str(port),
            "-j", "DNAT", "--to-destination", f"{own.right.ip4}:{goal}",
        ),
        rules.iptables(
            own.router, "iptables-nft", "POSTROUTING", *udp, str(goal), "-j", "MASQUERADE"
        ),
        udp_listener(own.right.where, goal) as listener,
        standby(cri_env, f"udp dst port {port if looks == 'before' else goal}") as live,
    ):  # fmt: skip

        def send(count):
            send_numbered(own.left.where, (own.right.ip4, port), count)

        wake(live, send)
        send(COUNT)
        for _ in range(1 + COUNT):
            listener.recv(100)
        done = live.stop()
    _, *later = packets_of(done)
    assert len(later) == COUNT
    assert {record["verdict"] for record in later} == {"delivered"}


def test_selected_pods_alone_are_watched(cluster, cri_env):
    """Packets of other pods meet no program of ours."""
    client, web, agent, port = cluster.client, cluster.web, cluster.agent, new_port()
    with (
        udp_listener(web.where, port) as listener,
        standby(cri_env, "--pod", client.key, f"udp port {port}") as live,
    ):
        assert netfilter_links() == ["nf_watch"] * LINKS
        send_numbered(agent.where, (web.ip4, port), COUNT)
        assert not followers()
        wake(live, lambda count: send_numbered(client.where, (web.ip4, port), count))
        for _ in range(COUNT + 1):
            listener.recv(100)
        done = live.stop()
    (first,) = packets_of(done)
    assert (first["k8s.src.pod.name"], first["src.address"]) == (client.name, client.ip4)


def test_packets_that_netfilter_does_not_see(routed, cri_env):
    """A filter that no IP packet passes is asked at the devices' queues."""
    nobody = f"{routed.left.ip4}9"
    with standby(cri_env, f"arp host {nobody}") as live:
        assert not netfilter_links()
        send_numbered(routed.left.where, (nobody, new_port()), 1)
        until(followers, "the other hooks are attached")
        live.stop()
