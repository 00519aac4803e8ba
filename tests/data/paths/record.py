"""Makes the .npz files beside it, as root: what `tracer trace` got of real packets.

Three namespaces of its own on this machine: `tpc` (client) and `tps` (server), and between them
`tpn`, which stands for the node (a bridge for both, or a router with nft rules). Each file holds
the columns `hops` and `drops`, and `names`: JSON of namespaces, devices and symbols.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tracer.kernel import nf_links
from tracer.kernel.hooks import hooks_of
from tracer.kernel.loader import Loader
from tracer.kernel.pcap import match_function
from tracer.kernel.program import Program
from tracer.kernel.ring import MappedRing
from tracer.kernel.symbols import Symbols
from tracer.layout import layout

HERE = Path(__file__).parent
NAMES = ("tpn", "tpc", "tps", "tpo")
CLIENT, SERVER, OTHER = NAMES[1:]

BRIDGED = """
link add br0 type bridge
link set br0 up
addr add 10.244.0.1/24 dev br0
link add vc type veth peer name eth0 netns tpc
link add vs type veth peer name eth0 netns tps
link add vo type veth peer name eth0 netns tpo
link set vc master br0 up
link set vs master br0 up
link set vo master br0 up
"""
ROUTED = """
link add vc type veth peer name eth0 netns tpc
link add vs type veth peer name eth0 netns tps
addr add 10.244.1.1/24 dev vc
addr add 10.244.2.1/24 dev vs
link set vc up
link set vs up
"""
SERVICE = """
table ip nat {
  chain pre {
    type nat hook prerouting priority dstnat;
    ip daddr 10.96.0.10 tcp dport 80 meta mark set 0x4000 dnat to 10.244.2.2:8080;
  }
  chain post {
    type nat hook postrouting priority srcnat;
    meta mark 0x4000 masquerade;
  }
}
"""
FILTER = """
table ip filter {{
  chain forward {{
    type filter hook forward priority 0;
    {};
  }}
}}
"""
FORBIDDEN = FILTER.format("udp dport 7777 drop")
LOSSY = FILTER.format("tcp dport 8080 meta length > 1400 limit rate 1/day burst 1 packets drop")
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for n in range({count}): s.sendto(b'%04d' % n * 25, ('{address}', 7777))
{after}
"""
ANSWER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 7777)); s.settimeout(5)
for n in range(3):
    data, peer = s.recvfrom(2000)
    s.sendto(data[:20], peer)
