"""Calico's rules for three pods: made from its documented chains, marks, comments and ipsets.

Not recorded: Felix's iptables mode, as published of real clusters. `client` and `web` are in
namespace shop, `agent` in ops; shop/web-allow lets `client` come to port 8080 of `web`,
ops/default-deny nobody anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lab.wired import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lab.namespaces import Namespace

WEB_PORT = 8080
POLICIES = {"web": "shop/web-allow", "agent": "ops/default-deny"}
"""The NetworkPolicy that selects a pod, if one does."""
_ACCEPTED, _PASS, _BOTH = "0x10000/0x10000", "0x0/0x20000", "0x0/0x30000"


def ipset(version: int) -> str:
    """The ipset of those whom shop/web-allow lets come."""
    return f"cali{version}0s:DFfMZ2Sf_8YKJ6ybkR1pAy"


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


def _text(version: int, keys: Mapping[str, str]) -> str:
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
    said = [_commented(line) for line in lines]
    chains = dict.fromkeys(["INPUT", "OUTPUT", *(line.split()[1] for line in said)])
    heads = [f":{name} {'-' if '-' in name else 'ACCEPT'} [0:0]" for name in chains]
    return "\n".join(["*filter", *heads, *said, "COMMIT", ""])


def _commented(line: str) -> str:
    """Every rule bears a hash of its place; what stands in quotes is a comment of its own."""
    flag, chain, rest = line.split(" ", 2)
    digest = base64.urlsafe_b64encode(hashlib.sha256(line.encode()).digest()).decode()[:16]
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
