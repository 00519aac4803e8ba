"""kube-router's rules for four pods and two NetworkPolicies, in each of its forms.

nftables: recorded from a real node (tests/data/rulesets, kube-router 2.11). iptables, as k3s has
it: made from its documented comments, chains, marks and ipsets, for the same pods and policies.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.wired import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace

FORMS = ("nftables", "iptables-nft", "iptables-legacy")
_RECORDED = Path(__file__).parents[2] / "data/rulesets/netpol-kube-router-2.11-nftables"
_ADDRESSES = {4: "10.244.0.", 6: "fd00:10:244::"}
_PODS = {"client": 6, "web": 2, "single": 3, "client2": 7}
WIRES = {
    name: Wire("cni0", f"10.244.0.{number}/24", f"fd00:10:244::{number}/64", bridge=True)
    for name, number in _PODS.items()
}
"""With the addresses that they had on the real node."""
KEYS = {
    "client": "shop/client",
    "web": "shop/web-77fcd85cb8-grwmk",
    "single": "shop/single-59fc98b897-n7z9k",
    "client2": "ops/client2",
}
"""`namespace/name` of each."""
_POLICIES = {  # pod → policies that select it, for ingress and for egress; others may all
    "web": ("web-allow-client", ""),
    "client2": ("default-deny", "default-deny"),
}
_CHAINS = {"web-allow-client": "KUBE-NWPLCY-4ANU2ZYVYNUUKDG3",
           "default-deny": "KUBE-NWPLCY-HGNA3UOYDXQRDUJ4"}  # fmt: skip
_SETS = {"KUBE-SRC-PSHK4P4ILYN2ZIV4": ("client", "web", "single"),
         "KUBE-DST-JON6VPUDAERDYMHN": ("web",)}  # fmt: skip
_RECORDED_SETS = {4: ("KUBE-SRC-PSHK4P4ILYN2ZIV4", ["KUBE-SRC-NRM67WZ6IXWCUEPX"]),
                  6: ("KUBE-SRC-VJMVAFQUUUWNQJ6A", [])}  # fmt: skip
"""Of the policy's pods, who may come to that port, and of its networks, who may come to any."""
_FIREWALLS = {"web": "Z3WXRDXMWJ4TUL34", "single": "E2KPDJJUTNA7I4WU",
              "client2": "VFMS7RUQ6ILLBZNP", "client": "JQRZ62QLBL6IPXOF"}  # fmt: skip
FIREWALLS = {name: f"KUBE-POD-FW-{digest}" for name, digest in _FIREWALLS.items()}
"""Chain of each pod, the same in every form."""
WEB_PORT = 8080
"""What shop/web-allow-client lets the pods of shop come to."""
_OK, _COMPLY = "0x10000/0x10000", "0x20000/0x20000"


def tables(version: int, form: str) -> tuple[str, str]:
    """(family, table) of the rules."""
    family = "ip" if version == 4 else "ip6"
    return family, f"kube-router-filter-ipv{version}" if form == "nftables" else "filter"


def sources(version: int, form: str, port: int) -> list[str]:
    """The sets of those whom shop/web-allow-client lets come to a port of `web`, in order."""
    if form != "nftables":
        return [_set(version, next(iter(_SETS)))] if port == WEB_PORT else []
    pods, networks = _RECORDED_SETS[version]
    return [*([pods] if port == WEB_PORT else ()), *networks]


@contextmanager
def rules(node: Namespace, form: str) -> Iterator[None]:
    """The rules of both IP versions, for the block."""
    if form == "nftables":
        node.run("nft", "-f", "-", stdin=_recorded())
    else:
        for version in (4, 6):
            node.run("ipset", "restore", stdin=_sets(version))
            node.run(f"{_tool(version, form)}-restore", stdin=_iptables(version))
    try:
        yield
    finally:
        node.run("nft", "flush", "ruleset")
        if form == "iptables-legacy":
            for version in (4, 6):
                node.run(f"{_tool(version, form)}-restore", stdin="*filter\nCOMMIT\n")
        node.run("ipset", "destroy")


def _tool(version: int, form: str) -> str:
    return form if version == 4 else form.replace("ip", "ip6", 1)


