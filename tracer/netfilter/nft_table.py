"""The table that switches nf_tables' trace on: ours, and gone with the socket that made it.

Its base chains stand before all others in every hook. They decide nothing: they set the trace
mark of the chosen packets and accept, which in nf_tables ends nothing but the chain itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tracer.netfilter import nfnl
from tracer.netfilter.nfnl import attribute, be32, be64, nested, text

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

OWN = "tracer-"
"""How the names of our tables begin, a process's id after it."""
_OURS = re.compile(rf"{OWN}\d+")
NFNL_SUBSYS_NFTABLES = 10
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM = 0, 1, 2, 3, 6, 9, 12
GETCHAIN, GETRULE = 4, 7
NEWGEN, GETGEN = 15, 16
NFT_TABLE_F_OWNER = 2
"""6da61c4a2a7c, 5.12: the table goes with the socket, and no one else can change it."""
NFPROTO = {"ip": 2, "ip6": 10}
NFPROTO_INET, NFPROTO_NETDEV, NFPROTO_BRIDGE = 1, 5, 7
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS = {name: number for number, name in FAMILIES.items()}
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
"""By number: enum nf_inet_hooks, and the same in enum nf_br_hooks."""
INGRESS = {NFPROTO_NETDEV: 0, NFPROTO_INET: 5}
"""Family → number of the hook at a device, before all others."""
FIRST = -(1 << 31)
"""The lowest priority there is."""
RATE_PACKETS = 1000
"""Most packets a second that one of our rules chooses: each costs a message for every rule
that it matches."""

_META_PROTOCOL, _META_NFTRACE, _META_NFPROTO, _META_L4PROTO = 1, 12, 15, 16
_NETWORK, _TRANSPORT = 1, 2
_REGISTER, _VERDICT = 1, 0
_ADDRESSES = {"ip": ("pods4", 7, 4, (12, 16)), "ip6": ("pods6", 8, 16, (8, 24))}
"""Family → set, its key's type (libnftables' number) and size, offsets of the two addresses."""
_ETHERTYPES = {"ip": 0x0800, "ip6": 0x86DD}
_COMMENT = "tracer: marks packets to be traced, decides nothing, goes with its process"


@dataclass(frozen=True, slots=True)
class Match:
    """Packets to be traced: every field that is set must hold."""

    family: str = ""
    """`ip` or `ip6`; empty: both, and then no address is set."""
    protocol: int | None = None
    saddr: str = ""
    daddr: str = ""
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the table of one namespace shall mark."""

    matches: Sequence[Match] = (Match(),)
    """Any of them."""
    addresses: frozenset[str] | None = None
    """And the source or destination is one of these; None: whatever they are."""
    bridge: bool = False
    """In the bridge family's hooks too."""
    devices: frozenset[str] = frozenset()
    """At the ingress of these devices too."""


def generation(sock: socket.socket) -> int:
    """The namespace's ruleset generation: another number after every change."""
    for _, answer in nfnl.ask(sock, _message(GETGEN, 0, 0)):
        for kind, value in nfnl.attributes(answer, nfnl.BODY, len(answer)):
            if kind == 1:
                return int.from_bytes(value, "big")
    return 0


def has_tables(sock: socket.socket, family: int) -> bool:
    """Whether somebody has a table of this family in the namespace."""
    return bool(list(nfnl.ask(sock, _message(GETTABLE, nfnl.NLM_F_DUMP, family))))


def tables(sock: socket.socket) -> list[tuple[str, str]]:
    """(family, name) of every table; nft itself would read all rules to tell as much."""
    found = []
    for _, answer in nfnl.ask(sock, _message(GETTABLE, nfnl.NLM_F_DUMP, 0)):
        told = dict(nfnl.attributes(answer, nfnl.BODY, len(answer)))
        name = told.get(1, b"").rstrip(b"\0").decode(errors="replace")
        found.append((FAMILIES.get(answer[nfnl.HEADER.size], "?"), name))
    return found


def is_ours(table: str) -> bool:
    """Whether a tracer has made a table of this name; it decides nothing."""
    return bool(_OURS.fullmatch(table))


