"""Random rulesets and random packets: what tracer infers is what the kernel did, rule by rule.

A router between two hosts gets random rules: nftables, iptables-nft, iptables-legacy. Packets
go through it, and of each the walk that was inferred from the ruleset as text (every rule that
matched, in every base chain, in order) is compared with the kernel's own trace, and the end
with whether the packet came out. Legacy rules have no trace: there the counters of the rules
tell which of them matched.

TRACER_AGREE_ROUNDS=1000 [TRACER_AGREE_SEED=7] makes the run longer, and another.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from dataclasses import dataclass, replace
from random import Random

import pytest
from lab import rule_dice, rule_referee, topology, xt_dice
from lab.rule_referee import Sent
from lab.shell import CommandFailedError

from tracer.analysis.packet import parse
from tracer.analysis.ruleset.evaluate import evaluate, moved
from tracer.analysis.ruleset.model import XT_LEGACY, Conntrack, Host, Packet, Tuple
from tracer.analysis.ruleset.read import Reader, Texts

ROUNDS = int(os.environ.get("TRACER_AGREE_ROUNDS", "16"))
SEED = int(os.environ.get("TRACER_AGREE_SEED", "1"))
AGREEMENT = 0.999
PACKETS = 48
LEGACY_PACKETS = 14
TRIES = 8
SYN, RST, ACK, SYN_ACK, FIN_ACK = 2, 4, 16, 18, 17
LEFT4, RIGHT4 = ("10.246.1.2", "10.246.1.3"), ("10.246.2.2", "10.246.2.3", "10.246.2.4")
LEFT6 = "fd00:10:246:1::2", "fd00:10:246:1::3"
RIGHT6 = "fd00:10:246:2::2", "fd00:10:246:2::3", "fd00:10:246:2:8000::4"
ROUTER = {"10.246.1.1", "10.246.2.1", "fd00:10:246:1::1", "fd00:10:246:2::1"}
ROUTER4, ROUTER6 = ("10.246.1.1", "10.246.2.1"), ("fd00:10:246:1::1", "fd00:10:246:2::1")
FAR4, FAR6 = "192.0.2.7", "2001:db8::7"
POOLS = rule_dice.Pools(
    ip4=(*LEFT4, *RIGHT4, *ROUTER4, FAR4),
    ip6=(*LEFT6, *RIGHT6, *ROUTER6, FAR6),
    nat4=(*RIGHT4, LEFT4[1]),
    nat6=(*RIGHT6, LEFT6[1]),
    devices=("to-left", "to-right"),
)
HOST = Host(frozenset(ROUTER), frozenset({"10.246.1.255", "10.246.2.255"}))
DEAF = """table inet deaf { chain in { type filter hook prerouting priority -400;
  icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  drop
}; }
"""
"""Hosts that answer nothing: every packet is one that the test sent."""


@dataclass(frozen=True)
class Known:
    """A packet that was sent, and what conntrack knows of it when it comes."""

    sent: Sent
    ct: Conntrack


@dataclass(frozen=True)
class Inferred:
    """One way that a packet may have gone."""

    visits: tuple
    """(family, table, base chain, rules that matched with their verdicts, verdict) in order."""
    out: str
    """`left`, `right`, or empty: it stays in the router."""
    last: Packet
    """As it left the last hook."""
    legacy: tuple
    """Rules of iptables-legacy that matched, in order: of those there is no trace."""
    sure: bool
    """Nothing was unknown on the way: every rule that matched is known, not only the ends."""
    verdict: str = "accept"
    """Of the last hook."""

    def fits(self, told, out):
        """Whether this is what the kernel told."""
        if self.sure:
            return (self.visits, self.out) == (told, out)
        return (ends(self.visits), self.out) == (ends(told), out)


@pytest.fixture(scope="module")
def bench(_alone):
    with topology.routed("-agree") as made:
        for host, addresses in ((made.left, (*LEFT4, *LEFT6)), (made.right, (*RIGHT4, *RIGHT6))):
            for address in addresses[1:]:
                if address not in (host.ip4, host.ip6):
                    size = "64 nodad" if ":" in address else "24"
                    address_text, _, option = size.partition(" ")
                    host.where.ip(f"address add {address}/{address_text} dev eth0 {option}")
        for address in (*RIGHT4, *RIGHT6):
            topology.meet(made.left.where, made.right.where, address)
        for address in (*LEFT4, *LEFT6):
            topology.meet(made.right.where, made.left.where, address)
        for key in ("all", "default", "to-left", "to-right"):
            made.router.sysctl(f"ipv4/conf/{key}/rp_filter", 0)
            made.router.sysctl(f"ipv4/conf/{key}/send_redirects", 0)
        for host in (made.left, made.right):
            host.where.run("nft", "-f", "-", stdin=DEAF)
        origins = {"left": made.left.where, "right": made.right.where, "router": made.router}
        referee = rule_referee.Referee(made.router, origins)
        try:
            yield made.router, referee
        finally:
            referee.close()


# Packets


def originals(dice, numbers):
    """The first packets of as many connections."""
    made = {}
    for number in numbers:
        sent = original(dice, number)
        while any(way in made for way in ways_of(sent)):
            sent = original(dice, number)
        made[ways_of(sent)[0]] = Known(sent, first_ct(sent))
    return list(made.values())


def ways_of(sent):
    """What tells its connection from others, as each side sees it."""
    goal = sent.dport if sent.protocol not in ICMP.values() else sent.sport
    ends = (sent.saddr, sent.sport), (sent.daddr, goal)
    return (sent.protocol, *ends), (sent.protocol, *ends[::-1])


def original(dice, number):
    v6 = dice.random() < 0.5
    left, right, router, far = (
        (LEFT6, RIGHT6, ROUTER6, FAR6) if v6 else (LEFT4, RIGHT4, ROUTER4, FAR4)
    )
    origin = dice.choices(("left", "right", "router"), weights=(6, 2, 2))[0]
    own = {"left": (*left, far), "right": (*right, far), "router": router}[origin]
    goals = {"left": (*right, *right, *router), "right": (*left, *router)}
    dport = dice.choice(rule_dice.PORTS)
    protocol = dice.choice((socket.IPPROTO_TCP, socket.IPPROTO_UDP, ICMP[v6]))
    return Sent(
        number,
        origin,
        dice.choice(own),
        dice.choice(goals.get(origin, (*left, *right))),
        protocol,
        # Its own port, so that it is a connection of its own; some have one that rules name
        # (but not on both sides: NAT can make that the answer to another's).
        sport=dice.choice((own_port(number), own_port(number), 1000 if dport != 1000 else 1)),
        dport=dport,
        tcp_flags=dice.choices((SYN, ACK, RST, FIN_ACK), weights=(6, 2, 1, 1))[0],
        icmp_type=dice.choices(ECHO[v6], weights=(5, 1))[0],
        ttl=dice.choice((64, 64, 64, 32, 255)),
        dscp=dice.choice((0, 0, 8, 46)),
        mark=dice.choice((0, *rule_dice.MARKS)) if origin == "router" else 0,
    )


def own_port(number):
    return 10000 + number % 40000


ICMP = {False: socket.IPPROTO_ICMP, True: socket.IPPROTO_ICMPV6}
ECHO = {False: (8, 0), True: (128, 129)}


def tuple_of(sent):
    ports = sent.protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    return Tuple(sent.saddr, sent.daddr, *((sent.sport, sent.dport) if ports else (None, None)))


def inverse(one):
    return Tuple(one.daddr, one.saddr, one.dport, one.sport)


def first_ct(sent):
    """Of the first packet of a connection; some cannot be one (nf_conntrack_proto_*)."""
    impossible = (sent.protocol == socket.IPPROTO_TCP and sent.tcp_flags not in (SYN, ACK)) or (
        sent.protocol in ICMP.values() and sent.icmp_type != ECHO[sent.v6][0]
    )
    if impossible:
        return Conntrack("invalid")
    one = tuple_of(sent)
    return Conntrack("new", frozenset(), "original", 0, 0, one, inverse(one))


def followers(known, inferred, arrived, numbers):
    """A second packet of each connection that came through, and then an answer."""
    for one, way in zip(known, inferred, strict=True):
        ct = way.last.ct
        if one.sent.number not in arrived or ct.state != "new" or not way.out:
            continue
        side, network = arrived[one.sent.number]
        found = parse(0x86DD if one.sent.v6 else 0x0800, network)
        at_goal = Tuple(
            found["src.address"], found["dst.address"], found.get("src.port"), found.get("dst.port")
        )
        # An answer to where it came from would not come through the router.
        answered = at_goal.saddr in ROUTER or device(at_goal.saddr) != f"to-{side}"
        if {at_goal.saddr, one.sent.saddr} & {FAR4, FAR6} or not answered:
            continue
        translated = {
            "snat": (at_goal.saddr, at_goal.sport) != (ct.original.saddr, ct.original.sport),
            "dnat": (at_goal.daddr, at_goal.dport) != (ct.original.daddr, ct.original.dport),
        }
        status = {"confirmed"} | {word for word, is_set in translated.items() if is_set}
        confirmed = replace(ct, status=frozenset(status), reply=inverse(at_goal))
        yield Known(replace(one.sent, number=next(numbers)), confirmed)
        answer = Sent(
            next(numbers), side, at_goal.daddr, at_goal.saddr, one.sent.protocol,
            sport=at_goal.dport or icmp_id(network, v6=one.sent.v6), dport=at_goal.sport or 0,
            tcp_flags=SYN_ACK, icmp_type=ECHO[one.sent.v6][1], sequence=2,
        )  # fmt: skip
        yield Known(
            answer,
            replace(
                confirmed,
                state="established",
                status=confirmed.status | {"seen-reply"},
                direction="reply",
            ),
        )


def icmp_id(network, *, v6):
    at = (40 if v6 else 20) + 4
    return int.from_bytes(network[at : at + 2], "big")


def packet_of(known):
    """What enters the router's first hook."""
    sent = known.sent
    ports = sent.protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    icmp = sent.protocol in ICMP.values()
    routed = device(sent.daddr)
    here = sent.origin == "router"
    return Packet(
        family="ip6" if sent.v6 else "ip",
        saddr=sent.saddr,
        daddr=sent.daddr,
        protocol=sent.protocol,
        sport=sent.sport if ports else None,
        dport=sent.dport if ports else None,
        tcp_flags=sent.tcp_flags if sent.protocol == socket.IPPROTO_TCP else None,
        icmp_type=sent.icmp_type if icmp else None,
        icmp_code=0 if icmp else None,
        iif="" if here else f"to-{sent.origin}",
        oif=routed if here else "",
        mark=sent.mark,
        ct=known.ct,
        length_bytes=len(sent.data()),
        ttl=sent.ttl,
        dscp=sent.dscp,
        packet_type="host",
    )


