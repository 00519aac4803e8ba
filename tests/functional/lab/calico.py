"""Calico's rules for three pods: made from its documented chains, marks, comments and sets.

Not recorded: Felix's iptables mode, as published of real clusters, and its nftables mode (one
table `calico`, chains with the name of what was the table before, verdict maps by device, one
comment `cali:HASH; …`), as its documentation and the source of its renderer tell.

`client` and `web` are in namespace shop, `agent` in ops; shop/web-allow lets `client` come to
port 8765 of `web`, ops/default-deny nobody anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lab.wired import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.namespaces import Namespace

WEB_PORT = 8765
POLICIES = {"web": "shop/web-allow", "agent": "ops/default-deny"}
"""The NetworkPolicy that selects a pod, if one does."""
_ACCEPTED, _PASS, _BOTH = "0x10000/0x10000", "0x0/0x20000", "0x0/0x30000"


def ipset(version: int) -> str:
    """The ipset of those whom shop/web-allow lets come."""
    return f"cali{version}0s:DFfMZ2Sf_8YKJ6ybkR1pAy"


def nft_set(version: int) -> str:
    """The same of nftables mode, where names have no colon."""
    return ipset(version).replace(":", "-")


def device(key: str) -> str:
    """The node's device of the pod `namespace/name`."""
    return "cali" + hashlib.sha1(key.replace("/", ".").encode()).hexdigest()[:11]  # noqa: S324


def wires(keys: Mapping[str, str]) -> dict[str, Wire]:
    """Each pod is routed to, by a device that is named after it."""
    return {
        name: Wire(device(key), f"10.247.{n}.2/24", f"fd00:10:247:{n}::2/64")
        for n, (name, key) in enumerate(keys.items(), 1)
    }


def policy_chain(name: str, way: str) -> str:
    """`cali-pi-…` of the policy of a pod; `way` is i or o."""
    identity = f"knp/{POLICIES[name]}"
    digest = base64.urlsafe_b64encode(hashlib.sha256(identity.encode()).digest()).decode()
    return f"cali-p{way}-_{digest}"[:28]


@contextmanager
def rules(
    node: Namespace, tool: str, keys: Mapping[str, str], members: Mapping[int, str]
) -> Iterator[None]:
    """The rules of both IP versions for the block; `members` are whom shop/web-allow lets come."""
    for version, name in ((4, tool), (6, tool.replace("ip", "ip6", 1))):
        family = "inet6" if version == 6 else "inet"
        node.run("ipset", "create", ipset(version), "hash:net", "family", family)
        node.run("ipset", "add", ipset(version), members[version])
        node.run(f"{name}-restore", stdin=_text(version, keys))
    try:
        yield
    finally:
        node.run("nft", "flush", "ruleset")
        if tool == "iptables-legacy":
            for name in ("iptables", "ip6tables"):
                node.run(f"{name}-legacy-restore", stdin="*filter\nCOMMIT\n")
        node.run("ipset", "destroy")


@contextmanager
def left_out(node: Namespace, version: int, address: str) -> Iterator[None]:
    """shop/web-allow does not let this address come, for the block."""
    node.run("ipset", "del", ipset(version), address)
    try:
        yield
    finally:
        node.run("ipset", "add", ipset(version), address)


@contextmanager
def nft_rules(
    node: Namespace, keys: Mapping[str, str], members: Mapping[int, str]
) -> Iterator[None]:
    """The same rules in nftables mode."""
    for version in (4, 6):
        node.run("nft", "-f", "-", stdin=_nft_text(version, keys, members[version]))
    try:
        yield
    finally:
        for version in (4, 6):
            node.run("nft", "delete", "table", _family(version), "calico", check=False)