def ingress_devices(sock: socket.socket) -> frozenset[str]:
    """The devices at whose ingress somebody has a chain; a tracer is nobody."""
    found: set[bytes] = set()
    for family, ingress in INGRESS.items():
        for _, answer in nfnl.ask(sock, _message(GETCHAIN, nfnl.NLM_F_DUMP, family)):
            told = dict(nfnl.attributes(answer, nfnl.BODY, len(answer)))
            hook = dict(nfnl.attributes(told.get(4, b""), 0, len(told.get(4, b""))))
            table = told.get(1, b"").rstrip(b"\0").decode(errors="replace")
            if hook.get(1) == ingress.to_bytes(4, "big") and not is_ours(table):
                several = nfnl.attributes(hook.get(4, b""), 0, len(hook.get(4, b"")))
                one = hook.get(3)
                found |= {one} if one else {name for kind, name in several if kind == 1}
    return frozenset(name.rstrip(b"\0").decode(errors="replace") for name in found)


def rule_handles(sock: socket.socket, family: str, table: str, chain: str) -> tuple[int, ...]:
    """The handles of a chain's rules, in order; of family `ip` or `ip6`."""
    only = text(1, table) + text(2, chain)
    answers = nfnl.ask(sock, _message(GETRULE, nfnl.NLM_F_DUMP, NFPROTO[family], only))
    handles = []
    for _, answer in answers:
        told = dict(nfnl.attributes(answer, nfnl.BODY, len(answer)))
        handles.append(int.from_bytes(told.get(3, b""), "big"))
    return tuple(handles)


def rule_packets(
    sock: socket.socket, family: str, table: str, chain: str, handle: int
) -> int | None:
    """What the counter of one rule stands at; None where it has gone, or does not count."""
    one = text(1, table) + text(2, chain) + be64(3, handle)
    try:
        answers = list(nfnl.ask(sock, _message(GETRULE, 0, _NUMBERS[family], one)))
    except OSError:  # ENOENT: it has gone
        return None
    packets = None
    for _, answer in answers:
        told = dict(nfnl.attributes(answer, nfnl.BODY, len(answer)))
        for _, expression in nfnl.attributes(told.get(4, b""), 0, len(told.get(4, b""))):
            parts = dict(nfnl.attributes(expression, 0, len(expression)))
            if parts.get(1, b"").rstrip(b"\0") == b"counter":
                counter = dict(nfnl.attributes(parts[2], 0, len(parts[2])))
                packets = int.from_bytes(counter.get(2, b""), "big")
    return packets


def install(sock: socket.socket, name: str, wanted: Wanted, before: Wanted | None = None) -> None:
    """Make the table, in one transaction, in the place of the one made for `before`.

    It lives as long as `sock`. OSError where the kernel refuses: EINVAL or EOPNOTSUPP where it
    knows no owned tables.
    """
    requests = [
        _message(DELTABLE, nfnl.NLM_F_ACK, family, text(1, name)) for family in _families(before)
    ]
    for family in _families(wanted):
        requests += _table(family, name, wanted)
    nfnl.commit(sock, NFNL_SUBSYS_NFTABLES, requests)


def _families(wanted: Wanted | None) -> list[int]:
    if wanted is None:
        return []
    bridge = [NFPROTO_BRIDGE] if wanted.bridge else []
    return [NFPROTO_INET, *bridge, *([NFPROTO_NETDEV] if wanted.devices else [])]


def _message(kind: int, flags: int, family: int, body: bytes = b"") -> bytes:
    return nfnl.message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, family, body)


def _new(kind: int, family: int, body: bytes) -> bytes:
    flags = nfnl.NLM_F_ACK | nfnl.NLM_F_CREATE | nfnl.NLM_F_APPEND
    return _message(kind, flags, family, body)


def _table(family: int, name: str, wanted: Wanted) -> Iterator[bytes]:
    note = _COMMENT.encode() + b"\0"
    comment = bytes((0, len(note))) + note  # libnftnl's own type, length, value
    yield _new(NEWTABLE, family, text(1, name) + be32(2, NFT_TABLE_F_OWNER) + attribute(6, comment))
    if wanted.addresses is not None:
        yield from _sets(family, name, wanted.addresses)
    for hook, where in _hooks(family, wanted):
        chain = text(1, name) + text(3, hook) + nested(4, where) + be32(5, 1) + text(7, "filter")
        yield _new(NEWCHAIN, family, chain)
        for match in wanted.matches:
            for expressions in _alternatives(family, match, wanted.addresses):
                rule = text(1, name) + text(2, hook) + nested(4, *expressions, *_mark())
                yield _new(NEWRULE, family, rule)


