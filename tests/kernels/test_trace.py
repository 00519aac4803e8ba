"""`tracer trace` in this kernel: Services, hairpin, drops, each way of attaching the same.

The hops inside netfilter too, by links or around its function: where something is registered in a
hook both tell the same.
"""

from __future__ import annotations

import socket

import datapaths
import pytest
import tracing
from lab import rules, runner, tc
from lab import ways as hops
from lab.traffic import ask, new_port, send_numbered, udp_listener
from ways import WAIT_S, open_kinds_of

from tracer.kernel.hooks import KRETPROBE

COUNT = 5
TRIES = 20
"""Tracer reads the filters of tc every few seconds at most."""
NETS = "net 10.244.9.0/24 or net fd00:10:244:9::/64 or net 10.246.0.0/16"
TBF = "tbf rate 8mbit burst 2kb latency 200ms"
"""A token bucket keeps every packet, if only until the next line of code."""
KEPT = ("qdisc_enqueue", "qdisc_dequeue")
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def node(bridge_netfilter):  # noqa: ARG001
    with datapaths.bridged() as made:
        yield made


@pytest.fixture(scope="module")
def hooked(node, routed):
    ends = (node.client, node.server, routed.left, routed.right)
    with datapaths.hooked(node.node, routed.router, *(end.where for end in ends)):
        yield


@pytest.fixture(scope="module", params=open_kinds_of("trace"))
def trace(request, hooked):  # noqa: ARG001 - all is there before it looks
    with tracing.running(f"udp and ({NETS})", request.param) as live:
        yield live


@pytest.fixture
def packets(trace, record_property):
    """What `trace` writes during this test."""
    record_property("way", trace.kind)
    return runner.watch(trace.live)


@pytest.fixture
def empty_hooks(routed):
    """Nothing is registered where `routed.right` is."""
    datapaths.unhook(routed.right.where)
    yield
    datapaths.hook_all(routed.right.where)


@pytest.mark.usefixtures("empty_hooks")
def test_an_empty_hook_is_told_by_links_only(trace, packets, routed):
    left, right, port = routed.left, routed.right, new_port()
    with udp_listener(right.where, port) as listener:
        send_numbered(left.where, (right.ip4, port), COUNT)
        for _ in range(COUNT):
            listener.recv(100)
        found = packets.expect(COUNT, {"dst.port": port}, WAIT_S)
    way = hops.received(right.where.name)
    way = way if trace.links else [line for line in way if " nf " not in line]
    through = hops.forwarded(routed.router.name, ("to-left", "to-right"))
    way = [*hops.sent(left.where.name), *through, *way]
    # Without INPUT only the end of what a UDP socket has read is known, and not in all kernels.
    verdicts = ("delivered",) if trace.links else ("consumed", "unknown")
    for record in found:
        assert record["verdict"] in verdicts, record
        hops.check(record, way, record["verdict"])


def test_standby(hooked, routed):  # noqa: ARG001 - all is there before it looks
    """Hooks that come with the first packet tell the others whole."""
    left, right, port = routed.left, routed.right, new_port()
    with (
        tracing.started(f"udp port {port}", "--standby") as live,
        udp_listener(right.where, port) as listener,
    ):
        packets = runner.watch(live)
        send_numbered(left.where, (right.ip4, port), 1)
        (first,) = packets.expect(1, {"dst.port": port}, WAIT_S)
        send_numbered(left.where, (right.ip4, port), COUNT)
        for _ in range(1 + COUNT):
            listener.recv(100)
        later = packets.expect(COUNT, {"dst.port": port, "time": after(first)}, WAIT_S)
        live.stop()
    assert "standby" in first["incomplete"]
    through = hops.forwarded(routed.router.name, ("to-left", "to-right"))
    way = [*hops.sent(left.where.name), *through, *hops.received(right.where.name)]
    for record in later:
        hops.check(record, way, "delivered")


def after(first):
    """Told of a later packet."""
    return lambda time: time > first["time"]


def asked(packets, node, server, version):
    """Questions to a Service whose only endpoint is `server`, and its answers."""
    client, port, target = node.client, new_port(), new_port()
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with (
        datapaths.service(node, server, port, target),
        udp_listener(server.where, target, family) as listener,
    ):
        came_from, _ = ask(client.where, (datapaths.VIP[version], port), [listener], COUNT)
        there = packets.expect(COUNT, {"src.port": came_from, "dst.port": port}, WAIT_S)
        back = packets.expect(COUNT, {"src.port": target, "dst.port": came_from}, WAIT_S)
    assert len({record["flow"] for record in there + back}) == 1
    for records, word in ((there, "DNAT "), (back, "un-DNAT ")):
        for record in records:
            told = [text for hop in record["hops"] for text in hop.get("changes", ())]
            assert any(text.startswith(word) for text in told), told
    return there, back


@VERSIONS
def test_pod_to_service_to_pod(trace, packets, node, version):
    client, server = node.client, node.server
    there, back = asked(packets, node, server, version)
    trace.check(there, node.between(client, server, version))
    trace.check(back, node.between(server, client, version))
    own, theirs, service = client.ip(version), server.ip(version), datapaths.VIP[version]
    assert {tracing.ends(record) for record in there} == {(own, service, None, theirs)}
    assert {tracing.ends(record) for record in back} == {(theirs, own, service, None)}


