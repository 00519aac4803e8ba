"""A tcpdump expression → what nf_tables can match of it: never less than the expression."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import product

from tracer.netfilter.nft_table import Match

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58, "ip": None, "ip6": None}
_FAMILIES = {"icmp": "ip", "icmp6": "ip6", "ip": "ip", "ip6": "ip6"}
_JOINS = ("and", "&&")
EVERYTHING = (Match(),)
MAX_MATCHES = 16
"""More would cost each packet more than it saves."""


def narrow(expression: str) -> tuple[Match, ...]:
    """Matches of which every wanted packet meets one; `EVERYTHING` where that is not clear.

    Understands `[proto] [src|dst] [host|port] VALUE` and bare protocols, joined by `and`.
    """
    words = expression.lower().split()
    matches: list[Match] = [Match()]
    while words:
        choices = _primitive(words)
        if choices is None:
            return EVERYTHING
        both = (_join(one, other) for one, other in product(matches, choices))
        matches = [match for match in both if match]
        if words and (words.pop(0) not in _JOINS or not words):
            return EVERYTHING
    return tuple(matches) if 0 < len(matches) <= MAX_MATCHES else EVERYTHING


def _primitive(words: list[str]) -> list[Match] | None:
    """Take one primitive off `words`: its alternatives, None if it is not understood."""
    base, qualified = Match(), False
    if words[0] in _PROTOCOLS:
        name = words.pop(0)
        base = Match(_FAMILIES.get(name, ""), _PROTOCOLS[name])
        qualified = True
    directions: tuple[str, ...] = ("s", "d")
    if words and words[0] in ("src", "dst"):
        directions, qualified = (words.pop(0)[0],), False
    if words and words[0] in ("host", "port"):
        kind = words.pop(0)
        value = words.pop(0) if words else ""
    elif qualified and (not words or words[0] in _JOINS):
        return [base]
    else:
        return None
    return _ends(base, kind, value, directions)


def _ends(base: Match, kind: str, value: str, directions: tuple[str, ...]) -> list[Match] | None:
    if kind == "port":
        if not value.isdecimal() or int(value) > 0xFFFF:  # noqa: PLR2004 - the highest port
            return None
        # Without a protocol tcpdump means any that has ports there: so do we.
        port = int(value)
        ports = {"s": replace(base, sport=port), "d": replace(base, dport=port)}
        return [ports[way] for way in directions]
    try:
        address = ip_address(value)
    except ValueError:
        return None
    family = "ip" if address.version == 4 else "ip6"  # noqa: PLR2004 - of IP
    if base.family not in ("", family):
        return None
    own = replace(base, family=family)
    addresses = {"s": replace(own, saddr=str(address)), "d": replace(own, daddr=str(address))}
    return [addresses[way] for way in directions]


def _join(one: Match, other: Match) -> Match | None:
    """Both at once; None where no packet can be both."""
    values = {}
    for name in Match.__dataclass_fields__:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine and theirs and mine != theirs:
            return None
        values[name] = mine or theirs
    return Match(**values)