def device(address):
    network = ":1::" if ":" in address else ".1."
    return "to-left" if network in address else "to-right"


# What is inferred


def infer(ruleset, known):
    """Every way that the packet may have gone, as far as the rules tell."""
    packet = packet_of(known)
    here = known.sent.origin == "router"
    start = Inferred((), "", packet, (), sure=True)
    return list(through(ruleset, "output" if here else "prerouting", start))


def through(ruleset, hook, way):
    """The ways from one hook on."""
    answer = evaluate(ruleset, hook, way.last, HOST)
    for verdict in answer.candidates:
        visits = way.visits + tuple(visit(end) for end in verdict.ends if not is_legacy(end))
        after = verdict.packet
        legacy = way.legacy + tuple(
            one.rule for end in verdict.ends if is_legacy(end) for one in end.walk
        )
        sure = way.sure and not answer.unknown
        gone = Inferred(visits, "", after, legacy, sure, verdict.verdict)
        if verdict.verdict != "accept" or hook == "input":
            yield gone
        elif hook == "postrouting":
            yield replace(gone, out=after.oif.removeprefix("to-"))
        elif hook == "prerouting" and after.daddr not in ROUTER:
            after = replace(after, oif=device(after.daddr), ttl=after.ttl - 1)
            yield from through(ruleset, "forward", replace(gone, last=after))
        elif hook == "prerouting":
            yield from through(ruleset, "input", gone)
        else:
            after = replace(after, oif=device(after.daddr))
            yield from through(ruleset, "postrouting", replace(gone, last=after))


