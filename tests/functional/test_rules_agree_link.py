"""Random rules of the families bridge, arp, netdev and inet at ingress: what is inferred of frames
on their way through a bridge, and of ARP to the node itself, is what the kernel's trace tells, rule
by rule, and whether they arrive.

TRACER_AGREE_ROUNDS=1000 [TRACER_AGREE_SEED=7] makes the run longer, and another.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from dataclasses import dataclass, replace
from random import Random

import pytest
from lab import link_dice, namespaces, rule_dice, rule_referee
from lab.namespaces import End
from lab.rule_referee import Referee, Sent
from lab.shell import CommandFailedError
from test_rules_agree import (
    AGREEMENT,
    ECHO,
    FAR4,
    FAR6,
    ICMP,
    LEFT4,
    LEFT6,
    POOLS,
    RIGHT4,
    RIGHT6,
    ROUNDS,
    SEED,
    SYN,
    TRIES,
    Inferred,
    Score,
    is_legacy,
    read,
    visit,
)

from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.hooks import base_chains
from tracer.analysis.ruleset.model import Conntrack, Host, Packet
from tracer.analysis.ruleset.read import Reader

PACKETS = 40
ARP = 0x0806
TRACE = f"""table netdev {rule_referee.TRACE_TABLE} {{
  chain l {{ type filter hook ingress device "to-left" priority -2000; meta nftrace set 1
  }}
  chain s {{ type filter hook ingress device "to-solo" priority -2000; meta nftrace set 1
  }}
  chain r {{ type filter hook ingress device "to-right" priority -2000; meta nftrace set 1
  }}
}}
"""
MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c")
"""Of left, of right, and of solo."""
SIDES = {"left": MACS[0], "right": MACS[1], "solo": MACS[2]}
SOLO = "02:00:00:00:00:0d"
"""Of the node's device to `solo`, which is no port of the bridge."""
HOPS = ("ingress", "prerouting", "forward", "postrouting", "egress")
"""Hooks of a frame that is bridged; `input` of an ARP packet that is not."""
SOLO_HOPS = ("ingress", "input")
DEVICE_HOOKS = ("ingress", "egress")


@dataclass(frozen=True)
class Arp:
    """An ARP packet; its number is the end of the address asked for."""

    number: int
    origin: str
    saddr: str
    operation: int
    mark: int = 0
    v6: bool = False
    protocol: int = 0

    @property
    def daddr(self):
        return f"10.99.{self.number >> 8}.{self.number & 255}"

    def data(self):
        head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, self.operation)
        mac = bytes.fromhex(SIDES[self.origin].replace(":", ""))
        ends = socket.inet_aton(self.saddr), socket.inet_aton(self.daddr)
        return head + mac + ends[0] + bytes(6) + ends[1]


@dataclass(frozen=True)
class Frame:
    """What was sent; the same name as in the test of routed packets."""

    sent: object


def target(origin):
    """The address of the device that a frame is for."""
    return {"left": SIDES["right"], "right": SIDES["left"], "solo": SOLO}[origin]


class LinkReferee(Referee):
    """Sends frames from the hosts' devices."""

    def put(self, packet):
        other = target(packet.origin)
        kind = ARP if isinstance(packet, Arp) else 0x86DD if packet.v6 else 0x0800
        macs = (bytes.fromhex(mac.replace(":", "")) for mac in (other, SIDES[packet.origin]))
        frame = b"".join(macs) + struct.pack("!H", kind) + packet.data()
        self.links[packet.origin].send(frame)

    def open(self, origins):
        self.links = {}
        for name, where in origins.items():
            made = where.socket(socket.AF_PACKET, socket.SOCK_RAW)
            made.bind(("eth0", 0))
            self.links[name] = made

    def close(self):
        super().close()
        for made in self.links.values():
            made.close()


@pytest.fixture(scope="module")
def bench(_alone):
    names = ("br-left", "br-mid", "br-right", "br-solo")
    for name in names:
        namespaces.delete(name)
    try:
        left, middle, right, solo = map(namespaces.create, names)
        middle.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0")
        middle.ip("link set br0 up")
        for where, name in ((left, "left"), (right, "right"), (solo, "solo")):
            where.sysctl("ipv6/conf/default/disable_ipv6", 1)
            namespaces.join(End(middle, f"to-{name}", ()), End(where, "eth0", ()))
            where.ip(f"link set eth0 address {SIDES[name]}")
            if name == "solo":
                middle.ip(f"link set to-solo address {SOLO}")
                continue
            middle.ip(f"link set to-{name} master br0")
            fdb = ("bridge", "fdb", "replace", SIDES[name], "dev", f"to-{name}")
            middle.run(*fdb, "master", "static")
        for key in ("iptables", "ip6tables", "arptables"):
            middle.sysctl(f"bridge/bridge-nf-call-{key}", 0)
        quiet(middle)
        origins = {"left": left, "right": right, "solo": solo}
        referee = LinkReferee(middle, origins)
        referee.open(origins)
        try:
            yield middle, referee
        finally:
            referee.close()
    finally:
        for name in names:
            namespaces.delete(name)


def quiet(middle):
    """The bridge itself says nothing: every frame is one that the test sent."""
    for device in ("br0", "to-left", "to-right", "to-solo"):
        middle.sysctl(f"ipv6/conf/{device}/disable_ipv6", 1)
    links = json.loads(middle.ip("-j link show"))
    assert {"br0", "to-left", "to-right"} <= {link["ifname"] for link in links}


