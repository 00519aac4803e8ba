"""Rules of network plugins on real packets: who masqueraded, marked and accepted is named.

The rules of the CNI plugins bridge (ipMasq) and portmap are made by the real plugins, for a real
pod. Those of flannel, the AWS VPC CNI, Cilium, Antrea and ip-masq-agent are made from what they
document, not recorded.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest
from lab import namespaces, runner
from lab.expect import NETFILTER
from lab.topology import meet
from lab.traffic import new_port, send_udp
from lab.wired import Wire, wired

WIRES = {
    "flannel": Wire("cni0", "10.249.0.2/24", "fd00:10:249::2/64"),
    "aws": Wire("eni4a0b1c2d3e4", "10.249.1.2/24", "fd00:10:249:1::2/64"),
    "cilium": Wire("lxc5f6a7b8c9d0", "10.249.2.2/24", "fd00:10:249:2::2/64"),
    "antrea": Wire("antrea-gw0", "10.249.3.2/24", "fd00:10:249:3::2/64"),
    "agent": Wire("cbr0", "10.249.4.2/24", "fd00:10:249:4::2/64"),
    "out": Wire("eth0", "192.0.2.2/24", "2001:db8:2::2/64"),
}
NODE = {4: "192.0.2.1", 6: "2001:db8:2::1"}


class Told(NamedTuple):
    """A rule that the packet's hop in a hook has to name."""

    hook: str
    chain: str
    changes: str
    """What it did to the packet; empty: it accepted it."""
    owner: str
    sentence: str
    sets: tuple[str, ...] = ()
    """What sets answered to it."""


class Case(NamedTuple):
    """The rules of a program, whose packet meets them, and what is to be told of each."""

    rules: str
    sender: str
    told: tuple[Told, ...]
    version: int = 4


def saved(table, *lines):
    """What iptables-restore reads."""
    chains = dict.fromkeys(line.split()[1] for line in lines)
    heads = [
        f":{name} {'ACCEPT' if name in ('FORWARD', 'PREROUTING', 'POSTROUTING') else '-'} [0:0]"
        for name in chains
    ]
    return "\n".join([f"*{table}", *heads, *lines, "COMMIT", ""])


def flannel(cluster, own, multicast):
    """flannel's iptables rules; `cluster` is all its pods', `own` the node's."""
    masq, forward = (
        '-m comment --comment "flanneld masq"',
        '-m comment --comment "flanneld forward"',
    )
    return saved(
        "nat",
        f"-A POSTROUTING {masq} -j FLANNEL-POSTRTG",
        f"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {own} -d {cluster} {masq} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {cluster} -d {own} {masq} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s {cluster} -d {own} {masq} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} {masq} -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} {masq} -j MASQUERADE --random-fully",
    ) + saved(
        "filter",
        f"-A FORWARD {forward} -j FLANNEL-FWD",
        f"-A FLANNEL-FWD -s {cluster} {forward} -j ACCEPT",
        f"-A FLANNEL-FWD -d {cluster} {forward} -j ACCEPT",
    )


