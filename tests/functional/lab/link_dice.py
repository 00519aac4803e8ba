"""Random rules of the families bridge, arp, netdev and inet at ingress, for frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.rule_dice import MARKS, PORTS

if TYPE_CHECKING:
    from random import Random

    from lab.rule_dice import Pools

PRIORITIES = (-300, -150, -50, 1, 1, 10, 50)
"""Never exactly 0 (see the kernel's br_netfilter); some twice, so that two chains share one."""
BRIDGE_HOOKS = ("prerouting", "forward", "postrouting", "prerouting", "forward")
HOOKS = {"bridge": BRIDGE_HOOKS, "arp": ("input",)}
DEVICE_HOOKS = {"netdev": ("ingress", "egress"), "inet": ("ingress",)}


def ruleset(dice: Random, pools: Pools, macs: tuple[str, ...]) -> str:
    """A table of bridge, one of arp, and one or two of others, each with chains that jump."""
    families = ["bridge", "arp", *dice.sample(("bridge", "netdev", "inet"), dice.randint(1, 2))]
    return "".join(
        _table(dice, pools, macs, family, f"l{number}") for number, family in enumerate(families)
    )


def _table(dice: Random, pools: Pools, macs: tuple[str, ...], family: str, name: str) -> str:
    lines = []
    inner = [f"c{number}" for number in range(2)]
    for at, chain in reversed(list(enumerate(inner))):
        lines += _chain(dice, pools, macs, chain, "", inner[at + 1 :])
    for number in range(dice.randint(1, 4)):
        policy = dice.choices(("accept", "drop"), weights=(9, 1))[0]
        where = dice.choice(DEVICE_HOOKS.get(family) or HOOKS[family])
        if family in DEVICE_HOOKS:
            where += f' device "{dice.choice(pools.devices)}"'
        base = f"type filter hook {where} priority {dice.choice(PRIORITIES)}; policy {policy};"
        lines += _chain(dice, pools, macs, f"b{number}", base, inner)
    return "\n".join([f"table {family} {name} {{", *lines, "}", ""])


def _chain(
    dice: Random, pools: Pools, macs: tuple[str, ...], name: str, base: str, below: list[str]
) -> list[str]:
    rules = [f"\t{_rule(dice, pools, macs, below)}" for _ in range(dice.randint(1, 5))]
    return [f"chain {name} {{ {base}", *rules, "}"]


def _rule(dice: Random, pools: Pools, macs: tuple[str, ...], below: list[str]) -> str:
    matches = [_match(dice, pools, macs) for _ in range(dice.choice((0, 1, 1, 2)))]
    mark = dice.choice(MARKS)
    middle = dice.choices(("", "counter", f"meta mark set {mark}"), weights=(5, 1, 1))[0]
    jumps = [f"jump {one}" for one in below] + [f"goto {one}" for one in below]
    ends = ["drop", "accept"] if matches else []
    plain = ["accept", "return", "continue", ""]
    end = dice.choice(dice.choice([jumps or [""], plain, ends or [""], [_map(dice)]]))
    return " ".join(word for word in (*matches, middle, end) if word) or "counter"


def _map(dice: Random) -> str:
    return dice.choice((
        "ether type vmap { ip : accept, arp : continue }",
        "meta l4proto vmap { tcp : return, udp : continue }",
        "th dport vmap { 53 : accept, 80 : continue, 443 : drop }",
    ))  # fmt: skip


def _match(dice: Random, pools: Pools, macs: tuple[str, ...]) -> str:
    one, two = dice.sample(pools.ip4, 2)
    six, other = dice.sample(pools.ip6, 2)
    port, far = sorted(dice.sample(PORTS, 2))
    mark, mac, device = dice.choice(MARKS), dice.choice(macs), dice.choice(pools.devices)
    way, end = dice.choice(("saddr", "daddr")), dice.choice(("sport", "dport"))
    return dice.choice((
        f"ip {way} {one}", f"ip {way} != {one}", f"ip {way} {{ {one}, {two} }}",
        f"ip {way} {one}/24", f"ip6 {way} {six}", f"ip6 {way} {{ {six}, {other} }}",
        f"ip6 {way} != {six}", f"tcp {end} {port}", f"udp {end} {port}-{far}",
        f"udp {end} != {port}", "meta l4proto tcp", "meta l4proto { icmp, ipv6-icmp }",
        f"ether {way} {mac}", f"ether {way} != {mac}", "ether type arp", "ether type != ip",
        "ether type { ip, ip6 }", "meta protocol ip", "arp operation request",
        "arp operation != reply", f"arp saddr ip {one}", f"arp daddr ip != {two}",
        f"arp saddr ether {mac}", f"meta mark {mark}", f"meta mark != {mark}",
        f'iifname "{device}"', f'iifname != "{device}"', f'oifname "{device}"',
        "ip ttl < 64", "ip6 hoplimit >= 64", "ip dscp ef", "tcp flags syn",
    ))  # fmt: skip
