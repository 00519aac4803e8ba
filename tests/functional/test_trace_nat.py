"""`trace` through NAT and tunnels: both sides of it are one flow, and the way is not cut."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
from lab import namespaces, rules, runner, ways
from lab.containerd import BRIDGE, GATEWAY4, GATEWAY6
from lab.namespaces import End, node
from lab.topology import meet
from lab.traffic import family_of, new_port, send_numbered, udp_listener

COUNT = 5
VIPS = {4: "10.96.0.10", 6: "fd00:96::10"}
"""Addresses of a Service that no device has."""
PORTS = "udp portrange 20001-29999"
MARK = "0x4000"
REPLY_BYTES = 77


@pytest.fixture(scope="module")
def tunnel(_alone):
    """Two namespaces that stand for two nodes: `eth0` between them, `vx0` in it."""
    names = ("vx-a", "vx-b")
    one, other = ends = [namespaces.create(name) for name in names]
    namespaces.join(*(End(end, "eth0", (f"10.250.0.{n}/24",)) for n, end in enumerate(ends, 1)))
    for number, end in enumerate(ends, 1):
        peers = f"local 10.250.0.{number} remote 10.250.0.{3 - number}"
        end.ip(f"link add vx0 type vxlan id 77 dstport 4789 {peers} dev eth0")
        end.ip(f"address add 10.251.0.{number}/24 dev vx0")
        end.ip("link set vx0 up")
    meet(one, other, "10.251.0.2")
    meet(other, one, "10.251.0.1")
    yield one, other
    for name in names:
        namespaces.delete(name)


@pytest.fixture(scope="module")
def trace(cluster, tunnel, cri_env):  # noqa: ARG001 - all is there before it looks
    """One `tracer trace` for the module."""
    with runner.whole("trace", PORTS, "-o", "json", env=cri_env) as live:
        yield live


@contextmanager
def service(back, version, port, target):
    """`VIPS[version]:port` leads to `back:target`, masqueraded as kube-proxy does it."""
    family, to = ("ip", back.ip4) if version == 4 else ("ip6", f"[{back.ip6}]")
    pre = f"{family} daddr {VIPS[version]} udp dport {port} mark set {MARK} dnat to {to}:{target}"
    table = f"""table {family} {rules.TABLE} {{
        chain pre {{ type nat hook prerouting priority -100; {pre}; }}
        chain post {{ type nat hook postrouting priority 100; meta mark {MARK} masquerade; }}
    }}\n"""
    node().run("nft", "-f", "-", stdin=table)
    try:
        yield
    finally:
        node().run("nft", "delete", "table", family, rules.TABLE)


@contextmanager
def neighbour(pod, version):
    """The node knows the pod's link address for sure, and has used it.

    A bridged packet that DNAT turns to another port goes on through the bridge only then; to a
    neighbour that is not confirmed it is sent by the bridge's own device (br_netfilter).
    """
    address = pod.ip4 if version == 4 else pod.ip6
    link = pod.where.link_address("eth0")
    node().ip(f"neigh replace {address} lladdr {link} dev {BRIDGE} nud permanent")
    try:
        meet(node(), pod.where, address)
        yield
    finally:
        node().ip(f"neigh delete {address} dev {BRIDGE}")


def ask(client, to, listener):
    """COUNT questions from one socket, each answered before the next; the client's port."""
    with client.where.socket(family_of(to[0]), socket.SOCK_DGRAM) as sender:
        for number in range(COUNT):
            sender.sendto(number.to_bytes(4, "big") + b"question", to)
            _, came_from = listener.recvfrom(100)
            listener.sendto(number.to_bytes(4, "big") + bytes(REPLY_BYTES - 4), came_from)
            sender.recv(100)
        return sender.getsockname()[1]


def bridged(one, other, version):
    ports = (one.node_device, other.node_device)
    return ways.sent(one.name, version) + ways.bridged(BRIDGE, ports, version)


def through_service(cluster, packets, back, version):
    """Records of questions and answers through a Service, their ways checked."""
    client, port, target = cluster.client, new_port(), new_port()
    with (
        service(back, version, port, target),
        neighbour(client, version),
        neighbour(back, version) if back is not client else nullcontext(),
        udp_listener(back.where, target, family_of(VIPS[version])) as listener,
    ):
        asked_from = ask(client, (VIPS[version], port), listener)
        there = packets.expect(COUNT, {"src.port": asked_from, "dst.port": port})
        back_again = packets.expect(COUNT, {"src.port": target, "dst.port": asked_from})
    for record in there:
        way = bridged(client, back, version) + ways.received(back.name, version)
        ways.check(record, way, "delivered")
    for record in back_again:
        way = bridged(back, client, version) + ways.received(client.name, version)
        ways.check(record, way, "delivered")
        assert record["bytes"] == REPLY_BYTES + (28 if version == 4 else 48)
    assert len({record["flow"] for record in there + back_again}) == 1
    assert len({record["network.community_id"] for record in there + back_again}) == 1
    return there, back_again


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("server", ["web", "client"])
def test_service(cluster, packets, version, server):
    """DNAT and masquerade, forth and back; `client` reaches itself: the hairpin."""
    client, back = cluster.client, getattr(cluster, server)
    own, theirs, gateway = (
        (client.ip4, back.ip4, GATEWAY4) if version == 4 else (client.ip6, back.ip6, GATEWAY6)
    )
    there, back_again = through_service(cluster, packets, back, version)
    for record in there:
        assert (record["src.address"], record["dst.address"]) == (own, VIPS[version])
        assert (record["nat.src.address"], record["nat.dst.address"]) == (gateway, theirs)
        assert record["nat.dst.port"] != record["dst.port"]
        assert record["k8s.src.pod.name"] == "client-0"
        assert record["k8s.dst.pod.name"] == back.name
        assert f"{VIPS[version]}" in record["flow"]
        pre, post = ways.nf(version, "PREROUTING", "POSTROUTING")
        assert any(x.startswith("DNAT ") for x in ways.changes(record, "node", pre))
        assert any(x.startswith("SNAT ") for x in ways.changes(record, "node", post))
    for record in back_again:
        assert (record["src.address"], record["dst.address"]) == (theirs, gateway)
        assert (record["nat.src.address"], record["nat.dst.address"]) == (VIPS[version], own)
        assert record["conntrack.direction"] == "reply"