FLANNEL_NFT = """table ip flannel-ipv4 {
  comment "rules for flannel-ipv4"
  chain postrtg {
    comment "chain to manage traffic masquerading by flannel"
    type nat hook postrouting priority srcnat; policy accept;
    meta mark 0x00004000 return
    ip saddr 10.249.0.0/24 ip daddr 10.249.0.0/16 return
    ip saddr 10.249.0.0/16 ip daddr 10.249.0.0/24 return
    ip saddr != 10.249.0.0/16 ip daddr 10.249.0.0/24 return
    ip saddr 10.249.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    ip saddr != 10.249.0.0/16 ip daddr 10.249.0.0/16 masquerade fully-random
  }
  chain forward {
    comment "chain to accept flannel traffic"
    type filter hook forward priority filter; policy accept;
    ip saddr 10.249.0.0/16 accept
    ip daddr 10.249.0.0/16 accept
  }
}
"""
AWS = saved(
    "nat",
    '-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections"'
    " -j AWS-CONNMARK-CHAIN-0",
    '-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark'
    " --nfmask 0x80 --ctmask 0x80",
    '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
    '-A AWS-CONNMARK-CHAIN-0 -d 10.249.0.0/16 -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR"'
    " -j RETURN",
    '-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK'
    " --set-xmark 0x80/0x80",
    '-A AWS-SNAT-CHAIN-0 -d 10.249.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN',
    '-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype'
    f" ! --dst-type LOCAL -j SNAT --to-source {NODE[4]} --random-fully",
)
CILIUM = saved(
    "filter",
    '-A FORWARD -m comment --comment "cilium-feeder: CILIUM_FORWARD" -j CILIUM_FORWARD',
    '-A CILIUM_FORWARD -o cilium_host -m comment --comment "cilium: any->cluster on cilium_host'
    ' forward accept" -j ACCEPT',
    '-A CILIUM_FORWARD -i lxc+ -m comment --comment "cilium: cluster->any on lxc+ forward accept"'
    " -j ACCEPT",
) + saved(
    "nat",
    '-A POSTROUTING -m comment --comment "cilium-feeder: CILIUM_POST_nat" -j CILIUM_POST_nat',
    "-A CILIUM_POST_nat -s 10.249.2.0/24 ! -d 10.249.2.0/24 ! -o cilium_+ -m comment --comment"
    ' "cilium masquerade non-cluster" -j MASQUERADE',
)
ANTREA = saved(
    "filter",
    '-A FORWARD -m comment --comment "Antrea: jump to Antrea forwarding rules" -j ANTREA-FORWARD',
    '-A ANTREA-FORWARD -i antrea-gw0 -m comment --comment "Antrea: accept packets from local Pods"'
    " -j ACCEPT",
    '-A ANTREA-FORWARD -o antrea-gw0 -m comment --comment "Antrea: accept packets to local Pods"'
    " -j ACCEPT",
) + saved(
    "nat",
    '-A POSTROUTING -m comment --comment "Antrea: jump to Antrea postrouting rules"'
    " -j ANTREA-POSTROUTING",
    '-A ANTREA-POSTROUTING -s 10.249.3.0/24 -m comment --comment "Antrea: masquerade Pod to'
    ' external packets" -m set ! --match-set ANTREA-POD-IP dst ! -o antrea-gw0 -j MASQUERADE',
)
AGENT = saved(
    "nat",
    '-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all'
    ' non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype'
    " ! --dst-type LOCAL -j IP-MASQ-AGENT",
    '-A IP-MASQ-AGENT -d 10.0.0.0/8 -m comment --comment "ip-masq-agent: local traffic is not'
    ' subject to MASQUERADE" -j RETURN',
    '-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to'
    ' MASQUERADE (must be last in chain)" -j MASQUERADE',
)
LEAVES = "it leaves with the node's address instead of its own"
MASQ = f"Masqueraded by flannel: {LEAVES}."
CASES = {
    "flannel": Case(flannel("10.249.0.0/16", "10.249.0.0/24", "224.0.0.0/4"), "flannel", (
        Told("FORWARD", "FLANNEL-FWD", "", "flannel", "Accepted by flannel."),
        Told("POSTROUTING", "FLANNEL-POSTRTG", "masquerade", "flannel", MASQ),
    )),
    "flannel, IPv6": Case(flannel("fd00:10:249::/48", "fd00:10:249::/64", "ff00::/8"), "flannel", (
        Told("FORWARD", "FLANNEL-FWD", "", "flannel", "Accepted by flannel."),
        Told("POSTROUTING", "FLANNEL-POSTRTG", "masquerade", "flannel", MASQ),
    ), 6),
    "flannel, nftables": Case(FLANNEL_NFT, "flannel", (
        Told("FORWARD", "forward", "", "flannel", "Accepted by flannel."),
        Told("POSTROUTING", "postrtg", "masquerade", "flannel", MASQ),
    )),
    "AWS VPC CNI": Case(AWS, "aws", (
        Told("PREROUTING", "AWS-CONNMARK-CHAIN-0", "conntrack mark", "aws-vpc-cni",
             "Marked by AWS VPC CNI: CONNMARK."),
        Told("POSTROUTING", "AWS-SNAT-CHAIN-0", "snat", "aws-vpc-cni",
             "Given another source by AWS VPC CNI: SNAT."),
    )),
    "Cilium": Case(CILIUM, "cilium", (
        Told("FORWARD", "CILIUM_FORWARD", "", "cilium",
             "Accepted by Cilium: cluster->any on lxc+ forward accept."),
        Told("POSTROUTING", "CILIUM_POST_nat", "masquerade", "cilium",
             "Masqueraded by Cilium: masquerade non-cluster."),
    )),
    "Antrea, with an ipset": Case(ANTREA, "antrea", (
        Told("FORWARD", "ANTREA-FORWARD", "", "antrea",
             "Accepted by Antrea: accept packets from local Pods."),
        Told("POSTROUTING", "ANTREA-POSTROUTING", "masquerade", "antrea",
             "Masqueraded by Antrea: masquerade Pod to external packets.",
             ("192.0.2.2 not in ANTREA-POD-IP",)),
    )),
    "ip-masq-agent": Case(AGENT, "agent", (
        Told("POSTROUTING", "IP-MASQ-AGENT", "masquerade", "ip-masq-agent",
             "Masqueraded by ip-masq-agent: outbound traffic is subject to MASQUERADE"
             " (must be last in chain)."),
    )),
}  # fmt: skip


