"""A node's rules, one packet that meets them, and the verdict: passive, immutable data.

Names are netfilter's: families `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`; hooks
`ingress`, `prerouting`, `input`, `forward`, `output`, `postrouting`, `egress`; chain types
`filter`, `nat`, `route`. Addresses are canonical text, as in `tracer.model`. In what
describes a packet, None means not known: a match that needs it is neither yes nor no.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracer.analysis.ruleset import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NFT, XT_NFT, XT_LEGACY = "nft", "iptables-nft", "iptables-legacy"
"""Who keeps a table. An iptables-nft table is nf_tables to the kernel (it has handles and can
be traced), and iptables-save says what its rules mean; a legacy one is xtables' own, and a
node may have an `ip nat` of both at once."""

TableKey = tuple[str, str, bool]
"""(family, table, whether it is iptables-legacy's)."""


@dataclass(frozen=True, slots=True)
class Body:
    """What one rule says, without place and counters; the same object in every reading."""

    source: str | Sequence[Any]
    """A line of iptables-save without its counters (`-A INPUT -p tcp -j DROP`), or the
    expressions of libnftables' JSON."""
    comment: str = ""
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was already worked out of it: never read it, call `steps.steps`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule in its place."""

    family: str
    table: str
    chain: str
    index: int
    """Its place in the chain, from 0."""
    handle: int
    """nf_tables' handle, unique in its table; 0 where it has none (legacy) or it was not read."""
    body: Body
    packets: int | None = None
    """Of its counter; None where it does not count."""
    bytes: int | None = None
    backend: str = NFT

    @property
    def comment(self) -> str:
        """Its author's, empty for none."""
        return self.body.comment

    @property
    def text(self) -> str:
        """As the user would see it: nft's own notation, or the line of iptables-save."""
        source = self.body.source
        return source if isinstance(source, str) else render.rule_text(source, self.comment)


@dataclass(frozen=True, slots=True)
class Base:
    """What makes a chain a base chain: where it is hooked in."""

    type: str
    hook: str
    priority: int
    policy: str = "accept"
    """`accept` or `drop`."""
    devices: tuple[str, ...] = ()
    """Of the hooks ingress and egress."""


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain with its rules, in order."""

    family: str
    table: str
    name: str
    rules: tuple[Rule, ...] = ()
    base: Base | None = None
    """None: only jumped to."""
    handle: int = 0
    backend: str = NFT
    packets: int | None = None
    """Policy counter of iptables-save; None where there is none."""
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Set:
    """A named set or map of nf_tables, or an ipset."""

    family: str
    table: str
    """Empty for an ipset, which belongs to the network namespace."""
    name: str
    types: tuple[str, ...]
    """Types of its key, in order: `("ipv4_addr", "inet_proto", "inet_service")`; of an ipset
    its kind, `("hash:net,port",)`."""
    elements: Sequence[Any] = ()
    """As read: libnftables' JSON elements ([key, value] pairs of a map), or words of
    `ipset save`; `sets.members` makes sense of them."""
    maps_to: str = ""
    """Type of a map's values (`verdict`, `ipv4_addr`, …); empty for a set."""
    flags: frozenset[str] = frozenset()
    comment: str = ""
    handle: int = 0
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def changing(self) -> bool:
        """Whether packets or time change it, so that a reading is only a moment of it."""
        return bool(self.flags & {"dynamic", "timeout"})


@dataclass(frozen=True, slots=True)
class Table:
    """One table with all that is in it, by name."""

    family: str
    name: str
    handle: int = 0
    """Grows with every table made in the namespace; 0 for a legacy table."""
    backend: str = NFT
    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, Set] = field(default_factory=dict)
    """Sets and maps."""
    objects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`counter NAME`, `quota NAME`, `limit NAME`, … → as read."""
    flags: frozenset[str] = frozenset()
    """`dormant`: its base chains are not hooked in; `owner`; `persist`; `unreadable`: one of
    these, nft did not tell which."""

    @property
    def key(self) -> TableKey:
        """What tells it from every other table of the namespace."""
        return self.family, self.name, self.backend == XT_LEGACY


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All rules of one network namespace at one moment."""

    tables: Mapping[TableKey, Table] = field(default_factory=dict)
    ipsets: Mapping[str, Set] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    """What could not be read or joined, and what that costs."""
    incomplete: bool = False
    """Tables are missing: nothing that is concluded from it is certain."""


# What a packet is


@dataclass(frozen=True, slots=True)
class Tuple:
    """Addresses and ports of one direction of a connection."""

    saddr: str
    daddr: str
    sport: int | None = None
    dport: int | None = None