def is_legacy(end):
    """Of what xtables keeps the kernel has no trace."""
    return end.base.backend == XT_LEGACY


def ends(visits):
    """What decided in each base chain: its last rule, or its policy."""
    return tuple(
        (*place, None if policy else steps[-1][:2], verdict)
        for *place, steps, verdict, policy in visits
    )


def visit(end):
    told = {"reject": "drop"}
    steps = tuple(
        (one.rule.chain, one.rule.handle, told.get(one.verdict, one.verdict)) for one in end.walk
    )
    place = end.base.family, end.base.table, end.base.name
    return (*place, steps, told.get(end.verdict, end.verdict), end.rule is None)


def traced(ruleset, visits):
    """The kernel's visits in the same terms, without those of tables that came later."""
    return tuple(
        (one.family, one.table, one.chain, tuple(one.steps), one.verdict, one.by_policy)
        for one in visits
        if (one.family, one.table, False) in ruleset.tables
    )


# Rounds


def load_nft(router, dice, *, nat):
    """Load a random ruleset without the rules that nft refuses (it names their lines)."""
    lines = rule_dice.ruleset(dice, POOLS, nat=nat).splitlines()
    for _ in range(TRIES):
        text = "\n".join(lines)
        try:
            return router.run("nft", "-f", "-", stdin=text)
        except CommandFailedError as error:
            refused = {int(line) for line in re.findall(r"/dev/stdin:(\d+):", str(error))}
            # Rejecting is not allowed everywhere that a jump may come from: that is the kernel's.
            lines = [
                line.replace("reject", "drop")
                for number, line in enumerate(lines, 1)
                if number not in refused or not line.startswith("\t")
            ]
    raise AssertionError(text)


