"""`trace` where tc sends packets to other devices, as Cilium does: who did it, and where."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager

import pytest
from lab import namespaces, runner, tc, ways
from lab.namespaces import End
from lab.shell import until
from lab.traffic import new_port, send_numbered, udp_listener

COUNT = 5
READ_S = 30
"""Within which tracer has read a filter that is new: it looks now and then."""
VERSIONS = pytest.mark.parametrize("version", [4, 6])
NETS = "net 10.253.2.0/23 or net fd00:10:253:2::/64"
BPF, TCX, MIRRED = f"bpf {tc.NAME} id ", f"tcx {tc.PROGRAM_NAME} id ", "u32: mirred"
BEYOND = "10.253.2.77"
"""An address of the second pod, to which the first one's way is by `out0`."""


@contextmanager
def pods_of(name, net4, net6):
    """A node and two pods `eth0` -- `lxc1`, `lxc2` that know each other's link address."""
    with ExitStack() as undo:
        for part in (name, f"{name}-1", f"{name}-2"):
            undo.callback(namespaces.delete, part)
        node, *pods = (namespaces.create(part) for part in (name, f"{name}-1", f"{name}-2"))
        for number, pod in enumerate(pods, 1):
            own = f"{net4}.{number}/24", f"{net6}::{number}/64"
            namespaces.join(End(node, f"lxc{number}", ()), End(pod, "eth0", own))
        for one, other, number in ((*pods, 2), (*reversed(pods), 1)):
            for address in (f"{net4}.{number}", f"{net6}::{number}"):
                link = other.link_address("eth0")
                one.ip(f"neigh replace {address} lladdr {link} dev eth0 nud permanent")
        yield node, *pods