def _recorded() -> str:
    text = (_RECORDED / "nft-a-ruleset.txt").read_text()
    found = re.findall(r"^table ip6? kube-router-.*?^\}$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    return "\n".join(found)


def _set(version: int, name: str) -> str:
    return f"inet6:{name}" if version == 6 else name


def _sets(version: int) -> str:
    family = "inet" if version == 4 else "inet6"
    lines = []
    for name, pods in _SETS.items():
        lines.append(f"create {_set(version, name)} hash:ip family {family} timeout 0")
        lines += [f"add {_set(version, name)} {_address(version, pod)} timeout 0" for pod in pods]
    return "\n".join([*lines, ""])


def _address(version: int, pod: str) -> str:
    return f"{_ADDRESSES[version]}{_PODS[pod]}"


def _iptables(version: int) -> str:
    lines = []
    for hook in ("INPUT", "FORWARD", "OUTPUT"):
        chain = f"KUBE-ROUTER-{hook}"
        lines.append(f'-A {hook} -m comment --comment "kube-router netpol - X" -j {chain}')
    for pod in _PODS:
        lines += _jumps(version, pod)
    comply = "rule to explicitly ACCEPT traffic that comply to network policies"
    lines.append(f"-A KUBE-ROUTER-FORWARD {_said(comply)} -m mark --mark {_COMPLY} -j ACCEPT")
    mark = f"-j MARK --set-xmark {_OK}"
    matching = _said("rule to mark traffic matching a network policy")
    lines.append(f"-A KUBE-NWPLCY-DEFAULT {matching} {mark}")
    who = _said("rule to ACCEPT traffic from source pods to dest pods selected by policy name"
                " web-allow-client namespace shop")  # fmt: skip
    source, target = (_set(version, name) for name in _SETS)
    match = (
        f"-A {_CHAINS['web-allow-client']} -p tcp -m set --match-set {source} src -m set"
        f" --match-set {target} dst -m tcp --dport {WEB_PORT} {who}"
    )
    lines += [f"{match} {mark}", f"{match} -m mark --mark {_OK} -j RETURN"]
    for pod in _PODS:
        lines += _firewall(version, pod)
    chains = dict.fromkeys([*_CHAINS.values(), *(line.split()[1] for line in lines)])
    heads = [f":{name} {'ACCEPT' if name.isalpha() else '-'} [0:0]" for name in chains]
    return "\n".join(["*filter", *heads, *lines, "COMMIT", ""])


def _said(comment: str) -> str:
    return f'-m comment --comment "{comment}"'


def _jumps(version: int, pod: str) -> Iterator[str]:
    """What is for a pod and what comes from it goes through its chain."""
    namespace, name = KEYS[pod].split("/")
    chain, address = FIREWALLS[pod], _address(version, pod)
    tail = f"POD name:{name} namespace: {namespace} to chain {chain}"
    to, came = (_said(f"rule to jump traffic {word} {tail}") for word in ("destined to", "from"))
    for hook in ("FORWARD", "OUTPUT"):
        yield f"-A KUBE-ROUTER-{hook} -d {address} {to} -j {chain}"
    for hook in ("INPUT", "FORWARD", "OUTPUT"):
        yield f"-A KUBE-ROUTER-{hook} -s {address} {came} -j {chain}"


def _firewall(version: int, pod: str) -> Iterator[str]:
    namespace, name = KEYS[pod].split("/")
    chain, address = f"-A {FIREWALLS[pod]}", _address(version, pod)
    state = "-m conntrack --ctstate"
    stateful, invalid = "rule for stateful firewall for pod", "rule to drop invalid state for pod"
    yield f"{chain} {_said(stateful)} {state} RELATED,ESTABLISHED -j ACCEPT"
    yield f"{chain} {_said(invalid)} {state} INVALID -j DROP"
    for kind in ("135", "136") if version == 6 else ():  # or the bridge's pods find none another
        nd = _said("rule to allow icmp neighbor discovery messages")
        yield f"{chain} -p ipv6-icmp {nd} -m icmp6 --icmpv6-type {kind} -j ACCEPT"
    local = "rule to permit the traffic traffic to pods when source is the pod's local node"
    yield f"{chain} -d {address} {_said(local)} -m addrtype --src-type LOCAL -j ACCEPT"
    for end, policy, word in zip("ds", _POLICIES.get(pod, ("", "")), ("ingress", "egress"),
                                 strict=True):  # fmt: skip
        run = f"run through nw policy {policy}"
        default = f"run through default {word} network policy chain"
        target = _CHAINS.get(policy, "KUBE-NWPLCY-DEFAULT")
        yield f"{chain} -{end} {address} {_said(run if policy else default)} -j {target}"
    unmarked = f"-m mark ! --mark {_OK}"
    logged = _said(f"rule to log dropped traffic POD name:{name} namespace: {namespace}")
    limit = "-m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100"
    yield f"{chain} {logged} {unmarked} {limit}"
    rejected = _said(f"rule to REJECT traffic destined for POD name:{name} namespace: {namespace}")
    yield f"{chain} {rejected} {unmarked} -j REJECT"
    yield f"{chain} -j MARK --set-xmark 0x0/0x10000"
    comply = _said("set mark to ACCEPT traffic that comply to network policies")
    yield f"{chain} {comply} -j MARK --set-xmark {_COMPLY}"