def frames(dice, numbers):
    made = []
    for number in numbers:
        origin, v6 = dice.choice(("left", "right")), dice.random() < 0.4
        if dice.random() < 0.3:
            origin = dice.choice((origin, "solo"))
            made.append(Frame(Arp(number, origin, dice.choice(POOLS.ip4), dice.choice((1, 1, 2)))))
            continue
        addresses = (*LEFT6, *RIGHT6, FAR6) if v6 else (*LEFT4, *RIGHT4, FAR4)
        protocol = dice.choice((socket.IPPROTO_TCP, socket.IPPROTO_UDP, ICMP[v6]))
        sent = Sent(
            number, origin, *dice.sample(addresses, 2), protocol,
            sport=dice.choice((number, *rule_dice.PORTS)), dport=dice.choice(rule_dice.PORTS),
            tcp_flags=dice.choice((SYN, 16)), icmp_type=ECHO[v6][0],
            ttl=dice.choice((64, 32)), dscp=dice.choice((0, 46)),
        )  # fmt: skip
        made.append(Frame(sent))
    return made


def packet_of(sent):
    """The frame as it enters the bridge's first hook."""
    arp = isinstance(sent, Arp)
    ports = sent.protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    link = Packet(
        family="arp" if arp else "ip6" if sent.v6 else "ip",
        saddr=sent.saddr, daddr=sent.daddr, protocol=None if arp else sent.protocol,
        sport=sent.sport if ports else None, dport=sent.dport if ports else None,
        iif=f"to-{sent.origin}", oif="", mark=0, ct=Conntrack("invalid"),
        ether_saddr=SIDES[sent.origin], ether_daddr=target(sent.origin),
        ether_type=ARP if arp else 0x86DD if sent.v6 else 0x0800,
    )  # fmt: skip
    if arp:
        zero = "00:00:00:00:00:00"
        return replace(
            link, arp_operation=sent.operation, arp_saddr=SIDES[sent.origin], arp_daddr=zero
        )
    tcp = sent.protocol == socket.IPPROTO_TCP
    icmp = sent.icmp_type if sent.protocol in ICMP.values() else None
    return replace(
        link, tcp_flags=sent.tcp_flags if tcp else None, icmp_type=icmp, ttl=sent.ttl,
        dscp=sent.dscp,
    )  # fmt: skip


def infer(ruleset, sent, at=0, way=None):
    """Every way that the frame may have gone, as far as the rules tell."""
    way = way or Inferred((), "", packet_of(sent), (), sure=True)
    hops = SOLO_HOPS if sent.origin == "solo" else HOPS
    hook = hops[at]
    family = way.last.family if hook in (*DEVICE_HOOKS, "input") else "bridge"
    out = {"left": "to-right", "right": "to-left", "solo": ""}[sent.origin]
    packet = replace(way.last, oif="" if hook in ("ingress", "prerouting") else out)
    packet = replace(packet, iif="" if hook in ("postrouting", "egress") else packet.iif)
    device = packet.oif if hook == "egress" else packet.iif
    bases = base_chains(ruleset, hook, family, device)
    answer = evaluate(ruleset, hook, packet, Host(), bases)
    for verdict in answer.candidates:
        visits = way.visits + tuple(visit(end) for end in verdict.ends if not is_legacy(end))
        sure = way.sure and not answer.unknown
        after = replace(verdict.packet, iif=way.last.iif)
        gone = Inferred(visits, "", after, (), sure, verdict.verdict)
        if verdict.verdict != "accept":
            yield gone
        elif at + 1 < len(hops):
            yield from infer(ruleset, sent, at + 1, gone)
        else:
            yield replace(gone, out=out.removeprefix("to-"))


def load(middle, dice):
    """Load a random ruleset without the rules that nft refuses (it names their lines)."""
    lines = link_dice.ruleset(dice, POOLS, MACS).splitlines()
    for _ in range(TRIES):
        try:
            return middle.run("nft", "-f", "-", stdin="\n".join([*lines, ""]))
        except CommandFailedError as error:
            refused = {int(line) for line in re.findall(r"/dev/stdin:(\d+):", str(error))}
            lines = [
                line
                for number, line in enumerate(lines, 1)
                if number not in refused or not line.startswith("\t")
            ]
    raise AssertionError("\n".join(lines))


def play(bench, score, seed):
    middle, referee = bench
    dice = Random(seed)  # noqa: S311 - a test that can be repeated, no secret
    middle.run("nft", "flush", "ruleset")
    load(middle, dice)
    ruleset = read(middle, Reader())
    assert not ruleset.incomplete
    middle.run("nft", "-f", "-", stdin=TRACE)
    numbers = range(1 + dice.randrange(30000), 0xFFFF)
    sent = frames(dice, numbers[:PACKETS])
    last = Sent(numbers[PACKETS], "left", LEFT4[0], RIGHT4[0], socket.IPPROTO_UDP, 9, 9)
    visits, arrived = referee.send([frame.sent for frame in sent], last)
    for frame in sent:
        ways = list(infer(ruleset, frame.sent))
        score.compare(seed, ruleset, frame, ways, visits[frame.sent.number], arrived)


def test_bridge_and_device_chains(bench):
    score = Score()
    for number in range(ROUNDS):
        play(bench, score, f"{SEED}-link-{number}")
    print(f"link: {ROUNDS} rulesets: {score}")
    print("\n".join(score.explain()))
    assert score.packets == ROUNDS * PACKETS
    assert score.rules > score.packets / 2
    assert score.agreement >= AGREEMENT, "\n".join(score.explain())