@contextmanager
def left_out_of_nft(node: Namespace, version: int, address: str) -> Iterator[None]:
    """shop/web-allow does not let this address come, for the block; in nftables mode."""
    element = (_family(version), "calico", nft_set(version), f"{{ {address} }}")
    node.run("nft", "delete", "element", *element)
    try:
        yield
    finally:
        node.run("nft", "add", "element", *element)


def _family(version: int) -> str:
    return "ip" if version == 4 else "ip6"


def _lines(version: int, keys: Mapping[str, str]) -> list[str]:
    """All rules as iptables has them, but for the hash; what stands in quotes is the comment."""
    lines = [
        "-A FORWARD -j cali-FORWARD",
        f'-A FORWARD "Policy explicitly accepted packet." -m mark --mark {_ACCEPTED} -j ACCEPT',
        "-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000",
        "-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch",
        "-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch",
    ]
    for name, key in keys.items():
        for way, flag, chain in (("i", "o", "tw"), ("o", "i", "fw")):
            dispatch = "to" if way == "i" else "from"
            own = f"cali-{chain}-{device(key)}"
            lines.append(f"-A cali-{dispatch}-wl-dispatch -{flag} {device(key)} -g {own}")
            lines += _endpoint(own, way, name, key.split("/")[0])
    for way in ("from", "to"):
        lines.append(f'-A cali-{way}-wl-dispatch "Unknown interface" -j DROP')
    lines += _policies(version, {key.split("/")[0] for key in keys.values()})
    return lines


def _text(version: int, keys: Mapping[str, str]) -> str:
    said = [_commented(line) for line in _lines(version, keys)]
    chains = dict.fromkeys(["INPUT", "OUTPUT", *(line.split()[1] for line in said)])
    heads = [f":{name} {'-' if '-' in name else 'ACCEPT'} [0:0]" for name in chains]
    return "\n".join(["*filter", *heads, *said, "COMMIT", ""])


def _nft_text(version: int, keys: Mapping[str, str], member: str) -> str:
    """Both base chains, a map for each dispatch, the set, and a chain for each of iptables."""
    chains: dict[str, list[str]] = {"FORWARD": []}
    maps: dict[str, list[str]] = {}
    for line in _lines(version, keys):
        _, chain, rest = line.split(" ", 2)
        if " -g " in line:  # -o DEVICE -g CHAIN
            way, device_name, _, target = rest.split()
            if chain not in maps:
                key = "iifname" if way == "-i" else "oifname"
                name = f"filter-{chain}"
                chains[chain] = [f'{key} vmap @{name} comment "cali:{_digest(name)};"']
            maps.setdefault(chain, []).append(f'"{device_name}" : goto filter-{target}')
        else:
            chains.setdefault(chain, []).append(_nft_rule(version, rest, _digest(line)))
    family = _family(version)
    kind = "ipv4_addr" if version == 4 else "ipv6_addr"
    parts = [
        f"set {nft_set(version)} {{ type {kind}; flags interval; elements = {{ {member} }}; }}"
    ]
    parts += [f"chain filter-{chain} {{ }}" for chain in chains if chain != "FORWARD"]
    parts += [f"map filter-{chain} {{ type ifname : verdict; elements = {{ {', '.join(some)} }}; }}"
              for chain, some in maps.items()]  # fmt: skip
    for chain, rules_ in chains.items():
        base = "type filter hook forward priority filter; " if chain == "FORWARD" else ""
        parts.append(f"chain filter-{chain} {{ {base}\n" + "\n".join(rules_) + "\n}")
    return f"table {family} calico {{\n" + "\n".join(parts) + "\n}\n"