@pytest.fixture(scope="module")
def node(cluster):  # noqa: ARG001 - it sweeps away what a killed run left
    with wired("plug", WIRES) as made:
        made.node.run("ipset", "create", "ANTREA-POD-IP", "hash:net")
        made.node.run("ipset", "add", "ANTREA-POD-IP", "10.249.3.0/24")
        yield made


@pytest.fixture(scope="module")
def trace(node, cri_env):  # noqa: ARG001 - all is there before it looks
    with runner.running("trace", "udp", "--rules", "-o", "json", env=cri_env) as live:
        yield live
        done = live.stop()
    assert "Traceback" not in done.err
    assert done.records[-1]["lost"] == {}


@contextmanager
def loaded(where, text, version, backend="nft"):
    nft = text.startswith("table")
    tool = f"{'iptables' if version == 4 else 'ip6tables'}-{backend}-restore"
    where.run(*(("nft", "-f", "-") if nft else (tool,)), stdin=text)
    try:
        yield
    finally:
        where.run("nft", "flush", "ruleset")
        if backend == "legacy":
            where.run(tool, stdin="*nat\nCOMMIT\n*filter\nCOMMIT\n")


def hops(record, where):
    """Rules of each netfilter hook of a namespace."""
    return {
        hop["hook"].split()[-1]: hop.get("rules", ())
        for hop in record["hops"]
        if hop["netns"] == where.inode and hop["hook"].startswith("nf ")
    }


def only(rules, told):
    """The one rule among those of a hop that did what is told."""
    did = [
        rule
        for rule in rules
        if (told.changes in rule.get("netfilter.changes", ()) if told.changes
            else rule["netfilter.verdict"] == "accept" and "netfilter.rule" in rule)
    ]  # fmt: skip
    found = [rule for rule in did if rule["netfilter.chain"] == told.chain]
    assert len(found) == 1, (told, rules)
    return found[0]


@pytest.mark.parametrize("name", CASES)
def test_who_masquerades(node, trace, name):
    case = CASES[name]
    with loaded(node.node, case.rules, case.version):
        found = taken(node, trace, case)
    for told, rule in zip(case.told, found, strict=True):
        assert rule["netfilter.rule_source"] == "traced"
        assert rule["netfilter.handle"] > 0
        assert rule.get("netfilter.sets", []) == list(told.sets)


def taken(node, trace, case):
    """A datagram to the outside, with the rules in force; the rules that are to be told of it."""
    watch, port = runner.watch(trace), new_port()
    sender, out = node.hosts[case.sender], node.hosts["out"]
    send_udp(sender.where, (out.ip(case.version), port), 1)
    about = {"type": "packet", "dst.address": out.ip(case.version), "dst.port": port}
    (record,) = watch.expect(1, about, timeout_s=15)
    assert record["nat.src.address"] == NODE[case.version]
    rules = hops(record, node.node)
    found = [only(rules[told.hook], told) for told in case.told]
    for told, rule in zip(case.told, found, strict=True):
        assert rule["netfilter.object.owner"] == told.owner
        assert rule["netfilter.object.sentence"] == told.sentence
    return found


def test_a_drop_among_a_plugins_rules(node, cri_env):
    """Read, not traced: the rule of a named set of nftables that drops, with its table."""
    port, sender, out = new_port(), node.hosts["flannel"], node.hosts["out"]
    deny = "table ip flannel-ipv4 { set denied { type ipv4_addr; elements = { 192.0.2.2 }; }; "
    deny += f"chain forward {{ udp dport {port} ip daddr @denied drop; }}; }}\n"
    text = FLANNEL_NFT.replace("    ip saddr 10.249.0.0/16 accept\n", "")
    with (
        loaded(node.node, text.replace("    ip daddr 10.249.0.0/16 accept\n", "") + deny, 4),
        runner.running("drops", f"udp port {port}", "-o", "json", env=cri_env) as live,
    ):
        watch = runner.watch(live)
        send_udp(sender.where, (out.ip4, port), 3)
        found = watch.expect(3, {"dst.port": port} | NETFILTER)
    for record in found:
        assert record["netfilter.rule"] == f"udp dport {port} ip daddr @denied drop"
        assert record["netfilter.rule_source"] == "inferred"
        assert record["netfilter.object.owner"] == "flannel"
        assert record["netfilter.sets"] == ["192.0.2.2 in denied"]


