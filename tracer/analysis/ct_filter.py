"""A small filter language over conntrack entries: `tcp port 80 and not src 10.0.0.7`.

Terms are joined by `and`, or just stand side by side; `not` in front of one turns it round.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.addresses import MAPPED, address_bytes
from tracer.analysis.conntrack import SCTP_STATES, STATUS, TCP_STATES
from tracer.errors import TracerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]
    Matcher = Callable[[NDArray[np.void]], Mask]

HINT = (
    "terms: tcp udp icmp icmpv6 sctp ip ip6, host|src|dst ADDRESS, net CIDR, port|sport|dport N,"
    " zone N, mark N, state NAME, status NAME; joined by `and`, each may have `not` in front"
)
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "dccp": 33, "gre": 47}
FAMILIES = {"ip": 2, "ip6": 10}
SIDES = (("orig", "saddr"), ("orig", "daddr"), ("reply", "saddr"), ("reply", "daddr"))
PORTS = (("orig", "sport"), ("orig", "dport"), ("reply", "sport"), ("reply", "dport"))
SOURCES, GOALS = (0, 3), (1, 2)
"""Of SIDES and PORTS: what the opener is or looks like, and whom it asks for or gets."""
_ICMP = (1, 58)


def parse_filter(text: str) -> Matcher:
    """Read a filter; empty matches everything. TracerError where it is not understood.

    The result takes (n,) ENTRY and returns (n,) whether each matches.
    """
    words = iter(text.split())
    terms = list(_terms(words, text))
    return lambda rows: np.logical_and.reduce([np.ones(len(rows), bool)] + [t(rows) for t in terms])


def any_address(rows: NDArray[np.void], wanted: frozenset[bytes]) -> Mask:
    """Whether one of the four addresses of each row is in `wanted` (16 bytes each)."""
    found = np.zeros(len(rows), bool)
    for way, end in SIDES:
        column = np.ascontiguousarray(rows[way][end]).view("V16").ravel().tolist()
        found |= np.fromiter((one in wanted for one in column), bool, len(rows))
    return found


def _terms(words: Iterator[str], text: str) -> Iterator[Matcher]:
    for word in words:
        if word in ("and", "&&"):
            continue
        is_not = word in ("not", "!")
        try:
            term = _term(next(words) if is_not else word, words)
        except (ValueError, StopIteration):
            raise TracerError(f"filter '{text}': not understood at '{word}'", HINT) from None
        yield _negated(term) if is_not else term


def _negated(term: Matcher) -> Matcher:
    return lambda rows: ~term(rows)


def _term(word: str, words: Iterator[str]) -> Matcher:
    """One term; ValueError or StopIteration where it is none."""
    if word in PROTOCOLS or word in FAMILIES:
        return _kind(word)
    if word in ("host", "src", "dst", "net"):
        ends = {"src": SOURCES, "dst": GOALS}.get(word, range(4))
        return _network(next(words), [SIDES[end] for end in ends])
    if word in ("port", "sport", "dport"):
        ends = {"sport": SOURCES, "dport": GOALS}.get(word, range(4))
        return _port(int(next(words)), [PORTS[end] for end in ends])
    if word in ("zone", "mark"):
        number = int(next(words), 0)
        return lambda rows: np.asarray(rows[word] == number)
    if word in ("state", "status"):
        return {"state": _state, "status": _status}[word](next(words))
    raise ValueError(word)


def _kind(word: str) -> Matcher:
    if word in FAMILIES:
        return lambda rows: np.asarray(rows["family"] == FAMILIES[word])
    return lambda rows: np.asarray(rows["orig"]["protocol"] == PROTOCOLS[word])


def _network(text: str, sides: Sequence[tuple[str, str]]) -> Matcher:
    network = ip_network(text, strict=False)
    length = network.prefixlen + (len(MAPPED) * 8 if network.version == 4 else 0)  # noqa: PLR2004
    mask = np.frombuffer(((1 << 128) - (1 << 128 - length)).to_bytes(16, "big"), np.uint8)
    wanted = np.frombuffer(address_bytes(str(network.network_address)), np.uint8)

    def matches(rows: NDArray[np.void]) -> Mask:
        hits = [((rows[way][end] & mask) == wanted).all(axis=1) for way, end in sides]
        return np.asarray(np.logical_or.reduce(hits))

    return matches


def _port(number: int, ports: Sequence[tuple[str, str]]) -> Matcher:
    def matches(rows: NDArray[np.void]) -> Mask:
        # Of ICMP these fields hold type and code.
        has_ports = ~np.isin(rows["orig"]["protocol"], _ICMP)
        hits = [rows[way][end] == number for way, end in ports]
        return np.asarray(np.logical_or.reduce(hits) & has_ports)

    return matches


def _state(text: str) -> Matcher:
    name = text.upper()
    numbers = {
        (PROTOCOLS[protocol], names.index(name))
        for protocol, names in (("tcp", TCP_STATES), ("sctp", SCTP_STATES))
        if name in names
    }
    if not numbers:
        raise ValueError(name)

    def matches(rows: NDArray[np.void]) -> Mask:
        protocol, state = rows["orig"]["protocol"], rows["proto_state"]
        hits = [(protocol == one) & (state == number) for one, number in numbers]
        return np.asarray(np.logical_or.reduce(hits))

    return matches


def _status(text: str) -> Matcher:
    name = text.lower()
    if name in ("unreplied", "unassured"):
        bit = 1 << STATUS.index({"unreplied": "seen-reply", "unassured": "assured"}[name])
        return lambda rows: np.asarray(rows["status"] & bit == 0)
    bit = 1 << STATUS.index(name)
    return lambda rows: np.asarray(rows["status"] & bit > 0)
