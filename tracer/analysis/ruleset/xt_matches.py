"""Matches of iptables-save → tests (iptables-extensions(8)).

Whatever is not modelled is `Unknowable`, with its text: it is never taken for a yes or a no.
"""

from __future__ import annotations

from functools import reduce
from ipaddress import ip_address
from operator import or_
from typing import TYPE_CHECKING

from tracer.analysis.ruleset import values
from tracer.analysis.ruleset.steps import (
    Binary,
    Concat,
    Constant,
    Either,
    Field,
    Interval,
    Match,
    Named,
    Unknowable,
    Wildcard,
    exactly,
    within,
)
from tracer.analysis.ruleset.xt_options import Option, masked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracer.analysis.ruleset.steps import Elements, Expression, Test

_NETWORKS = {"ip": "ip", "ip6": "ip6"}
_XT_CT_STATUS = {"NONE": 0, "EXPECTED": 1, "SEEN_REPLY": 2, "ASSURED": 4, "CONFIRMED": 8}
_ALWAYS = frozenset({"comment", "nfacct"})
"""What says yes whatever the packet; so does `recent --set`, which but writes down."""
_ALL_PROTOCOLS = frozenset({"0", "all"})
_ANY_ICMP = frozenset({"any", "255"})


def tests(module: str, options: Sequence[Option], family: str) -> Iterator[Test]:
    """What `-m module` with these options asks of the packet; module "" is what every rule has."""
    if module in _ALWAYS or (module == "recent" and Option("--set") in options):
        return
    handlers = _MODULES.get(module)
    if handlers is None or any(option.name not in handlers for option in options):
        if handlers is None or options:
            yield _unknowable(module, options)
        return
    for option in options:
        try:
            yield from handlers[option.name](option, family)
        except (ValueError, KeyError):
            yield _unknowable(module, [option])


def _unknowable(module: str, options: Sequence[Option]) -> Unknowable:
    named = f"-m {module}" if module else ""
    return Unknowable(" ".join(filter(None, (named, *(option.text for option in options)))))


def _match(option: Option, key: Expression, goal: Elements | Expression) -> Match:
    return Match(key, goal, negated=option.negated, text=option.text)


# What every rule has


def _address(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, family: str) -> Iterator[Test]:
        key = Field(f"{_NETWORKS[family]} {name}")
        try:
            yield _match(option, key, within(values.network(option.word)))
        except ValueError:
            # A mask with holes: 10.0.0.1/255.0.0.255.
            address, _, mask = option.word.partition("/")
            bits = int(ip_address(mask))
            goal = exactly(int(ip_address(address)) & bits)
            yield _match(option, Binary("&", key, Constant(bits)), goal)

    return handler


def _protocol(option: Option, _family: str) -> Iterator[Test]:
    if option.word not in _ALL_PROTOCOLS:
        number = values.literal("inet_proto", option.word)
        yield _match(option, Field("meta l4proto"), exactly(number))


