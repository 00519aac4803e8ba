"""Random nftables rulesets, of what rules of real nodes are made of. One seed, one ruleset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
PRIORITIES = (-300, -150, -50, 0, 0, 10, 50, 300)
"""Some twice, so that two chains often share one; -200 is conntrack's."""
RAW = -300
PORTS = (53, 80, 443, 1000, 2000, 8080, 30080)
MARKS = (0, 1, 0x4000, 0x4001, 0x20000)


@dataclass(frozen=True, slots=True)
class Pools:
    """Addresses that packets and rules are thrown of."""

    ip4: tuple[str, ...]
    ip6: tuple[str, ...]
    nat4: tuple[str, ...]
    """Where a DNAT may send a packet."""
    nat6: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(slots=True)
class Table:
    """One table being thrown."""

    dice: Random
    pools: Pools
    family: str
    name: str
    sets: dict[str, str] = field(default_factory=dict)
    """Name → what it holds: `addr`, `port`, `service`, `verdict`."""
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For `nft -f`."""
        return f"table {self.family} {self.name} {{\n" + "\n".join(self.lines) + "\n}\n"


def ruleset(dice: Random, pools: Pools, *, nat: bool) -> str:
    """A whole ruleset: one to three tables, with sets, chains that jump, and base chains."""
    families = dice.choices(("ip", "ip6", "inet"), weights=(2, 2, 3), k=dice.randint(1, 3))
    return "".join(
        _table(Table(dice, pools, family, f"t{number}"), nat=nat)
        for number, family in enumerate(families)
    )


def _table(table: Table, *, nat: bool) -> str:
    inner = [f"c{number}" for number in range(table.dice.randint(2, 5))]
    _sets(table, inner)
    for number, name in reversed(list(enumerate(inner))):
        _chain(table, name, "", inner[number + 1 :], "filter")
    for number in range(table.dice.randint(1, 4)):
        hook = table.dice.choice(HOOKS)
        priority = table.dice.choice(PRIORITIES)
        policy = table.dice.choices(("accept", "drop"), weights=(9, 1))[0]
        base = f"type filter hook {hook} priority {priority}; policy {policy};"
        if priority == RAW and hook in {"prerouting", "output"} and table.dice.random() < 0.3:
            base += f"\n\t{_address(table, hook)} notrack"
        _chain(table, f"b{number}", base, inner, hook)
    if nat:
        for hook, priority in (("prerouting", -100), ("postrouting", 100), ("output", -100)):
            if table.dice.random() < 0.6:
                base = f"type nat hook {hook} priority {priority + table.dice.choice((0, 0, 5))};"
                _chain(table, f"n-{hook}", base, (), f"nat {hook}")
    return table.text()


def _sets(table: Table, chains: list[str]) -> None:
    dice = table.dice
    v6 = table.family == "ip6" or (table.family == "inet" and dice.random() < 0.5)
    kind, version = ("ipv6_addr", "ip6") if v6 else ("ipv4_addr", "ip")
    addresses = list(table.pools.ip6 if v6 else table.pools.ip4)
    some = dice.sample(addresses, 3)
    table.sets["addresses"] = version
    table.lines.append(f"set addresses {{ type {kind}; elements = {{ {', '.join(some)} }}; }}")
    wide = "fd00:10:246:2::/65" if v6 else "10.246.2.0/29"
    table.lines.append(
        f"set networks {{ type {kind}; flags interval; elements = {{ {wide}, {_far(v6=v6)} }}; }}"
    )
    services = {
        f"{dice.choice(addresses)} . {dice.choice(('tcp', 'udp'))} . {dice.choice(PORTS)}"
        for _ in range(4)
    }
    verdicts = [f"{key} : {_mapped(dice, chains)}" for key in sorted(services)]
    concat = f"type {kind} . inet_proto . inet_service"
    table.lines.append(f"set services {{ {concat}; elements = {{ {', '.join(services)} }}; }}")
    table.lines.append(
        f"map dispatch {{ {concat} : verdict; elements = {{ {_list(verdicts)} }}; }}"
    )
    ranges = [f"{some[0]} . 1-1024 : {_mapped(dice, chains)}", f"{some[1]} . 2000 : continue"]
    table.lines.append(
        f"map ranges {{ type {kind} . inet_service : verdict; flags interval;"
        f" elements = {{ {_list(ranges)} }}; }}"
    )
    # A chain must be there before an element names it.
    table.lines[:0] = [f"chain {name} {{ }}" for name in chains]


def _far(*, v6: bool) -> str:
    return "2001:db8::/32" if v6 else "192.0.2.0/24"


def _list(items: list[str]) -> str:
    return ", ".join(items)


def _mapped(dice: Random, chains: list[str]) -> str:
    return dice.choice(("drop", "accept", "return", f"jump {dice.choice(chains)}",
                        f"goto {dice.choice(chains)}"))  # fmt: skip


def _chain(table: Table, name: str, base: str, below: list[str] | tuple, hook: str) -> None:
    rules = [_rule(table, below, hook) for _ in range(table.dice.randint(1, 6))]
    body = "\n".join(f"\t{line}" for line in rules)
    table.lines.append(f"chain {name} {{ {base}\n{body}\n}}")


def _rule(table: Table, below: list[str] | tuple, hook: str) -> str:
    dice = table.dice
    matches = [_match(table, hook) for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3)))]
    if hook.startswith("nat "):
        return " ".join([*matches, _nat(table, hook)])
    middle = dice.choices(("", "counter", _assign(dice)), weights=(5, 1, 2))[0]
    end = _verdict(table, below, decides=bool(matches))
    if end.endswith("map") and not below:
        end = "accept"
    return " ".join(word for word in (*matches, middle, end) if word) or "counter"


def _verdict(table: Table, below: list[str] | tuple, *, decides: bool) -> str:
    dice = table.dice
    chains = [f"jump {name}" for name in below] * 2 + [f"goto {name}" for name in below]
    maps = _maps(table) if below and table.family != "inet" else []
    plain = ["accept", "return", "continue", "", ""]
    ends = ["drop", "reject", "accept"] if decides else []
    return dice.choice(dice.choice([chains or plain, plain, ends or plain, maps or plain]))


def _maps(table: Table) -> list[str]:
    version = table.family
    anonymous = ", ".join(f"{port} : {word}" for port, word in zip(PORTS, (
        "accept", "continue", "drop", "return"), strict=False))  # fmt: skip
    return [
        f"{version} daddr . meta l4proto . th dport vmap @dispatch",
        f"{version} daddr . th dport vmap @ranges",
        f"th dport vmap {{ {anonymous} }}",
        "meta l4proto vmap { tcp : accept, udp : continue }",
        "ct state vmap { established : accept, invalid : drop, new : continue }",
    ]


def _assign(dice: Random) -> str:
    mark = dice.choice(MARKS)
    return dice.choice((
        f"meta mark set {mark}", f"meta mark set meta mark | {mark:#x}",
        f"meta mark set meta mark & {~mark & 0xFFFFFFFF:#x}",
        f"meta mark set meta mark ^ {mark:#x}",
        "meta mark set ct mark", f"ct mark set {mark}", "ct mark set meta mark",
    ))  # fmt: skip


def _nat(table: Table, hook: str) -> str:
    dice, v6 = table.dice, table.family == "ip6"
    if table.family == "inet":
        v6 = dice.random() < 0.5
    version, proto = ("ip6", "ipv6") if v6 else ("ip", "ipv4")
    only = f"meta nfproto {proto} " if table.family == "inet" else ""
    goal = dice.choice(table.pools.nat6 if v6 else table.pools.nat4)
    to = f"{version} to" if table.family == "inet" else "to"
    if hook == "nat postrouting":
        return dice.choice((f"{only}masquerade", "accept", "return", f"{only}counter"))
    shown = f"[{goal}]" if v6 else goal
    with_port = f"meta l4proto {{ tcp, udp }} {only}dnat {to} {shown}:{dice.choice(PORTS)}"
    return dice.choice((f"{only}dnat {to} {goal}", with_port, "accept", "return"))


def _match(table: Table, hook: str) -> str:
    dice = table.dice
    makers = (_address, _address, _transport, _transport, _conntrack, _mark, _device, _other)
    return dice.choice(makers)(table, hook)


def _version(table: Table) -> str:
    return table.dice.choice(("ip", "ip6")) if table.family == "inet" else table.family


def _address(table: Table, _hook: str) -> str:
    dice, version = table.dice, _version(table)
    pool = table.pools.ip6 if version == "ip6" else table.pools.ip4
    way = dice.choice(("saddr", "daddr"))
    one, two, three = dice.sample(pool, 3)
    prefix = 64 if version == "ip6" else 24
    forms = [
        one, f"!= {one}", f"{one}/{prefix}", f"!= {one}/{prefix}", f"{{ {one}, {two} }}",
        f"!= {{ {one}, {two}, {three} }}",
    ]  # fmt: skip
    if table.sets["addresses"] == version:
        forms += ["@addresses", "!= @addresses", "@networks"]
    if table.sets["addresses"] == version and way == "daddr" and dice.random() < 0.3:
        return f"{version} daddr . meta l4proto . th dport @services"
    return f"{version} {way} {dice.choice(forms)}"


def _transport(table: Table, _hook: str) -> str:
    dice = table.dice
    one, two = sorted(dice.sample(PORTS, 2))
    protocol = dice.choice(("tcp", "udp", "th", "sctp"))
    need = "meta l4proto { tcp, udp } " if protocol == "th" else ""
    port = f"{need}{protocol} {dice.choice(('sport', 'dport'))}"
    return dice.choice((
        f"{port} {one}", f"{port} != {one}", f"{port} {one}-{two}", f"{port} != {one}-{two}",
        f"{port} {{ {one}, {two} }}", f"{port} {{ {one}-{two}, 60000 }}", f"{port} >= {two}",
        f"{port} < {two}", "meta l4proto tcp", "meta l4proto != udp",
        "meta l4proto { icmp, ipv6-icmp }", "tcp flags syn", "tcp flags & (syn | ack) == syn",
        "tcp flags != syn", "tcp flags { syn, syn | ack }", "icmp type echo-request",
        "icmpv6 type { echo-request, echo-reply }", "icmp type != echo-request",
    ))  # fmt: skip


def _conntrack(table: Table, _hook: str) -> str:
    mark = table.dice.choice(MARKS)
    return table.dice.choice((
        "ct state new", "ct state established,related", "ct state { new, invalid }",
        "ct state != new", "ct state invalid", "ct state untracked", "ct direction reply",
        "ct direction original", f"ct mark {mark}", f"ct mark & 0x4000 == {mark & 0x4000:#x}",
        "ct status confirmed", "ct status seen-reply", "ct status dnat", "ct state ! established",
    ))  # fmt: skip


def _mark(table: Table, _hook: str) -> str:
    one, two = sorted(table.dice.sample(MARKS, 2))
    return table.dice.choice((
        f"meta mark {one}", f"meta mark != {one}", f"meta mark {{ {one}, {two} }}",
        f"meta mark {one}-{two}", f"meta mark & 0x4000 == {two & 0x4000:#x}",
        f"meta mark & 0x4000 != {one & 0x4000:#x}", f"meta mark > {one}",
    ))  # fmt: skip


def _device(table: Table, _hook: str) -> str:
    one, two = table.pools.devices
    key = table.dice.choice(("iifname", "oifname"))
    return table.dice.choice((
        f'{key} "{one}"', f'{key} != "{two}"', f'{key} "to-*"', f'{key} {{ "{one}", "{two}" }}',
        f'{key} != "to-*"', f'{key} "lo"',
    ))  # fmt: skip


def _other(table: Table, hook: str) -> str:
    # No `meta protocol`: where it contradicts the rest of a rule, nft does not list it.
    version = _version(table)
    ttl = "ip6 hoplimit" if version == "ip6" else "ip ttl"
    forms = [
        f"{ttl} < 64", f"{ttl} >= 64", f"{version} dscp ef", f"{version} dscp != {{ cs0, cs1 }}",
        "meta length > 60", "meta nfproto ipv6" if table.family == "inet" else "meta length <= 60",
        "meta pkttype host",
    ]  # fmt: skip
    if hook in {"prerouting", "input", "output", "forward"}:
        forms += ["fib daddr type local", "fib daddr type != local", "fib saddr type local"]
    return table.dice.choice(forms)
