"""Random rules for iptables-restore, of what rules of real nodes are made of."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from lab.rule_dice import MARKS, PORTS

if TYPE_CHECKING:
    from random import Random

    from lab.rule_dice import Pools

HOOKS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
BACKGROUND = "background"
"""Comment of rules for packets that no test sent."""
NEIGHBOURS_AND_GROUPS = (130, 131, 132, 133, 134, 135, 136, 137, 143)
REJECTS = {"ip": "icmp-port-unreachable", "ip6": "icmp6-port-unreachable"}


def restore(dice: Random, pools: Pools, family: str) -> str:
    """Text for iptables-restore (or ip6tables-restore): some of the tables."""
    tables = [name for name in HOOKS if dice.random() < 0.7]
    return "".join(_table(dice, pools, family, name) for name in tables)


def nothing() -> str:
    """Text for iptables-restore that leaves every table empty, with policy ACCEPT."""
    chains = {name: "".join(f":{hook} ACCEPT [0:0]\n" for hook in HOOKS[name]) for name in HOOKS}
    return "".join(f"*{name}\n{lines}COMMIT\n" for name, lines in chains.items())


def _table(dice: Random, pools: Pools, family: str, name: str) -> str:
    users = [f"{name}-{number}" for number in range(dice.randint(1, 4))]
    lines = [f"*{name}"]
    for hook in HOOKS[name]:
        policy = "DROP" if name == "filter" and dice.random() < 0.1 else "ACCEPT"
        lines.append(f":{hook} {policy} [0:0]")
    lines += [f":{user} - [0:0]" for user in users]
    for hook in HOOKS[name]:
        lines += _background(hook) if (family, name != "nat") == ("ip6", True) else []
        for _ in range(dice.randint(0, 5)):
            lines.append(f"-A {hook} {_rule(dice, pools, family, (name, hook), users)}")
    for number, user in enumerate(users):
        for _ in range(dice.randint(1, 5)):
            place = name, ""
            lines.append(f"-A {user} {_rule(dice, pools, family, place, users[number + 1 :])}")
    return "\n".join([*lines, "COMMIT", ""])


def _background(hook: str) -> list[str]:
    """What hosts say of themselves at any time meets only these rules."""
    head = f"-A {hook} -p ipv6-icmp -m comment --comment {BACKGROUND} -m icmp6 --icmpv6-type"
    return [f"{head} {kind} -j ACCEPT" for kind in NEIGHBOURS_AND_GROUPS]


def _rule(dice: Random, pools: Pools, family: str, place: tuple[str, str], below: list[str]) -> str:
    matches = [_address(dice, pools, family)] if dice.random() < 0.5 else []
    protocol = dice.choice(("", "", "tcp", "udp", "icmp"))
    if protocol == "icmp" and family == "ip6":
        protocol = "ipv6-icmp"
    hook = place[1]
    if hook and dice.random() < 0.3:
        matches.append(_device(dice, pools, hook))
    if protocol:
        matches.append(_transport(dice, protocol))
    if dice.random() < 0.5:
        matches.append(_more(dice, pools, family, place[0]))
    return " ".join([*matches, _target(dice, pools, family, place, below)])


def _negated(dice: Random) -> str:
    return "! " if dice.random() < 0.25 else ""


def _address(dice: Random, pools: Pools, family: str) -> str:
    one = dice.choice(pools.ip4 if family == "ip" else pools.ip6)
    prefix = dice.choice(("", "/24", "/30") if family == "ip" else ("", "/64", "/126"))
    return f"{_negated(dice)}{dice.choice(('-s', '-d'))} {one}{prefix}"


def _device(dice: Random, pools: Pools, hook: str) -> str:
    ways = {"PREROUTING": ("-i",), "INPUT": ("-i",), "FORWARD": ("-i", "-o")}.get(hook, ("-o",))
    return f"{_negated(dice)}{dice.choice(ways)} {dice.choice((*pools.devices, 'to-+', 'lo'))}"


def _transport(dice: Random, protocol: str) -> str:
    one, two = sorted(dice.sample(PORTS, 2))
    head = f"-p {protocol}"
    if protocol == "icmp":
        return f"{head} -m icmp {_negated(dice)}--icmp-type {dice.choice(('8', '0', '3/1'))}"
    if protocol == "ipv6-icmp":
        return f"{head} -m icmp6 {_negated(dice)}--icmpv6-type {dice.choice(('128', '129', '1/4'))}"
    forms = [
        f"-m {protocol} {_negated(dice)}--dport {one}",
        f"-m {protocol} {_negated(dice)}--dport {one}:{two}",
        f"-m {protocol} --sport {one}:{two} {_negated(dice)}--dport 1:{two}",
        f"-m multiport {_negated(dice)}--dports {one},{two}",
        f"-m multiport --ports {one}:{two},9999",
        "",
    ]
    if protocol == "tcp":
        forms += [
            f"-m tcp {_negated(dice)}--tcp-flags SYN,ACK SYN",
            "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
            "-m tcp --tcp-flags RST RST",
        ]
    return f"{head} {dice.choice(forms)}"


def _more(dice: Random, pools: Pools, family: str, table: str) -> str:
    mark, no = dice.choice(MARKS), _negated(dice)
    one, two = sorted(dice.sample(pools.ip4 if family == "ip" else pools.ip6, 2), key=_number)
    hops = "-m ttl --ttl-lt 64" if family == "ip" else "-m hl --hl-lt 64"
    states = ("NEW", "RELATED,ESTABLISHED", "INVALID", "NEW,INVALID", "RELATED,ESTABLISHED,DNAT",
              "SNAT", "UNTRACKED")  # fmt: skip
    forms = [
        f"-m mark {no}--mark {mark:#x}/0x4000", f"-m mark {no}--mark {mark:#x}",
        f"-m iprange {no}--src-range {one}-{two}", f"-m iprange {no}--dst-range {one}-{two}",
        f"-m length {no}--length 0:60", hops, "-m comment --comment \"a 'quoted' \\\"word\\\"\"",
        f"-m dscp {no}--dscp 0x2e", "-m pkttype --pkt-type unicast",
    ]  # fmt: skip
    if table != "raw":
        forms += [
            f"-m conntrack {no}--ctstate {dice.choice(states)}",
            f"-m conntrack {no}--ctstate {dice.choice(states)}",
            f"-m connmark {no}--mark {mark:#x}/0x4000", "-m conntrack --ctdir ORIGINAL",
            f"-m conntrack {no}--ctstatus CONFIRMED",
        ]  # fmt: skip
    if family == "ip":
        # Of IPv6 the kernel asks its routes, which are not in the question.
        forms += [f"-m addrtype {no}--dst-type LOCAL", f"-m addrtype {no}--src-type LOCAL"]
    return dice.choice(forms)


def _number(address: str) -> int:
    return int(ip_address(address))


def _target(
    dice: Random, pools: Pools, family: str, place: tuple[str, str], below: list[str]
) -> str:
    table, hook = place
    mark = dice.choice(MARKS)
    if below and dice.random() < 0.45:
        return f"{dice.choice(('-j', '-j', '-g'))} {dice.choice(below)}"
    plain = ["-j ACCEPT", "-j RETURN", ""]
    if table == "nat":
        return dice.choice([*plain, *_nat(dice, pools, family, hook)])
    forms = [*plain, "-j DROP"]
    if table == "mangle":
        masks = "--nfmask 0xffff --ctmask 0xffff"
        forms = [
            *plain,
            f"-j MARK --set-xmark {mark:#x}/0xffffffff",
            "-j MARK --set-xmark 0x4000/0x4000",
            "-j MARK --set-xmark 0x4000/0x0",
            f"-j CONNMARK --save-mark {masks}",
            f"-j CONNMARK --restore-mark {masks}",
            f"-j CONNMARK --set-xmark {mark:#x}/0xffffffff",
        ]
    if table == "raw" and dice.random() < 0.3:
        forms = ["-j CT --notrack"]
    if table == "filter":
        forms += [f"-j REJECT --reject-with {REJECTS[family]}"]
    return dice.choice(forms)


def _nat(dice: Random, pools: Pools, family: str, hook: str) -> list[str]:
    goal = dice.choice(pools.nat4 if family == "ip" else pools.nat6)
    if hook == "POSTROUTING":
        return ["-j MASQUERADE"]
    if hook in {"PREROUTING", "OUTPUT"}:
        return [f"-j DNAT --to-destination {goal}"]
    return []