@VERSIONS
def test_hairpin(trace, packets, node, version):
    """A pod reaches itself through its Service."""
    client = node.client
    there, back = asked(packets, node, client, version)
    trace.check(there + back, node.between(client, client, version))
    own, service, gateway = client.ip(version), datapaths.VIP[version], datapaths.GATEWAY[version]
    assert {tracing.ends(record) for record in there} == {(own, service, gateway, own)}
    assert {tracing.ends(record) for record in back} == {(own, gateway, service, own)}


def test_dropped_by_a_rule(trace, packets, routed, release):
    left, right, port = routed.left, routed.right, new_port()
    with rules.nft(routed.router, "inet", "forward", f"udp dport {port} drop"):
        send_numbered(left.where, (right.ip4, port), COUNT)
        found = packets.expect(COUNT, {"dst.port": port}, WAIT_S)
    way = hops.forwarded(routed.router.name, ("to-left", "to-right"))
    died = [*way[: [" FORWARD" in line for line in way].index(True) + 1]]
    died.append(f"{routed.router.name} to-left kfree_skb")
    trace.check(found, [*hops.sent(left.where.name), *died], "dropped")
    # Before 5.16 a stack ends where a kretprobe is: then only the hop before tells the hook.
    cut = trace.kind == KRETPROBE and release < (5, 16)
    for record in found:
        assert record.get("netfilter.hook") == (None if cut else "FORWARD")
        assert record["drop.reason"] == "NETFILTER_DROP" if release >= (5, 18) else "NOT_SPECIFIED"


def by_tc(kind, router):
    """What comes from `left` goes to `right`, without the router."""
    if kind == "mirred":
        return tc.mirred(router, "to-left", "to-right", "redirect")
    helper = tc.REDIRECT if kind == "bpf_redirect" else tc.REDIRECT_PEER
    return tc.redirected(router, "to-left", "to-right", helper)


def sent_past(packets, left, right):
    """COUNT numbered datagrams, received; their records, and what these tell of tc's redirects."""
    port = new_port()
    with udp_listener(right.where, port) as listener:
        send_numbered(left.where, (right.ip4, port), COUNT)
        for _ in range(COUNT):
            listener.recv(100)
        found = packets.expect(COUNT, {"dst.port": port}, WAIT_S)
    redirects = [
        (hop["interface.name"], hop["tc.redirect.action"], hop.get("tc.redirect.inferred", False))
        for record in found
        for hop in record["hops"]
        if "tc.redirect.filters" in hop
    ]
    return found, redirects


@pytest.mark.parametrize("kind", ["bpf_redirect", "bpf_redirect_peer", "mirred"])
def test_redirected_by_tc(trace, packets, routed, release, kind):
    """Where the kernel does not say so, it follows from the filter, once that has been read."""
    router, left, right = routed.router, routed.left, routed.right
    told = {
        "bpf_redirect": ("to-right", "redirected", release < (6, 4)),
        "bpf_redirect_peer": ("eth0", "redirected to peer", True),
        "mirred": ("to-right", "redirected", False),
    }[kind]
    came = [f"{router.name} to-left {hook}" for hook in ("netif_rx", "netif_receive_skb")]
    went = [f"{router.name} to-right {hook}" for hook in ("net_dev_queue", "net_dev_start_xmit")]
    end = hops.received(right.where.name)
    to = right.where, "eth0"
    if kind == "bpf_redirect_peer":
        went, end = [], end[2:]
        # 5.10 leaves it what it was at `to-left`: it must have been a packet for that host.
        to = router, "to-left"
    with datapaths.addressed(routed, *to), by_tc(kind, router):
        for _ in range(TRIES):
            found, redirects = sent_past(packets, left, right)
            trace.check(found, [*hops.sent(left.where.name), *came, *went, *end])
            if redirects == [told] * COUNT:
                return
    raise AssertionError(f"told {redirects}, not {told}")


def test_kept_by_a_queueing_discipline(trace, packets, routed):
    left, right, port = routed.left, routed.right, new_port()
    left.where.run("tc", "qdisc", "add", "dev", "eth0", "root", *TBF.split())
    try:
        with udp_listener(right.where, port) as listener:
            send_numbered(left.where, (right.ip4, port), COUNT)
            for _ in range(COUNT):
                listener.recv(100)
            found = packets.expect(COUNT, {"dst.port": port}, WAIT_S)
    finally:
        left.where.run("tc", "qdisc", "delete", "dev", "eth0", "root")
    *before, last = hops.sent(left.where.name)
    # 5.14 and later tell that it kept one: 70713dddf3d2.
    told = ["qdisc_dequeue"] if "hook qdisc-enqueue: no way" in trace.live.err else KEPT
    way = [*before, *(f"{left.where.name} eth0 {hook}" for hook in told), last]
    way += hops.forwarded(routed.router.name, ("to-left", "to-right"))
    trace.check(found, [*way, *hops.received(right.where.name)])