def _device(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        device = option.word
        part = Wildcard(device[:-1]) if device.endswith("+") else Interval(device, device)
        yield _match(option, Field(name), within(part))

    return handler


def _present(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        yield Match(Field(name), exactly(""), negated=not option.negated, text=option.text)

    return handler


def _bridged(option: Option, _family: str) -> Iterator[Test]:
    missing = (Match(Field(f"physdev {way}"), exactly("")) for way in ("in", "out"))
    yield Either(tuple(missing), negated=not option.negated, text=option.text)


def _fragment(option: Option, _family: str) -> Iterator[Test]:
    key = Field("ip fragment")
    yield Match(key, exactly(0), negated=not option.negated, text=option.text)


# Transport


def _ranges(word: str, separator: str = ":", limit: int = 65535) -> Iterator[Interval]:
    for item in word.split(","):
        low, colon, high = item.partition(separator)
        first = int(low or "0", 0)
        yield Interval(first, int(high or str(limit), 0) if colon else first)


def _numbers(name: str, limit: int = 65535) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        yield _match(option, Field(name), within(*_ranges(option.word, limit=limit)))

    return handler


def _either_port(option: Option, _family: str) -> Iterator[Test]:
    goal = within(*_ranges(option.word))
    both = (Match(Field(name), goal) for name in ("th sport", "th dport"))
    yield Either(tuple(both), option.negated, option.text)


def _tcp_flags(option: Option, _family: str) -> Iterator[Test]:
    looked, wanted = (_flags(word) for word in option.words)
    key = Binary("&", Field("tcp flags"), Constant(looked))
    yield _match(option, key, exactly(wanted))


def _flags(word: str) -> int:
    return reduce(or_, (values.TCP_FLAGS[flag.lower()] for flag in word.split(",")), 0)


def _icmp(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        if option.word in _ANY_ICMP:
            return
        kind, slash, code = option.word.partition("/")
        number = exactly(values.literal(f"{name}_type", kind))
        both = [Match(Field(f"{name} type"), number)]
        if slash:
            both.append(Match(Field(f"{name} code"), exactly(int(code))))
        if option.negated:
            either = tuple(Match(m.key, m.goal, negated=True) for m in both)
            yield Either(either, text=option.text)
        else:
            yield from (Match(m.key, m.goal, text=option.text) for m in both)

    return handler


# Conntrack and marks


def _ct_state(option: Option, _family: str) -> Iterator[Test]:
    words = [word.lower() for word in option.word.split(",")]
    asked = []
    for name, known in (("ct state", values.CT_STATES), ("ct status", values.CT_STATUS)):
        bits = reduce(or_, (known[word] for word in words if word in known), 0)
        if bits:
            asked.append(Match(Field(name), Constant(bits), "bits"))
    if sum(word in values.CT_STATES or word in {"snat", "dnat"} for word in words) < len(words):
        raise ValueError(option.text)
    # A packet without an entry has a state and no status: that says no, and negated yes.
    yield Either(tuple(asked), option.negated, option.text)


def _ct_status(option: Option, _family: str) -> Iterator[Test]:
    words = option.word.split(",")
    bits = reduce(or_, (_XT_CT_STATUS[word] for word in words), 0)
    operator = "bits" if bits else "in"
    goal = Constant(bits) if bits else exactly(0)
    yield Match(Field("ct status"), goal, operator, option.negated, option.text)


def _ct_direction(option: Option, _family: str) -> Iterator[Test]:
    goal = exactly(values.WORDS["ct_dir"][option.word.lower()])
    yield _match(option, Field("ct direction"), goal)


def _ct_address(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        yield _match(option, Field(name), within(values.network(option.word)))

    return handler


def _ct_protocol(option: Option, _family: str) -> Iterator[Test]:
    goal = exactly(values.literal("inet_proto", option.word))
    yield _match(option, Field("ct protocol"), goal)


def _mark(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        value, mask = masked(option.word)
        yield _match(option, Binary("&", Field(name), Constant(mask)), exactly(value))

    return handler


# Others


def _address_type(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        goal = exactly(*option.word.lower().split(","))
        yield _match(option, Field(f"fib {name} type"), goal)

    return handler


def _mac(option: Option, _family: str) -> Iterator[Test]:
    yield _match(option, Field("ether saddr"), exactly(option.word.lower()))


def _address_range(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, family: str) -> Iterator[Test]:
        low, _, high = option.word.partition("-")
        interval = Interval(int(ip_address(low)), int(ip_address(high or low)))
        yield _match(option, Field(f"{_NETWORKS[family]} {name}"), within(interval))

    return handler


def _ipset(option: Option, _family: str) -> Iterator[Test]:
    name, ways = option.words
    key = Concat(tuple(Constant(way) for way in ways.split(",")))
    yield _match(option, key, Named(name, ipset=True))


def _compared(name: str, operator: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        goal = Constant(int(option.word, 0))
        if operator == "==":
            yield _match(option, Field(name), exactly(goal.value))
        else:
            yield Match(Field(name), goal, operator, text=option.text)

    return handler


def _owner(name: str) -> Callable[[Option, str], Iterator[Test]]:
    def handler(option: Option, _family: str) -> Iterator[Test]:
        yield _match(option, Field(name), within(*_ranges(option.word, "-")))

    return handler


def _dscp(option: Option, family: str) -> Iterator[Test]:
    yield _match(option, Field(f"{_NETWORKS[family]} dscp"), exactly(int(option.word, 0)))


def _packet_type(option: Option, _family: str) -> Iterator[Test]:
    yield _match(option, Field("meta pkttype"), exactly(values.literal("pkt_type", option.word)))


def _nothing(_option: Option, _family: str) -> Iterator[Test]:
    return iter(())


def _ports(protocol: str) -> dict[str, Callable[[Option, str], Iterator[Test]]]:
    return {f"--{way}": _numbers(f"{protocol} {way}") for way in ("sport", "dport")}


_MODULES: dict[str, dict[str, Callable[[Option, str], Iterator[Test]]]] = {
    "": {
        "-s": _address("saddr"), "-d": _address("daddr"), "-p": _protocol, "-f": _fragment,
        "-i": _device("meta iifname"), "-o": _device("meta oifname"),
        "-4": _nothing, "-6": _nothing,
    },
    "tcp": {**_ports("tcp"), "--tcp-flags": _tcp_flags},
    **{protocol: _ports(protocol) for protocol in ("udp", "sctp", "dccp", "udplite")},
    "multiport": {
        "--sports": _numbers("th sport"), "--dports": _numbers("th dport"), "--ports": _either_port,
    },
    "icmp": {"--icmp-type": _icmp("icmp")},
    "icmp6": {"--icmpv6-type": _icmp("icmpv6")},
    "state": {"--state": _ct_state},
    "conntrack": {
        "--ctstate": _ct_state, "--ctstatus": _ct_status, "--ctdir": _ct_direction,
        "--ctproto": _ct_protocol,
        "--ctorigsrc": _ct_address("ct original saddr"),
        "--ctorigdst": _ct_address("ct original daddr"),
        "--ctreplsrc": _ct_address("ct reply saddr"),
        "--ctrepldst": _ct_address("ct reply daddr"),
        "--ctorigsrcport": _numbers("ct original proto-src"),
        "--ctorigdstport": _numbers("ct original proto-dst"),
        "--ctreplsrcport": _numbers("ct reply proto-src"),
        "--ctrepldstport": _numbers("ct reply proto-dst"),
    },
    "mark": {"--mark": _mark("meta mark")},
    "connmark": {"--mark": _mark("ct mark")},
    "addrtype": {"--src-type": _address_type("saddr"), "--dst-type": _address_type("daddr")},
    "physdev": {
        "--physdev-in": _device("physdev in"), "--physdev-out": _device("physdev out"),
        "--physdev-is-in": _present("physdev in"), "--physdev-is-out": _present("physdev out"),
        "--physdev-is-bridged": _bridged,
    },
    "mac": {"--mac-source": _mac},
    "iprange": {"--src-range": _address_range("saddr"), "--dst-range": _address_range("daddr")},
    "set": {"--match-set": _ipset, "--return-nomatch": _nothing},
    "owner": {"--uid-owner": _owner("meta skuid"), "--gid-owner": _owner("meta skgid")},
    "length": {"--length": _numbers("meta length")},
    "ttl": {
        "--ttl-eq": _compared("ip ttl", "=="), "--ttl-lt": _compared("ip ttl", "<"),
        "--ttl-gt": _compared("ip ttl", ">"),
    },
    "hl": {
        "--hl-eq": _compared("ip6 hoplimit", "=="), "--hl-lt": _compared("ip6 hoplimit", "<"),
        "--hl-gt": _compared("ip6 hoplimit", ">"),
    },
    "dscp": {"--dscp": _dscp},
    "pkttype": {"--pkt-type": _packet_type},
}  # fmt: skip
"""Module → option → the tests that it makes. An option that is not here makes its whole module
unknowable: it may change what the others mean."""