@dataclass(frozen=True, slots=True)
class Conntrack:
    """What conntrack says of the packet at the moment of the hook."""

    state: str | None = None
    """`new`, `established`, `related`, `invalid` (no entry), `untracked`."""
    status: frozenset[str] | None = None
    """Bits of IPS_*: `seen-reply`, `assured`, `confirmed`, `snat`, `dnat`, … Without
    `confirmed` this is the first packet of its connection: only those meet nat chains."""
    direction: str | None = None
    """`original` or `reply`."""
    mark: int | None = None
    zone: int | None = None
    original: Tuple | None = None
    reply: Tuple | None = None


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as it enters a hook."""

    family: str
    """`ip`, `ip6` or `arp`: what its network header is."""
    saddr: str | None = None
    daddr: str | None = None
    protocol: int | None = None
    """IP protocol number (of the last header, for IPv6)."""
    sport: int | None = None
    dport: int | None = None
    tcp_flags: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    iif: str | None = None
    """Name of the input device; "" where the hook has none."""
    oif: str | None = None
    iif_index: int | None = None
    oif_index: int | None = None
    mark: int | None = None
    ct: Conntrack = Conntrack()
    length_bytes: int | None = None
    """Of the whole IP packet."""
    ttl: int | None = None
    dscp: int | None = None
    fragment_offset: int | None = 0
    """Anything but 0 has no transport header."""
    ether_saddr: str | None = None
    ether_daddr: str | None = None
    ether_type: int | None = None
    arp_operation: int | None = None
    """Of ARP, whose addresses are those of the sender and the target."""
    arp_saddr: str | None = None
    """Hardware addresses in an ARP packet, as `ether_saddr`."""
    arp_daddr: str | None = None
    physin: str | None = None
    """Bridge port, where br_netfilter brought the packet here; "" for none."""
    physout: str | None = None
    packet_type: str | None = None
    """`host` (to us), `broadcast`, `multicast`, `other`."""
    uid: int | None = None
    """Of the socket that sends it."""
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What of the namespace itself rules can ask for."""

    local_addresses: frozenset[str] | None = None
    """Every address of its devices; 127.0.0.0/8 and ::1 need not be in it."""
    broadcast_addresses: frozenset[str] = frozenset()


# What comes out


@dataclass(frozen=True, slots=True)
class Passed:
    """A rule whose every match said yes, so that its verdict was taken."""

    rule: Rule
    verdict: str
    """`accept`, `drop`, `reject`, `queue`, `return`, `continue`, `jump NAME`, `goto NAME`."""


@dataclass(frozen=True, slots=True)
class End:
    """How one base chain ended."""

    base: Chain
    verdict: str
    """`accept`, `drop`, `reject`, `queue`, `stolen`, or `unknown` (an extension that is not
    modelled decided)."""
    rule: Rule | None
    """None: the policy of the base chain, or nf_tables' own end of it."""
    walk: tuple[Passed, ...] = ()
    """Every rule that matched, in order, as the kernel's trace would tell them."""

    @property
    def path(self) -> tuple[Rule, ...]:
        """The rules that jumped to where it ended: the last one's chain holds `rule`."""
        return jumps_to(self)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One possible fate of the packet at the hook."""

    verdict: str
    """As `End.verdict` of the last base chain walked."""
    ends: tuple[End, ...]
    """One for each base chain walked, in order; the last one decided. Empty: no chain here."""
    packet: Packet
    """As it leaves the hook: with what rules set, and after NAT."""
    assumed: tuple[str, ...] = ()
    """What had to be assumed to come here: `yes: statistic mode random …`, in order."""

    @property
    def rule(self) -> Rule | None:
        """The rule that decided; None: a policy, or nothing is hooked in here."""
        return self.ends[-1].rule if self.ends else None

    @property
    def chain(self) -> Chain | None:
        """The base chain that decided."""
        return self.ends[-1].base if self.ends else None

    @property
    def path(self) -> tuple[Rule, ...]:
        """The rules that jumped from the base chain to where it was decided."""
        return self.ends[-1].path if self.ends else ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a ruleset says to a packet at a hook: one verdict, or several candidates."""

    candidates: tuple[Verdict, ...]
    """At least one; without an unknown, exactly one. No two of them end by the same rules."""
    unknown: tuple[str, ...] = ()
    """Matches that were neither yes nor no, as the user reads them, in the order met."""
    cut: bool = False
    """There are more candidates than were followed, or rules that were not read."""

    @property
    def certain(self) -> bool:
        """Whether everything that can have happened ends by the same rules."""
        return len(self.candidates) == 1 and not self.cut

    @property
    def verdict(self) -> Verdict:
        """The candidate that assumed `yes` for all; the only one, if `certain`."""
        return self.candidates[0]


def jumps_to(end: End) -> tuple[Rule, ...]:
    """Of the rules of a walk those whose jumps or gotos are still open at its end."""
    opened: list[tuple[Rule, str]] = []
    for passed in end.walk:
        # Back in an outer chain: what was jumped to from there has returned.
        while opened and opened[-1][1] != passed.rule.chain:
            opened.pop()
        kind, _, target = passed.verdict.partition(" ")
        if kind in {"jump", "goto"}:
            opened.append((passed.rule, target))
    last = end.rule.chain if end.rule else end.base.name
    while opened and opened[-1][1] != last:
        opened.pop()
    return tuple(rule for rule, _ in opened)