_NFT = (
    (r"-m conntrack --ctstate RELATED,ESTABLISHED", r"ct state established,related"),
    (r"-m conntrack --ctstate INVALID", r"ct state invalid"),
    (r"-m mark --mark (\w+)/(\w+)", r"meta mark & \2 == \1"),
    (r"-([io]) cali\+", r'\1ifname "cali*"'),
    (r"-p tcp", r"meta l4proto tcp"),
    (r"-m set --match-set (\S+) src", r"FAMILY saddr @\1"),
    (r"-m multiport --dports (\d+)", r"tcp dport { \1 }"),
    (r"-j MARK --set-xmark 0x0/(\w+)", r"counter meta mark set mark & ~\1"),
    (r"-j MARK --set-xmark (\w+)/\w+", r"counter meta mark set mark or \1"),
    (r"-j (ACCEPT|DROP|RETURN)", lambda found: f"counter {found[1].lower()}"),
    (r"-j (\S+)", r"counter jump filter-\1"),
)


def _nft_rule(version: int, rest: str, digest: str) -> str:
    start, quote, words = rest.partition('"')
    said, _, end = words.partition('"')
    text = f"{start}{end}" if quote else rest
    for pattern, instead in _NFT:
        text = re.sub(pattern, instead, text)
    text = text.replace("FAMILY", _family(version)).replace(ipset(version), nft_set(version))
    text = re.sub(r"~(\w+)", lambda found: hex(0xFFFFFFFF ^ int(found[1], 16)), text)
    return f'{text.strip() or "continue"} comment "cali:{digest}; {said}"'.replace('; "', ';"')


def _digest(line: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(line.encode()).digest()).decode()[:16]


def _commented(line: str) -> str:
    """Every rule bears a hash of its place; what stands in quotes is a comment of its own."""
    flag, chain, rest = line.split(" ", 2)
    digest = _digest(line)
    start, quote, words = rest.partition('"')
    text, _, end = words.partition('"')
    own = f'-m comment --comment "cali:{digest}"'
    more = f' -m comment --comment "{text}"{end}' if quote else ""
    return f"{flag} {chain} {start}{own}{more}" if quote else f"{flag} {chain} {own} {rest}"


def _endpoint(chain: str, way: str, name: str, namespace: str) -> Iterator[str]:
    """What a packet to (`i`) or from (`o`) a pod runs through."""
    yield f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield f"-A {chain} -m conntrack --ctstate INVALID -j DROP"
    yield f"-A {chain} -j MARK --set-xmark {_BOTH}"
    if name in POLICIES and (way == "i" or name == "agent"):
        yield f'-A {chain} "Start of tier default" -j MARK --set-xmark {_PASS}'
        yield f"-A {chain} -m mark --mark {_PASS} -j {policy_chain(name, way)}"
        yield f'-A {chain} "Return if policy accepted" -m mark --mark {_ACCEPTED} -j RETURN'
        end = "End of tier default. Drop if no policies passed packet"
        yield f'-A {chain} "{end}" -m mark --mark {_PASS} -j DROP'
    yield f"-A {chain} -j cali-pr{way}-kns.{namespace}"
    yield f'-A {chain} "Return if profile accepted" -m mark --mark {_ACCEPTED} -j RETURN'
    yield f'-A {chain} "Drop if no profiles matched" -j DROP'


def _policies(version: int, namespaces: set[str]) -> Iterator[str]:
    ingress = policy_chain("web", "i")
    yield (
        f'-A {ingress} -p tcp "KubernetesNetworkPolicy {POLICIES["web"]} ingress" -m set'
        f" --match-set {ipset(version)} src -m multiport --dports {WEB_PORT}"
        f" -j MARK --set-xmark {_ACCEPTED}"
    )
    yield f"-A {ingress} -m mark --mark {_ACCEPTED} -j RETURN"
    for way, word in (("i", "ingress"), ("o", "egress")):
        policy = f"KubernetesNetworkPolicy {POLICIES['agent']} {word}"
        yield f'-A {policy_chain("agent", way)} "{policy}"'
        for namespace in sorted(namespaces):
            profile = f"Profile kns.{namespace} {word}"
            chain = f"cali-pr{way}-kns.{namespace}"
            yield f'-A {chain} "{profile}" -j MARK --set-xmark {_ACCEPTED}'
