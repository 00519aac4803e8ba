"""Rule → object, on rules of a real cluster (kube-proxy, kube-router, CNI plugins) and on rules
put together from what other programs document: each test says which."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.analysis.objects import RuleObjects, ruleset_services
from tracer.analysis.objects.names import (
    calico_chain,
    calico_device,
    cni_chain,
    endpoint_hash,
    nft_service_name,
    service_hash,
)
from tracer.analysis.ruleset.model import Base, Chain, Packet
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.model import Device, EndpointSlice, NetworkPolicy, Node, Pod, Service, ServicePort

DATA = Path(__file__).parents[2] / "data"
IPTABLES, NFTABLES = DATA / "kube-proxy/iptables", DATA / "kube-proxy/nftables"
CONTAINER = "d67f9ff7b432b4c4bb683dade6c39bed74efd90cb92049fc9751d72c4dfbcf37"
HOSTPORT = Pod("u1", "ops", "hostport", addresses=("10.244.0.15",), sandbox_id=CONTAINER)
CLIENT = Pod("u2", "shop", "client", addresses=("10.244.0.9",))
NODE = Node(
    "node1",
    1,
    pods={"u1": HOSTPORT, "u2": CLIENT},
    pod_by_address={"10.244.0.15": "u1", "10.244.0.9": "u2"},
)


def read(**texts):
    return Reader().read(Texts(**texts))


@pytest.fixture(scope="module")
def iptables():
    """Recorded: kube-proxy 1.36.2 in iptables mode, CNI bridge and portmap, kubelet."""
    return read(
        iptables=(IPTABLES / "iptables-save.txt").read_text(),
        ip6tables=(IPTABLES / "ip6tables-save.txt").read_text(),
    )


@pytest.fixture(scope="module")
def nftables():
    """Recorded: kube-proxy 1.36.2 in nftables mode."""
    return read(nft=(NFTABLES / "nft.json").read_bytes())


@pytest.fixture(scope="module")
def kube_router():
    """Recorded: kube-router 2.11, which keeps its policies in nftables."""
    return read(nft=(DATA / "kube-router/nft.json").read_bytes())


def rules(ruleset, family, table, chain, *words):
    one = ruleset.tables[family, table, False].chains[chain]
    return [rule for rule in one.rules if all(word in rule.text for word in words)]


def tcp(daddr, dport, saddr="10.244.0.9", family="ip"):
    return Packet(family, saddr, daddr, 6, 40000, dport)


def saved(table, *lines):
    """An iptables-save of `lines`, rules of one table."""
    chains = dict.fromkeys(line.split()[1] for line in lines)
    heads = [
        f":{chain} {'ACCEPT' if chain.isupper() and '-' not in chain else '-'} [0:0]"
        for chain in chains
    ]
    return read(iptables="\n".join([f"*{table}", *heads, *lines, "COMMIT", ""]))


def only(ruleset, table, chain, *words):
    (rule,) = rules(ruleset, "ip", table, chain, *words)
    return rule


# Names


def test_names_of_kube_proxy_are_computed():
    assert service_hash("default", "kubernetes", "https", "tcp") == "NPX46M4PTMTKRN6Y"
    assert service_hash("shop", "lb", "", "tcp") == "EQPZH4W7LN3ZNZNG"
    assert endpoint_hash("shop", "sctp", "", "sctp", "10.244.0.11:7777") == "RPDQSPZHPGBIZ6DL"
    assert nft_service_name("shop", "web", "http", "tcp") == "KHN6ECMT-shop/web/tcp/http"


def test_every_recorded_chain_of_a_service_has_the_computed_name(iptables, nftables):
    services, _ = ruleset_services(iptables)
    ours = {
        service_hash(service.namespace, service.name, port.name, port.transport)
        for service in services.values()
        for port in service.ports
    }
    chains = iptables.tables["ip", "nat", False].chains
    theirs = {name[9:] for name in chains if name.startswith(("KUBE-SVC-", "KUBE-EXT-"))}
    assert theirs <= ours
    assert len(theirs) == 14
    ours = {
        nft_service_name(service.namespace, service.name, port.name, port.transport)
        for service in ruleset_services(nftables)[0].values()
        for port in service.ports
    }
    chains = nftables.tables["ip", "kube-proxy", False].chains
    assert {name[8:] for name in chains if re.match("service-[A-Z2-7]{8}-", name)} <= ours


def test_names_of_cni_plugins_are_computed():
    assert cni_chain("knet", CONTAINER) == "CNI-15525ef388813916fd7a50cb"
    assert cni_chain("knet", CONTAINER, "CNI-DN-") == "CNI-DN-15525ef388813916fd7a5"


@pytest.mark.parametrize(
    ("prefix", "identity", "chain"),
    [  # chains and their comments as published from real clusters
        ("cali-pri-", "kns.kube-system", "cali-pri-kns.kube-system"),
        ("cali-pri-", "ksa.kube-system.metrics-server", "cali-pri-_CVSZITRyIpEmH8AB6H"),
        ("cali-po-", "kube-system/knp.default.konnectivity-agent", "cali-po-_rWDSk9LLgWIl_lpnJE2"),
        ("cali-pi-", "knp/team-b/deny-from-other-ns", "cali-pi-_qA9lGysOzwIsyVf0V23"),
    ],
)
def test_names_of_calico_are_computed(prefix, identity, chain):
    assert calico_chain(prefix, identity) == chain


# kube-proxy, iptables mode: recorded


def test_a_service_without_endpoints_rejects(iptables):
    rule = only(iptables, "filter", "KUBE-SERVICES", "no-endpoints")
    found = RuleObjects(iptables, NODE).of(rule, tcp("10.96.10.5", 80))
    assert (found.owner, found.kind, found.namespace, found.name, found.port) == (
        "kube-proxy",
        "Service",
        "shop",
        "no-endpoints",
        "80",
    )
    assert found.does == "has no endpoints"
    assert found.sentence == (
        "Rejected by kube-proxy: Service shop/no-endpoints:80 (10.96.10.5) has no endpoints."
    )


@pytest.mark.parametrize(
    ("unready", "ready", "told"),
    [((), (), False), (("10.244.0.7",), (), True), (("10.244.0.7",), ("10.244.0.8",), False)],
)
def test_endpoints_that_are_not_ready_are_told(iptables, unready, ready, told):
    one = EndpointSlice("shop", "no-endpoints", ready=ready, unready=unready)
    node = replace(NODE, endpoint_slices={"shop/no-endpoints-x": one})
    rule = only(iptables, "filter", "KUBE-SERVICES", "no-endpoints")
    found = RuleObjects(iptables, node).of(rule, tcp("10.96.10.5", 80))
    assert ("it selects pods, but none is ready" in found.sentence) is told


@pytest.mark.parametrize(
    ("chain", "words", "name", "does"),
    [
        ("KUBE-SERVICES", "remote-only", "remote-only", "has no local endpoints"),
        ("KUBE-EXTERNAL-SERVICES", "remote-only", "remote-only", "has no local endpoints"),
        ("KUBE-EXTERNAL-SERVICES", "no-endpoints", "no-endpoints", "has no endpoints"),
        ("KUBE-PROXY-FIREWALL", "lb", "lb", "source is not in its loadBalancerSourceRanges"),
        ("KUBE-NODEPORTS", "lb", "lb", "health check"),
        ("KUBE-FORWARD", "INVALID", "", "invalid for conntrack"),
        ("KUBE-FIREWALL", "127.0.0.0/8", "", "martian for loopback"),
    ],
)
def test_filter_rules_of_kube_proxy(iptables, chain, words, name, does):
    found = RuleObjects(iptables).of(only(iptables, "filter", chain, words))
    assert (found.name, found.does) == (name, does)
    assert found.kind == ("Service" if name else "")


def test_an_endpoint_is_named_with_its_pod(iptables):
    chain = f"KUBE-SEP-{endpoint_hash('shop', 'web', 'http', 'tcp', '10.244.0.8:8080')}"
    node = replace(NODE, cluster_pod_by_address={"10.244.0.8": "shop/web-77fcd85cb8-4j8cs"})
    found = RuleObjects(iptables, node).of(only(iptables, "nat", chain, "-j DNAT"))
    assert (found.namespace, found.name, found.does) == ("shop", "web", "endpoint chosen")
    assert "10.244.0.8:8080 (pod shop/web-77fcd85cb8-4j8cs)" in found.sentence


@pytest.mark.parametrize("known", ["by the rules that jump there", "by the API"])
def test_a_rule_without_comment_is_named_by_its_chain(known):
    """Real rules, without the comments that kube-proxy leaves out of large rulesets."""
    text = (IPTABLES / "iptables-save.txt").read_text()
    lines = [
        line.replace('-m comment --comment "shop/web:http" ', "")
        for line in text.splitlines()
        if known == "by the rules that jump there" or "KUBE-SERVICES -d" not in line
    ]
    node = replace(
        NODE,
        services={"shop/web": Service("shop", "web", ports=(ServicePort("http", "tcp", 80),))},
    )
    ruleset = read(iptables="\n".join([*lines, ""]))
    chain = f"KUBE-SEP-{endpoint_hash('shop', 'web', 'http', 'tcp', '10.244.0.8:8080')}"
    rule = only(ruleset, "nat", chain, "-j DNAT")
    assert "comment" not in rule.text
    found = RuleObjects(ruleset, node if known == "by the API" else None).of(rule)
    assert (found.namespace, found.name, found.port) == ("shop", "web", "http")


def test_every_rule_of_kube_proxy_has_its_object(iptables):
    objects = RuleObjects(iptables)
    for family in ("ip", "ip6"):
        for (of, _, _), table in iptables.tables.items():
            for name, chain in table.chains.items():
                for rule in chain.rules if of == family and name.startswith("KUBE-") else ():
                    found = objects.of(rule)
                    assert found.owner in ("kube-proxy", "kubelet"), rule.text
                    if name[5:8] in ("SVC", "SVL", "SEP", "EXT", "FW-"):
                        assert found.kind == "Service", rule.text
                        assert found.namespace in ("shop", "default"), rule.text


# kube-proxy, nftables mode: recorded


@pytest.mark.parametrize(
    ("packet", "chain", "step", "name", "does", "done"),
    [
        (tcp("10.96.10.5", 80), "reject-chain", "service-endpoints-check", "no-endpoints",
         "has no endpoints", "Rejected"),
        (tcp("198.51.100.10", 30082), "reject-chain", "nodeport-endpoints-check", "no-endpoints",
         "has no endpoints", "Rejected"),
        (tcp("10.96.10.10", 80), "service-endpoints-check", "", "remote-only",
         "has no local endpoints", "Dropped"),
        (tcp("198.51.100.10", 30084), "nodeport-endpoints-check", "", "remote-only",
         "has no local endpoints", "Dropped"),
    ],
)  # fmt: skip
def test_the_map_says_which_service_has_no_endpoints(
    nftables, packet, chain, step, name, does, done
):
    (rule,) = rules(nftables, "ip", "kube-proxy", chain)
    path = rules(nftables, "ip", "kube-proxy", step) if step else ()
    found = RuleObjects(nftables).of(rule, packet, path)
    assert (found.kind, found.namespace, found.name) == ("Service", "shop", name)
    assert found.does == does
    assert found.sentence.startswith(f"{done} by kube-proxy: Service shop/{name}:{packet.dport} (")


def test_cluster_ips_that_are_not_served(nftables):
    objects = RuleObjects(nftables)
    reject, drop = rules(nftables, "ip", "kube-proxy", "cluster-ips-check")
    found = objects.of(reject, tcp("10.96.10.1", 81))
    assert (found.namespace, found.name, found.does) == ("shop", "web", "has no such port")
    found = objects.of(drop, tcp("10.96.99.99", 80))
    assert (found.name, found.does) == ("", "unallocated ClusterIP")
    assert "10.96.99.99 is in the range of ClusterIPs, but no Service has it" in found.sentence


@pytest.mark.parametrize(
    ("start", "name", "does"),
    [
        ("firewall-TIJT7IDK", "lb", "source is not in its loadBalancerSourceRanges"),
        ("service-KHN6ECMT", "web", "endpoint chosen"),
        ("external-GZ3MVSMB", "extip", "marked"),
        ("endpoint-JIWNOMRZ", "sticky", "endpoint chosen"),
    ],
)
def test_chains_of_nftables_mode(nftables, start, name, does):
    chains = nftables.tables["ip", "kube-proxy", False].chains
    (chain,) = (chain for chain in chains.values() if chain.name.startswith(start))
    assert {found.name for rule in chain.rules if (found := RuleObjects(nftables).of(rule))} == {
        name
    }
    assert does in {RuleObjects(nftables).of(rule).does for rule in chain.rules}


def test_a_long_name_is_cut_and_its_hash_knows():
    """Made up: names of chains end at 128 bytes."""
    name = "x" * 63
    service = Service("n" * 63, name, ports=(ServicePort("p" * 15, "tcp", 80),))
    chain = f"service-{nft_service_name('n' * 63, name, 'p' * 15, 'tcp')}"[:125] + "..."
    nft = (
        f'{{"nftables":[{{"table":{{"family":"ip","name":"kube-proxy","handle":1}}}},'
        f'{{"chain":{{"family":"ip","table":"kube-proxy","name":"{chain}","handle":1}}}},'
        f'{{"rule":{{"family":"ip","table":"kube-proxy","chain":"{chain}","handle":2,'
        f'"expr":[{{"drop":null}}]}}}}]}}'
    )
    ruleset = read(nft=nft.encode())
    (rule,) = rules(ruleset, "ip", "kube-proxy", chain)
    found = RuleObjects(ruleset, replace(NODE, services={service.key: service})).of(rule)
    assert (found.namespace, found.name, found.port) == ("n" * 63, name, "p" * 15)
    found = RuleObjects(ruleset).of(rule)
    assert found.name.startswith("xxx")
    assert found.name.endswith("...")


def test_services_are_known_without_the_api(iptables, nftables):
    """Both modes tell the same of the same cluster, but for a Service whose map is by IP."""
    by_iptables, keys = ruleset_services(iptables)
    by_nftables, nft_keys = ruleset_services(nftables)
    assert by_iptables.keys() == by_nftables.keys()
    assert len(by_iptables) == 13
    assert keys == nft_keys
    assert keys["tcp/10.96.10.5/80"] == "shop/no-endpoints"
    assert keys["udp/10.96.10.1/53"] == keys["tcp/fd00:10:96::2b98/80"] == "shop/web"
    assert keys["tcp//30080"] == "shop/web-np"
    assert keys["tcp/203.0.113.50/80"] == "shop/extip"
    for services in (by_iptables, by_nftables):
        assert services["shop/lb"].addresses == ("10.96.10.7",)
        assert services["shop/lb"].external_addresses == ("203.0.113.100",)
        assert services["shop/web-np"].ports[0].node_port in (30053, 30080)


# kube-router: recorded (nftables)


def test_a_policy_that_does_not_allow(kube_router):
    table = "kube-router-filter-ipv4"
    rule = only(kube_router, table, "KUBE-POD-FW-VFMS7RUQ6ILLBZNP", "client2 reject")
    path = rules(kube_router, "ip", table, "KUBE-ROUTER-FORWARD", "10.244.0.7", "saddr")
    found = RuleObjects(kube_router).of(rule, tcp("10.244.0.3", 8080, "10.244.0.7"), path)
    assert (found.owner, found.kind) == ("kube-router", "NetworkPolicy")
    assert (found.namespace, found.name, found.does) == ("ops", "default-deny", "default deny")
    assert found.sentence == (
        "Rejected by NetworkPolicy ops/default-deny (kube-router), egress of pod ops/client2:"
        " it does not allow the packet."
    )


@pytest.mark.parametrize(
    ("packet", "direction"),
    [
        (tcp("10.244.0.2", 8081, "10.244.0.6"), "ingress"),
        (tcp("10.244.0.6", 8081, "10.244.0.2"), "egress"),
    ],
)
def test_the_direction_is_the_packets(kube_router, packet, direction):
    rule = only(kube_router, "kube-router-filter-ipv4", "KUBE-POD-FW-Z3WXRDXMWJ4TUL34", "grwmk rej")
    found = RuleObjects(kube_router).of(rule, packet)
    assert f", {direction} of pod shop/web-77fcd85cb8-grwmk" in found.sentence
    if direction == "ingress":
        assert (found.kind, found.name) == ("NetworkPolicy", "web-allow-client")
    else:  # no policy says anything of its egress
        assert (found.kind, found.name) == ("Pod", "web-77fcd85cb8-grwmk")


def test_a_policy_that_allows(kube_router):
    rule = rules(kube_router, "ip", "kube-router-filter-ipv4", "KUBE-NWPLCY-4ANU2ZYVYNUUKDG3")[0]
    found = RuleObjects(kube_router).of(rule)
    assert (found.namespace, found.name, found.does) == ("shop", "web-allow-client", "allowed")


def test_kube_router_in_iptables():
    """Put together from the comments of its iptables mode (k3s), not recorded."""
    chain = "KUBE-POD-FW-24CAQJ4LYSAY3PHB"
    ruleset = saved(
        "filter",
        f'-A {chain} -d 10.42.0.5/32 -m comment --comment "run through nw policy redis-allow-api"'
        " -j KUBE-NWPLCY-AAAAAAAAAAAAAAAA",
        f'-A {chain} -s 10.42.0.5/32 -m comment --comment "run through default egress network'
        ' policy chain" -j KUBE-NWPLCY-DEFAULT',
        f'-A {chain} -m comment --comment "rule to REJECT traffic destined for POD name:redis-0'
        ' namespace: data" -m mark ! --mark 0x10000/0x10000 -j REJECT',
    )
    found = RuleObjects(ruleset).of(
        only(ruleset, "filter", chain, "REJECT"), tcp("10.42.0.5", 6379, "10.42.0.9")
    )
    assert (found.namespace, found.name) == ("data", "redis-allow-api")
    assert found.sentence == (
        "Rejected by NetworkPolicy data/redis-allow-api (kube-router), ingress of pod"
        " data/redis-0: it does not allow the packet."
    )


# CNI plugins: recorded


def test_a_host_port_leads_to_its_pod(iptables):
    chain = cni_chain("knet", CONTAINER, "CNI-DN-")
    found = RuleObjects(iptables, NODE).of(only(iptables, "nat", chain, "-j DNAT"))
    assert (found.owner, found.kind) == ("cni-portmap", "Pod")
    assert (found.namespace, found.name) == ("ops", "hostport")


def test_masquerade_of_the_bridge_plugin_leads_to_its_pod(iptables):
    rule = only(iptables, "nat", cni_chain("knet", CONTAINER), "MASQUERADE")
    found = RuleObjects(iptables, NODE).of(rule)
    assert (found.owner, found.name, found.does) == ("cni-bridge", "hostport", "masqueraded")


# Calico: put together from published rulesets, with their real hashes; not recorded here

CALICO = (
    "-A cali-tw-cali112d888c0c2 -m comment --comment cali:a -m conntrack --ctstate INVALID -j DROP",
    (
        "-A cali-tw-cali112d888c0c2 -m comment --comment cali:b -m mark --mark 0x0/0x20000"
        " -j cali-pi-_rWDSk9LLgWIl_lpnJE2"
    ),
    (
        '-A cali-tw-cali112d888c0c2 -m comment --comment cali:c -m comment --comment "End of tier'
        ' default. Drop if no policies passed packet" -m mark --mark 0x0/0x20000 -j DROP'
    ),
    (
        '-A cali-fw-cali112d888c0c2 -m comment --comment cali:d -m comment --comment "Drop if no'
        ' profiles matched" -j DROP'
    ),
    (
        '-A cali-nat-outgoing -m comment --comment "cali:e" -m set --match-set'
        " cali40masq-ipam-pools src -m set ! --match-set cali40all-ipam-pools dst -j MASQUERADE"
    ),
)
NAMED = (
    '-A cali-pi-_rWDSk9LLgWIl_lpnJE2 -m comment --comment cali:f -m comment --comment "Policy'
    ' kube-system/knp.default.konnectivity-agent ingress" -j MARK --set-xmark 0x10000/0x10000'
)
AGENT = Pod("u3", "kube-system", "konnectivity-agent-x", netns=7)


@pytest.mark.parametrize("known", ["by the comment", "by the API"])
def test_calicos_end_of_tier(known):
    ruleset = saved("filter", *CALICO, *([NAMED] if known == "by the comment" else []))
    policy = NetworkPolicy("kube-system", "konnectivity-agent")
    node = replace(
        NODE,
        pods={"u3": AGENT},
        devices={(1, 5): Device(1, 5, "cali112d888c0c2", "veth")},
        pod_by_device={(1, 5): "u3"},
        network_policies={policy.key: policy} if known == "by the API" else {},
    )
    rule = only(ruleset, "filter", "cali-tw-cali112d888c0c2", "End of tier")
    found = RuleObjects(ruleset, node).of(rule)
    assert (found.owner, found.kind, found.does) == ("calico", "NetworkPolicy", "default deny")
    assert (found.namespace, found.name) == ("kube-system", "konnectivity-agent")
    assert found.sentence == (
        "Dropped by NetworkPolicy kube-system/konnectivity-agent (Calico), ingress of pod"
        " kube-system/konnectivity-agent-x: it does not allow the packet."
    )


def test_calicos_rules_in_the_systems_chains():
    rule = (
        '-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment'
        ' "Policy explicitly accepted packet." -m mark --mark 0x10000/0x10000 -j ACCEPT'
    )
    ruleset = saved("filter", rule)
    found = RuleObjects(ruleset, NODE).of(only(ruleset, "filter", "FORWARD"))
    assert (found.owner, found.does) == ("calico", "accepted")
    assert found.sentence == "Accepted by Calico: Policy explicitly accepted packet."


@pytest.mark.parametrize(
    ("comment", "action", "says"),
    [
        ("cali:S93hcgKJrXEqnTfs; Policy explicitly accepted packet.", '{"accept":null}',
         "Accepted by Calico: Policy explicitly accepted packet."),
        ("cali:S93hcgKJrXEqnTfs;", '{"accept":null}', "Accepted by Calico."),
        ("S93hcgKJrXEqnTfs; Policy", '{"accept":null}', ""),
    ],
)  # fmt: skip
def test_calicos_nftables_mode_has_hash_and_words_in_one_comment(comment, action, says):
    nft = (
        f'{{"nftables":[{{"table":{{"family":"ip","name":"calico","handle":1}}}},'
        f'{{"chain":{{"family":"ip","table":"calico","name":"filter-FORWARD","handle":1,'
        f'"type":"filter","hook":"forward","prio":0,"policy":"accept"}}}},'
        f'{{"rule":{{"family":"ip","table":"calico","chain":"filter-FORWARD","handle":2,'
        f'"comment":"{comment}","expr":[{action}]}}}}]}}'
    )
    ruleset = read(nft=nft.encode())
    (rule,) = rules(ruleset, "ip", "calico", "filter-FORWARD")
    found = RuleObjects(ruleset).of(rule)
    assert (found.sentence if found else "") == says


def test_calicos_other_rules():
    ruleset = saved("filter", *CALICO, NAMED)
    device = calico_device("shop", "client")
    assert device.startswith("cali")
    objects = RuleObjects(ruleset, NODE)
    found = objects.of(only(ruleset, "filter", "cali-fw-cali112d888c0c2"))
    assert (found.does, found.name) == ("no profile matched", "")
    found = objects.of(only(ruleset, "filter", "cali-tw-cali112d888c0c2", "INVALID"))
    assert found.does == "invalid for conntrack"
    found = objects.of(only(ruleset, "filter", "cali-nat-outgoing"))
    assert found.does == "masqueraded"
    found = objects.of(only(ruleset, "filter", "cali-pi-_rWDSk9LLgWIl_lpnJE2"))
    assert (found.namespace, found.name, found.does) == (
        "kube-system",
        "konnectivity-agent",
        "allowed",
    )


# The rest: put together from their documented rules, not recorded


@pytest.mark.parametrize(
    ("table", "rule", "owner", "does", "says"),
    [
        (
            "nat",
            ('-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld'
            ' masq" -j MASQUERADE --random-fully'),
            "flannel",
            "masqueraded",
            "Masqueraded by flannel, packet of pod shop/client: it leaves with the node's address",
        ),
        (
            "filter",
            '-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
            "flannel",
            "accepted",
            "Accepted by flannel",
        ),
        (
            "nat",
            '-A AWS-SNAT-CHAIN-0 -d 192.168.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN',
            "aws-vpc-cni",
            "returned",
            "AWS VPC CNI",
        ),
        (
            "nat",
            ('-A AWS-SNAT-CHAIN-1 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype !'
            " --dst-type LOCAL -j SNAT --to-source 192.168.1.10 --random-fully"),
            "aws-vpc-cni",
            "given another source",
            "Given another source by AWS VPC CNI, packet of pod shop/client: SNAT",
        ),
        (
            "mangle",
            ('-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type'
            " LOCAL -j CONNMARK --set-xmark 0x80/0x80"),
            "aws-vpc-cni",
            "marked",
            "primary ENI",
        ),
        (
            "nat",
            ("-A CILIUM_POST_nat -s 10.0.1.0/24 ! -d 10.0.1.0/24 ! -o cilium_+ -m comment --comment"
            ' "cilium masquerade non-cluster" -j MASQUERADE'),
            "cilium",
            "masqueraded",
            "masquerade non-cluster",
        ),
        (
            "nat",
            ('-A ANTREA-POSTROUTING -s 172.16.10.0/24 ! -o antrea-gw0 -m comment --comment "Antrea:'
            ' masquerade Pod to external packets" -j MASQUERADE'),
            "antrea",
            "masqueraded",
            "masquerade Pod to external packets",
        ),
        (
            "nat",
            ('-A IP-MASQ-AGENT -m comment --comment "ip-masq-agent: outbound traffic is subject to'
            ' MASQUERADE (must be last in chain)" -j MASQUERADE'),
            "ip-masq-agent",
            "masqueraded",
            "outbound traffic is subject to MASQUERADE",
        ),
        ("filter", "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP", "docker", "dropped",
         "it keeps its bridge networks apart"),
        ("nat", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "docker",
         "masqueraded", "Masqueraded by Docker"),
        ("nat", ("-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination"
         " 172.17.0.2:80"), "docker", "sent to another destination",
         "172.17.0.2:80 publishes the port"),
        ("filter", "-A DOCKER-USER -p tcp -j DROP", "docker", "dropped", "the administrator's"),
    ],
)  # fmt: skip
def test_networks_and_masquerade(table, rule, owner, does, says):
    ruleset = saved(table, rule)
    found = RuleObjects(ruleset, NODE).of(
        only(ruleset, table, rule.split()[1]), tcp("203.0.113.9", 443)
    )
    assert (found.owner, found.kind, found.does) == (owner, "network", does)
    assert says in found.sentence


def test_a_queue_is_judged_elsewhere():
    """Put together from the documented table of kube-network-policies."""
    nft = (
        b'{"nftables":[{"metainfo":{"json_schema_version":1}},'
        b'{"table":{"family":"inet","name":"kube-network-policies","handle":1}},'
        b'{"chain":{"family":"inet","table":"kube-network-policies","name":"postrouting",'
        b'"handle":1,"type":"filter","hook":"postrouting","prio":-5,"policy":"accept"}},'
        b'{"rule":{"family":"inet","table":"kube-network-policies","chain":"postrouting",'
        b'"handle":2,"expr":[{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":"new"}},'
        b'{"queue":{"num":100,"flags":["bypass"]}}]}}]}'
    )
    ruleset = read(nft=nft)
    (rule,) = rules(ruleset, "inet", "kube-network-policies", "postrouting")
    found = RuleObjects(ruleset).of(rule)
    assert (found.owner, found.does) == ("kube-network-policies", "judged in user space")


def test_nobodys_rule_has_no_object():
    ruleset = saved("filter", "-A INPUT -p tcp -m tcp --dport 22 -j DROP")
    assert RuleObjects(ruleset, NODE).of(only(ruleset, "filter", "INPUT")) is None


def test_a_drop_by_policy():
    base = Base("filter", "forward", 0, "drop")
    found = RuleObjects(read()).of_policy(Chain("ip", "filter", "FORWARD", base=base))
    assert found.does == "policy drop"
    assert RuleObjects(read()).of_policy(Chain("ip", "filter", "X")) is None
    accepting = replace(base, policy="accept")
    assert RuleObjects(read()).of_policy(Chain("ip", "filter", "X", base=accepting)) is None


def test_fields_of_a_record(iptables):
    rule = only(iptables, "filter", "KUBE-SERVICES", "no-endpoints")
    assert RuleObjects(iptables).of(rule).fields() == {
        "netfilter.object.owner": "kube-proxy",
        "netfilter.object.kind": "Service",
        "netfilter.object.namespace": "shop",
        "netfilter.object.name": "no-endpoints",
        "netfilter.object.port": "80",
        "netfilter.object.does": "has no endpoints",
    }