def load_xt(router, dice, backend):
    for tool, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        router.run(f"{tool}-{backend}-restore", stdin=xt_dice.restore(dice, POOLS, family))


def read(router, reader):
    """The ruleset, as the tools print it."""

    def save(tool):
        return router.run(f"{tool}-save", "-c")

    ruleset = reader.read(
        Texts(
            nft=router.run("nft", "-a", "-j", "list", "ruleset").encode(),
            chains=router.run("nft", "list", "chains"),
            iptables=save("iptables-nft"),
            ip6tables=save("ip6tables-nft"),
            iptables_legacy=save("iptables-legacy"),
            ip6tables_legacy=save("ip6tables-legacy"),
        )
    )
    # A tracer that runs beside has a table of its own here, which lets everything pass.
    ours = {key: one for key, one in ruleset.tables.items() if not key[1].startswith("tracer-")}
    return replace(ruleset, tables=ours)


class Score:
    """What was compared, and every disagreement."""

    def __init__(self):
        self.packets = self.certain = self.visits = self.rules = 0
        self.disagreements = []

    def compare(self, seed, ruleset, known, ways, visits, arrived):
        """One packet; the way that the kernel took, of those inferred."""
        told = traced(ruleset, visits)
        out = arrived.get(known.sent.number, ("", b""))[0]
        self.packets += 1
        self.certain += len(ways) == 1
        self.visits += len(told)
        self.rules += sum(len(one[3]) for one in told)
        fitting = [way for way in ways if way.fits(told, out)]
        if not fitting:
            self.disagreements.append((seed, ruleset, known, ways, told, out))
        return fitting[0] if fitting else ways[0]

    @property
    def agreement(self):
        """Share of the packets of which the kernel's way was inferred."""
        return 1 - len(self.disagreements) / self.packets

    def __str__(self):
        return (
            f"{self.packets} packets, {self.visits} base chains, {self.rules} rules that matched: "
            f"{self.agreement:.3%} agree, {self.certain / self.packets:.1%} without an unknown"
        )

    def explain(self):
        """The first disagreements, so that each can be looked at."""
        for seed, ruleset, known, ways, told, out in self.disagreements[:5]:
            yield f"seed {seed}: {known}\n  kernel: {told} out {out!r}"
            yield from (f"  inferred: {way.visits} out {way.out!r}" for way in ways[:3])
            named = {(*one[:2], *step[:2]) for way in (told, ways[0].visits) for one in way
                     for step in one[3]}  # fmt: skip
            for family, table, chain, handle in sorted(named):
                for rule in ruleset.tables[family, table, False].chains[chain].rules:
                    if rule.handle == handle:
                        yield f"    {family} {table} {chain} {handle}: {rule.text}"


def play(bench, score, seed, load):
    """One ruleset, its packets, and what followed them."""
    router, referee = bench
    dice = Random(seed)  # noqa: S311 - a test that can be repeated, no secret
    router.run("nft", "flush", "ruleset")
    router.run("conntrack", "-F", check=False)
    load(router, dice)
    ruleset = read(router, Reader())
    assert not ruleset.incomplete
    router.run("nft", "-f", "-", stdin=rule_referee.TRACE)
    numbers = iter(range(1 + dice.randrange(30000), 0xFFFF))
    first = originals(dice, [next(numbers) for _ in range(PACKETS)])
    ways, arrived = judged(referee, score, seed, ruleset, first, numbers)
    later = list(followers(first, ways, arrived, numbers))
    second, answers = later[::2], later[1::2]
    again, _ = judged(referee, score, seed, ruleset, second, numbers)
    marked = [
        Known(one.sent, replace(one.ct, mark=way.last.ct.mark))
        for one, way in zip(answers, again, strict=True)
    ]
    judged(referee, score, seed, ruleset, marked, numbers)