# The real plugins bridge and portmap

HOST_PORT, POD_PORT = 18081, 8081


class Plugin(NamedTuple):
    """One CNI plugin, for a pod's sandbox."""

    where: namespaces.Namespace
    config: dict
    environment: dict

    def call(self, command):
        """Run it in the node's namespace; what it answers."""
        words = [f"{name}={value}" for name, value in self.environment.items()]
        path = f"/usr/lib/cni/{self.config['type']}"
        program = ("env", *words, f"CNI_COMMAND={command}", path)
        return self.where.run(*program, stdin=json.dumps(self.config))


@pytest.fixture(scope="module")
def pod(cluster, node, tmp_path_factory):
    """A real pod that has got a second network, at `node`, by the plugins themselves."""
    own = {
        "CNI_CONTAINERID": cluster.client.sandbox, "CNI_NETNS": cluster.client.where.path,
        "CNI_IFNAME": "trt-net1", "CNI_PATH": "/usr/lib/cni",
    }  # fmt: skip
    ranges = {"ranges": [[{"subnet": "10.250.0.0/24"}]], "routes": [{"dst": "192.0.2.0/24"}]}
    ipam = {"type": "host-local", "dataDir": str(tmp_path_factory.mktemp("ipam")), **ranges}
    mapping = {"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "udp"}
    configs = (
        {"type": "bridge", "bridge": "knet0", "isGateway": True, "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "snat": True, "runtimeConfig": {"portMappings": [mapping]}},
    )
    with ExitStack() as undo:
        before = {}
        for config in configs:
            named = {"cniVersion": "1.0.0", "name": "knet", **config, **before}
            plugin = Plugin(node.node, named, own)
            before = {"prevResult": json.loads(plugin.call("ADD"))}
            undo.callback(plugin.call, "DEL")
        meet(node.node, cluster.client.where, "10.250.0.2")
        yield cluster.client


def of_pod(rule, pod, owner, sentence):
    assert rule["netfilter.table"] == "nat"
    assert rule["netfilter.object.owner"] == owner
    assert rule["netfilter.object.kind"] == "Pod"
    assert rule["netfilter.object.namespace"] == pod.namespace
    assert rule["netfilter.object.name"] == pod.name
    assert rule["netfilter.object.sentence"] == sentence


def test_ip_masq_of_the_bridge_plugin(node, pod, trace):
    watch, port, out = runner.watch(trace), new_port(), node.hosts["out"]
    send_udp(pod.where, (out.ip4, port), 1)
    (record,) = watch.expect(1, {"type": "packet", "dst.port": port}, timeout_s=15)
    assert record["nat.src.address"] == NODE[4]
    rules = hops(record, node.node)["POSTROUTING"]
    (rule,) = [one for one in rules if "masquerade" in one.get("netfilter.changes", ())]
    digest = hashlib.sha512(f"knet{pod.sandbox}".encode()).hexdigest()
    assert rule["netfilter.chain"] == f"CNI-{digest[:24]}"
    sentence = f"Masqueraded by CNI plugin bridge of network knet for pod {pod.key}: {LEAVES}."
    of_pod(rule, pod, "cni-bridge", sentence)


def test_a_host_port_of_the_portmap_plugin(node, pod, trace):
    watch, out = runner.watch(trace), node.hosts["out"]
    send_udp(out.where, (NODE[4], HOST_PORT), 1)
    (record,) = watch.expect(1, {"type": "packet", "dst.port": HOST_PORT}, timeout_s=15)
    assert (record["nat.dst.address"], record["nat.dst.port"]) == ("10.250.0.2", POD_PORT)
    rules = hops(record, node.node)["PREROUTING"]
    (rule,) = [one for one in rules if "dnat" in one.get("netfilter.changes", ())]
    assert rule["netfilter.path"][:2] == ["PREROUTING", "CNI-HOSTPORT-DNAT"]
    assert rule["netfilter.chain"].startswith("CNI-DN-")
    sentence = (
        f"Sent to another destination by CNI plugin portmap of network knet for pod {pod.key}:"
        " a hostPort of the pod."
    )
    of_pod(rule, pod, "cni-portmap", sentence)