@pytest.fixture(scope="module")
def cilium(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    """Two pods without a bridge or routes: tc programs are to carry packets between them.

    The first pod has a device `out0` that leads nowhere, the node `spare0`.
    """
    with pods_of("cil", "10.253.2", "fd00:10:253:2") as (node, one, other):
        namespaces.join(End(node, "spare0", ()), End(node, "spare1", ()))
        namespaces.join(End(one, "out0", ()), End(one, "out1", ()))
        one.ip(f"route add {BEYOND} dev out0 src 10.253.2.1")
        link = other.link_address("eth0")
        one.ip(f"neigh replace {BEYOND} lladdr {link} dev out0 nud permanent")
        other.ip(f"address add {BEYOND}/32 dev eth0")
        yield node, one, other


@pytest.fixture(scope="module")
def bridged(cluster):  # noqa: ARG001
    """The same, the node's devices ports of a bridge, but for `spare0`."""
    with pods_of("cilb", "10.253.3", "fd00:10:253:3") as (node, one, other):
        node.ip("link add br0 type bridge")
        for device in ("lxc1", "lxc2"):
            node.ip(f"link set {device} master br0")
        node.ip("link set br0 up")
        namespaces.join(End(node, "spare0", ()), End(node, "spare1", ()))
        yield node, one, other


@pytest.fixture(scope="module")
def trace(cilium, bridged, cri_env):  # noqa: ARG001 - all is there before it looks
    """One `tracer trace` for the module."""
    with runner.whole("trace", f"udp and ({NETS})", "-o", "json", env=cri_env) as live:
        yield live


def deliver(packets, sender, receiver, address):
    """COUNT numbered datagrams, received; their records."""
    port = new_port()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with udp_listener(receiver, port, family) as listener:
        send_numbered(sender, (address, port), COUNT)
        for number in range(COUNT):
            assert listener.recv(100)[:4] == number.to_bytes(4, "big")
        return packets.expect(COUNT, {"dst.port": port})


def deliver_when_read(packets, sender, receiver, address, *filters):
    """The same again and again, until the packets' records name just these filters."""
    found = []

    def named():
        found[:] = deliver(packets, sender, receiver, address)
        return all(filters_of(record) == sorted(filters) for record in found)

    until(named, f"{filters} are read; now {[filters_of(one) for one in found]}", READ_S)
    return found


def filters_of(record):
    """What tc runs at devices that a packet passed, without ids that tests do not know."""
    told = [text for hop in record["hops"] for text in hop.get("tc.filters", ())]
    return sorted(text.rstrip("0123456789") for text in told)


def redirects(record):
    """(place, device, hook) of each hop to which tc sent it → how, from where, and how sure."""
    found = {}
    for hop in record["hops"]:
        if "tc.redirect.action" in hop:
            action, hook = hop["tc.redirect.action"], hop["tc.redirect.hook"]
            told = f"{action} at {hop['tc.redirect.interface.name']} {hook}"
            if "tc.redirect.peer" in hop:
                told += f" of {hop['tc.redirect.peer']}"
            if hop.get("tc.redirect.inferred"):
                told += ", inferred"
            found[hop["netns.name"], hop["interface.name"], hop["hook"]] = told
    return found


def address_of(version):
    return "10.253.2.2" if version == 4 else "fd00:10:253:2::2"


def through(node, one, other, version=4):
    """From pod to pod, where the node's end of the first is no end of the way."""
    came = [f"{node.name} lxc1 {hook}" for hook in ("netif_rx", "netif_receive_skb")]
    left = [f"{node.name} lxc2 {hook}" for hook in ("net_dev_queue", "net_dev_start_xmit")]
    return [*ways.sent(one.name, version), *came, *left, *ways.received(other.name, version)]


def by(kind, node):
    """lxc1 to lxc2 by that kind of filter."""
    if kind == TCX:
        return tc.linked(node, "lxc1", "lxc2")
    if kind == MIRRED:
        return tc.mirred(node, "lxc1", "lxc2", "redirect")
    return tc.redirected(node, "lxc1", "lxc2", tc.REDIRECT)


@pytest.mark.parametrize(("kind", "version"), [(BPF, 4), (BPF, 6), (TCX, 4), (MIRRED, 4)])
def test_redirect(cilium, packets, kind, version):
    """The kernel says so; the filter that did it is named."""
    node, one, other = cilium
    with by(kind, node):
        found = deliver_when_read(packets, one, other, address_of(version), kind)
    for record in found:
        ways.check(record, through(node, one, other, version), "delivered")
        to = (node.name, "lxc2", "net_dev_queue")
        assert redirects(record) == {to: "redirected at lxc1 ingress"}


@VERSIONS
def test_redirect_to_the_peer(cilium, packets, version):
    """No device of the node sends it, and the pod's own does not receive it anew."""
    node, one, other = cilium
    with tc.redirected(node, "lxc1", "lxc2", tc.REDIRECT_PEER):
        found = deliver_when_read(packets, one, other, address_of(version), BPF)
    came = [f"{node.name} lxc1 {hook}" for hook in ("netif_rx", "netif_receive_skb")]
    inside = ways.received(other.name, version)[2:]
    (first, *_) = ways.nf(version, "PREROUTING")
    for record in found:
        ways.check(record, [*ways.sent(one.name, version), *came, *inside], "delivered")
        to = (other.name, "eth0", first)
        told = "redirected to peer at lxc1 ingress of lxc2, inferred"
        assert redirects(record) == {to: told}


def test_redirect_at_egress(cilium, packets):
    """The device that it was to leave by never has it."""
    node, one, other = cilium
    with (
        tc.redirected(one, "out0", "eth0", tc.REDIRECT, tc.EGRESS),
        by(BPF, node),
    ):
        found = deliver_when_read(packets, one, other, BEYOND, BPF)
    sent = [line.replace("eth0 nf", "out0 nf") for line in ways.sent(one.name)]
    for record in found:
        way = [*sent, *through(node, one, other)[len(sent) :]]
        ways.check(record, way, "delivered")
        assert redirects(record) == {
            (one.name, "eth0", "net_dev_queue"): "redirected at out0 egress",
            (node.name, "lxc2", "net_dev_queue"): "redirected at lxc1 ingress",
        }


def test_mirror(bridged, packets):
    """A copy to a device that is no port of the bridge; the bridge forwards the packet itself."""
    node, one, other = bridged
    with tc.mirred(node, "lxc1", "spare0", "mirror"):
        found = deliver_when_read(packets, one, other, "10.253.3.2", MIRRED)
    for record in found:
        assert record["verdict"] == "delivered"
        to = (node.name, "spare0", "net_dev_queue")
        assert redirects(record) == {to: "mirrored at lxc1 ingress, inferred"}
        assert passages(record) == {("lxc1", "in"), ("lxc2", "forwarded")}


def passages(record):
    return {
        (hop["interface.name"], hop["bridge.action"])
        for hop in record["hops"]
        if "bridge.name" in hop
    }


def test_from_port_to_port(bridged, packets):
    """What the bridge does, and what tc does without it, are told apart."""
    node, one, other = bridged
    for record in deliver_when_read(packets, one, other, "10.253.3.2"):
        assert passages(record) == {("lxc1", "in"), ("lxc2", "forwarded")}
        assert not redirects(record)
    with by(BPF, node):
        found = deliver_when_read(packets, one, other, "10.253.3.2", BPF)
    for record in found:
        assert not passages(record)
        to = (node.name, "lxc2", "net_dev_queue")
        assert redirects(record) == {to: "redirected at lxc1 ingress"}


def test_a_recording_keeps_it(cilium, tmp_path):
    node, one, other = cilium
    words = (f"udp and ({NETS})", "-o", "json", "--concurrent", "--record", str(tmp_path / "r"))
    with by(BPF, node), tc.linked(node, "lxc2", "spare0"), runner.running("trace", *words) as live:
        deliver(runner.watch(live), one, other, address_of(4))
        done = live.stop()
    again = runner.finish("show", str(tmp_path / "r"), "-o", "json")
    told, shown = (
        [
            [{name: hop[name] for name in hop if name.startswith("tc.")} for hop in record["hops"]]
            for record in records
            if record["type"] == "packet"
        ]
        for records in (done.records, again.records)
    )
    assert len(told) == COUNT
    assert told == shown
    assert any("tc.redirect.filters" in hop for hop in told[0])