def _hooks(family: int, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """(name, attributes) of the hook of each base chain."""
    if family == NFPROTO_NETDEV:
        devices = nested(4, *(text(1, device) for device in sorted(wanted.devices)))
        yield "ingress", be32(1, INGRESS[family]) + be32(2, FIRST) + devices
        return
    for number, hook in enumerate(HOOKS):
        yield hook, be32(1, number) + be32(2, FIRST)


def _sets(family: int, name: str, addresses: frozenset[str]) -> Iterator[bytes]:
    for number, (kind, (set_name, key_type, size, _)) in enumerate(_ADDRESSES.items(), 1):
        own = text(1, name) + text(2, set_name)
        key = be32(3, 0) + be32(4, key_type) + be32(5, size)
        yield _new(NEWSET, family, own + key + be32(10, number))
        packed = [
            ip_address(one).packed for one in sorted(addresses) if (":" in one) == (kind == "ip6")
        ]
        elements = [nested(1, nested(1, attribute(1, one))) for one in packed]
        if elements:
            body = text(1, name) + text(2, set_name) + be32(4, number) + nested(3, *elements)
            yield _new(NEWSETELEM, family, body)


def _alternatives(
    family: int, match: Match, addresses: frozenset[str] | None
) -> Iterator[list[bytes]]:
    """The expressions of each rule that together say `match`."""
    if addresses is None:
        yield _expressions(family, match)
        return
    for kind, (set_name, _, size, offsets) in _ADDRESSES.items():
        if match.family in ("", kind):
            own = Match(kind, match.protocol, match.saddr, match.daddr, match.sport, match.dport)
            for offset in offsets:
                yield [
                    *_expressions(family, own),
                    _load(_NETWORK, offset, size),
                    _expression("lookup", text(1, set_name), be32(2, _REGISTER)),
                ]


def _expressions(family: int, match: Match) -> list[bytes]:
    made: list[bytes] = []
    if match.family and family in (NFPROTO_BRIDGE, NFPROTO_NETDEV):
        made += [_meta(_META_PROTOCOL), _equals(_ETHERTYPES[match.family].to_bytes(2, "big"))]
    elif match.family:
        made += [_meta(_META_NFPROTO), _equals(bytes((NFPROTO[match.family],)))]
    if match.protocol is not None:
        made += [_meta(_META_L4PROTO), _equals(bytes((match.protocol,)))]
    if match.family:
        _, _, size, offsets = _ADDRESSES[match.family]
        for address, offset in zip((match.saddr, match.daddr), offsets, strict=True):
            if address:
                made += [_load(_NETWORK, offset, size), _equals(ip_address(address).packed)]
    for port, offset in ((match.sport, 0), (match.dport, 2)):
        if port is not None:
            made += [_load(_TRANSPORT, offset, 2), _equals(port.to_bytes(2, "big"))]
    return made


def _mark() -> list[bytes]:
    """Up to RATE_PACKETS a second: set the trace mark."""
    limit = be64(1, RATE_PACKETS) + be64(2, 1) + be32(3, RATE_PACKETS)
    return [
        _expression("limit", limit),
        _expression("immediate", be32(1, _REGISTER), nested(2, attribute(1, b"\1"))),
        _expression("meta", be32(2, _META_NFTRACE), be32(3, _REGISTER)),
        _expression("immediate", be32(1, _VERDICT), nested(2, nested(2, be32(1, 1)))),
    ]


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *parts))


def _meta(key: int) -> bytes:
    return _expression("meta", be32(2, key), be32(1, _REGISTER))


def _load(base: int, offset: int, size: int) -> bytes:
    return _expression("payload", be32(1, _REGISTER), be32(2, base), be32(3, offset), be32(4, size))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", be32(1, _REGISTER), be32(2, 0), nested(3, attribute(1, value)))