def count_legacy(bench, seed):
    """A legacy ruleset, packet by packet: the rules that counted, and those inferred to."""
    router, referee = bench
    dice = Random(seed)  # noqa: S311 - a test that can be repeated, no secret
    router.run("nft", "flush", "ruleset")
    empty_legacy(router)
    router.run("conntrack", "-F", check=False)
    load_xt(router, dice, "legacy")
    router.run("nft", "-f", "-", stdin=rule_referee.TRACE)
    reader, numbers = Reader(), iter(range(1 + dice.randrange(30000), 0xFFFF))
    before = read(router, reader)
    for known in originals(dice, [next(numbers) for _ in range(LEGACY_PACKETS)]):
        number = next(numbers)
        last = Sent(number, "left", LEFT4[0], RIGHT4[0], socket.IPPROTO_UDP, own_port(number), 9)
        way, final = (infer(before, one)[0] for one in (known, Known(last, first_ct(last))))
        if not all(one.out or one.verdict == "drop" for one in (way, final)):
            continue  # the router itself answers, and its answer would count too
        _, arrived = referee.send([known.sent], last)
        after = read(router, reader)
        counted = Counter(
            {
                place(one.rule): one.packets
                for one in moved(before, after)
                if one.rule.comment != xt_dice.BACKGROUND
            }
        )
        inferred = Counter(place(rule) for rule in way.legacy + final.legacy)
        yield known, way, counted, inferred, arrived.get(known.sent.number, ("", b""))[0]
        before = after


def empty_legacy(router):
    for tool in ("iptables", "ip6tables"):
        router.run(f"{tool}-legacy-restore", stdin=xt_dice.nothing())


def place(rule):
    return rule.family, rule.table, rule.chain, rule.index


def judged(referee, score, seed, ruleset, packets, numbers):
    """Send packets and compare each; (the way of each, where they came out)."""
    last = Sent(next(numbers), "left", LEFT4[0], RIGHT4[0], socket.IPPROTO_UDP, 9, 9)
    visits, arrived = referee.send([known.sent for known in packets], last)
    ways = [
        score.compare(
            seed, ruleset, known, infer(ruleset, known), visits[known.sent.number], arrived
        )
        for known in packets
    ]
    return ways, arrived


def run_rounds(bench, load, rounds, base):
    score, start = Score(), time.monotonic()
    for number in range(rounds):
        play(bench, score, f"{SEED}-{base}-{number}", load)
    print(f"{base}: {rounds} rulesets in {time.monotonic() - start:.0f} s: {score}")
    print("\n".join(score.explain()))
    assert score.packets >= rounds * PACKETS
    assert score.rules > score.packets / 2
    assert score.agreement >= AGREEMENT, "\n".join(score.explain())


@pytest.mark.parametrize("nat", [False, True], ids=["filter", "nat"])
def test_nftables(bench, nat):
    run_rounds(bench, lambda router, dice: load_nft(router, dice, nat=nat), ROUNDS, f"nft-{nat}")


def test_iptables_nft(bench):
    run_rounds(bench, lambda router, dice: load_xt(router, dice, "nft"), ROUNDS, "iptables-nft")


def test_nftables_and_iptables_together(bench):
    def load(router, dice):
        load_nft(router, dice, nat=False)
        load_xt(router, dice, "nft")

    run_rounds(bench, load, ROUNDS // 2, "both")


def test_iptables_legacy(bench):
    """Of what xtables keeps there is no trace: what each packet moved are the counters."""
    rulesets, packets, rules, disagreements = max(4, ROUNDS // 4), 0, 0, []
    for number in range(rulesets):
        seed = f"{SEED}-legacy-{number}"
        for known, way, counted, inferred, out in count_legacy(bench, seed):
            packets += 1
            rules += counted.total()
            if (counted, way.out) != (inferred, out):
                disagreements.append(f"{seed}: {known}\n {counted - inferred} {inferred - counted}")
    empty_legacy(bench[0])
    agreement = 1 - len(disagreements) / packets
    print(f"legacy: {rulesets} rulesets: {packets} packets, {rules} rules that counted: ", end="")
    print(f"{agreement:.3%} agree")
    assert rules > packets / 2
    assert agreement >= AGREEMENT, "\n".join(disagreements[:5])