"""
TCP_SERVER = """
import socket
s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('', 8080)); s.listen(); s.settimeout(5)
c, _ = s.accept(); c.settimeout(5)
got = 0
while got < {size}: got += len(c.recv(65536))
c.send(b'y' * 3000); c.recv(1)
"""
TCP_CLIENT = """
import socket
s = socket.create_connection(('{address}', {port}), 5); s.settimeout(5)
s.sendall(b'x' * {size})
got = 0
while got < 3000: got += len(s.recv(9000))
s.close()
"""


def sh(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=30).stdout


def build(node, client, server):
    for name in NAMES:
        sh("ip", "netns", "add", name)
        sh("ip", "-n", name, "link", "set", "lo", "up")
        sh("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    for line in node.strip().splitlines():
        sh("ip", "-n", "tpn", *line.split())
    sh("ip", "netns", "exec", "tpn", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    for name, address in ((CLIENT, client), (SERVER, server), (OTHER, "10.244.0.4/24")):
        if sh("ip", "-n", name, "link", "show", "eth0", check=False):
            sh("ip", "-n", name, "addr", "add", address, "brd", "+", "dev", "eth0")
            sh("ip", "-n", name, "link", "set", "eth0", "up")
            sh("ip", "-n", name, "route", "add", "default", "via", address[:9] + "1")


def python(netns, text):
    return subprocess.Popen(["ip", "netns", "exec", netns, sys.executable, "-c", text])


def names(symbols, addresses):
    spaces, devices = {}, []
    for name in NAMES:
        inode = os.stat(f"/run/netns/{name}").st_ino  # noqa: PTH116 - as the kernel tells it
        spaces[inode] = name
        for link in json.loads(sh("ip", "-n", name, "-j", "-d", "link")):
            kind = link.get("linkinfo", {}).get("info_kind", "")
            devices.append([inode, link["ifindex"], link["ifname"], kind])
    return {
        "namespaces": spaces,
        "devices": devices,
        "symbols": {int(a): symbols(int(a)) for a in addresses if a},
    }


def record(name, wanted, node, ends, rules, traffic):
    try:
        build(node, *ends)
        if rules:
            subprocess.run(
                ["ip", "netns", "exec", "tpn", "nft", "-f", "-"], input=rules, text=True, check=True
            )
        # Neighbours are found before, so that only what was asked for is on the wire.
        address = ends[1].partition("/")[0]
        sh("ip", "netns", "exec", CLIENT, sys.executable, "-c",
           SEND.format(address=address, count=1, after=""))  # fmt: skip
        time.sleep(0.5)
        hooks = tuple(hook.name for hook in hooks_of("trace"))
        defines = {
            "NODE_NETNS": f"{os.stat('/run/netns/tpn').st_ino}U",  # noqa: PTH116
            "WITH_TRACE": "",
            "SELECT_PCAP": "",
        }
        loaded = Loader(Program(hooks, defines, match_function(wanted))).wait()
        links = []
        for netns in NAMES:
            links += nf_links.attach(loaded.programs, f"/run/netns/{netns}")[0]
        rings = []
        for ring, struct in (("hops", "hop_event"), ("drop_events", "drop_event")):
            info, fd = loaded.maps[ring]
            rings.append(MappedRing(fd, layout().structs[struct], info.max_entries))
        traffic()
        time.sleep(0.3)
        hops, drops = (ring.take() for ring in rings)
        drops = drops[drops["packet_id"] > 0]
        for link in links:
            os.close(link)
        loaded.close()
        addresses = {*drops["location"].tolist(), *drops["stack"].ravel().tolist()}
        addresses |= set(hops["location"].tolist())
        told = json.dumps(names(Symbols().name, sorted(addresses)))
        np.savez_compressed(HERE / f"{name}.npz", hops=hops, drops=drops, names=told)
        print(name, len(hops), "hops", len(set(hops["packet_id"].tolist())), "packets", len(drops))
    finally:
        for netns in NAMES:
            sh("ip", "netns", "del", netns, check=False)


def udp(address, count, *, answered):
    def run():
        server = python(SERVER, ANSWER) if answered else None
        time.sleep(0.5)
        after = "for n in range(3): s.recv(100)" if answered else ""
        sh("ip", "netns", "exec", CLIENT, sys.executable, "-c",
           SEND.format(address=address, count=count, after=after))  # fmt: skip
        if server:
            server.wait(10)

    return run


def tcp(address, port, size):
    def run():
        server = python(SERVER, TCP_SERVER.format(size=size))
        time.sleep(0.5)
        sh("ip", "netns", "exec", CLIENT, sys.executable, "-c",
           TCP_CLIENT.format(address=address, port=port, size=size))  # fmt: skip
        server.wait(10)

    return run


OURS = "tcp and net 10.0.0.0/8"
SAME_NET = ("10.244.0.2/24", "10.244.0.3/24")
TWO_NETS = ("10.244.1.2/24", "10.244.2.2/24")
RUNS = (
    ("bridge", "udp port 7777", BRIDGED, SAME_NET, "", udp("10.244.0.3", 3, answered=True)),
    ("flood", "udp port 7777", BRIDGED, SAME_NET, "", udp("10.244.0.255", 2, answered=False)),
    ("service", OURS, ROUTED, TWO_NETS, SERVICE, tcp("10.96.0.10", 80, 50)),
    ("forward_drop", "udp port 7777", ROUTED, TWO_NETS, FORBIDDEN,
     udp("10.244.2.2", 3, answered=False)),
    ("retransmit", OURS, ROUTED, TWO_NETS, LOSSY, tcp("10.244.2.2", 8080, 30000)),
)  # fmt: skip

if __name__ == "__main__":
    for run in RUNS:
        if len(sys.argv) == 1 or run[0] in sys.argv[1:]:
            record(*run)