def test_sidecar_redirect_inside_a_pod(cluster, packets):
    """A mesh takes the pod's traffic to a port of its own, in the pod's namespace."""
    client, web, port, proxy = cluster.client, cluster.web, new_port(), new_port()
    chain = "type nat hook prerouting priority -100;"
    rule = f"udp dport {port} redirect to :{proxy}"
    table = f"table ip {rules.TABLE} {{ chain c {{ {chain} {rule}; }}; }}"
    web.where.run("nft", "-f", "-", stdin=table)
    try:
        with udp_listener(web.where, proxy) as listener:
            asked_from = ask(client, (web.ip4, port), listener)
            there = packets.expect(COUNT, {"src.port": asked_from, "dst.port": port})
            back = packets.expect(COUNT, {"src.port": proxy, "dst.port": asked_from})
    finally:
        web.where.run("nft", "delete", "table", "ip", rules.TABLE)
    for record in there:
        ways.check(record, bridged(client, web, 4) + ways.received(web.name), "delivered")
        assert record["nat.dst.port"] == proxy
        assert any(str(proxy) in x for x in ways.changes(record, "web-0", "nf ip PREROUTING"))
    for record in back:
        ways.check(record, bridged(web, client, 4) + ways.received(client.name), "delivered")
        assert record["nat.src.port"] == port
    assert len({record["flow"] for record in there + back}) == 1


def test_vxlan(tunnel, packets):
    """The inner packet is followed into the tunnel and out of it."""
    one, other = tunnel
    port = new_port()
    with udp_listener(other, port) as listener:
        send_numbered(one, ("10.251.0.2", port), COUNT)
        found = packets.expect(COUNT, {"dst.port": port, "src.address": "10.251.0.1"})
        for number in range(COUNT):
            assert listener.recv(100)[:4] == number.to_bytes(4, "big")
    first, last = one.name, other.name
    way = [
        *ways.sent(first, device="vx0"),
        *ways.sent(first),
        *ways.received(last),
        *ways.received(last, device="vx0")[1:],
    ]
    for record in found:
        assert ways.told(record) == way
        assert record["verdict"] == "delivered"
        assert "10.250.0.2:4789" in record["tunnel.packet"]
        assert (record["tunnel.type"], record["tunnel.id"]) == ("vxlan", 77)
        told = [text for hop in record["hops"] for text in hop.get("changes", [])]
        assert any(text.startswith("encapsulated in vxlan 77 10.250.0.1") for text in told)
        assert any(text.startswith("decapsulated from vxlan 77 10.250.0.1") for text in told)


@pytest.mark.parametrize("goal", ["10.252.0.255", "239.252.0.1"], ids=["broadcast", "multicast"])
def test_flooding(packets, goal):
    """A bridge gives each port a clone: one packet with a branch for every receiver."""
    port = new_port()
    with ExitStack() as stack:
        bridge, hosts = flooded(stack)
        listeners = [stack.enter_context(udp_listener(host, port)) for host in hosts[1:]]
        if goal.startswith("239."):
            for number, listener in enumerate(listeners, 2):
                both = socket.inet_aton(goal) + socket.inet_aton(f"10.252.0.{number}")
                listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, both)
        with hosts[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            own = socket.inet_aton("10.252.0.1")
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            for number in range(COUNT):
                sender.sendto(number.to_bytes(4, "big") + bytes(9), (goal, port))
        for listener in listeners:
            listener.recv(100)
        found = packets.expect(COUNT, {"dst.port": port})
    for record in found:
        assert record["verdict"] == "delivered"
        lines = ways.told(record)
        for host in hosts[1:]:
            mine = [hop for hop in record["hops"] if hop.get("netns.name") == host.name]
            hooks = [hop["hook"] for hop in mine if hop["hook"] not in ways.UNSURE]
            assert [f"{host.name} eth0 {hook}" for hook in hooks] == ways.received(host.name)
            assert len({hop["branch"] for hop in mine}) == 1
        branches = {hop["branch"] for hop in record["hops"] if hop.get("netns.name") != bridge.name}
        assert len(branches) >= len(hosts) - 1
        assert lines[0] == ways.sent(hosts[0].name)[0]


def flooded(stack):
    """A namespace with a bridge, and three hosts on it; gone with `stack`."""
    made = []
    for name in ("bridge", "port-1", "port-2", "port-3"):
        made.append(namespaces.create(name))
        stack.callback(namespaces.delete, name)
    bridge, *hosts = made
    bridge.ip("link add br0 type bridge")
    bridge.ip("link set br0 up")
    for number, host in enumerate(hosts, 1):
        address = (f"10.252.0.{number}/24",)
        namespaces.join(End(bridge, f"port{number}", ()), End(host, "eth0", address))
        bridge.ip(f"link set port{number} master br0")
    return bridge, hosts
