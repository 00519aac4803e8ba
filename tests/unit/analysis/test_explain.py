"""The rules explain what was really seen: tests/data/drops.json, causes provoked on 6.18."""

import json
import re
from pathlib import Path
from string import Formatter

import pytest

from tracer.analysis import explain as module
from tracer.analysis.explain import explain, wanted_evidence, words

REAL = json.loads((Path(__file__).parents[2] / "data" / "drops.json").read_text())["drops"]
NETWORKS = {"0800": "ipv4", "86dd": "ipv6", "0806": "arp"}
SAYS = {
    "closed udp": "no udp socket takes port 53 in pod shop/web",
    "closed tcp": "no tcp socket",
    "forwarding off": "forwarding is off",
    "not my address": "forwarding is off",
    "link-local": "link-local",
    "rp_filter": "(rp_filter) refused the source 10.1.0.2",
    "no route": "no route to 10.2.0.1",
    "blackhole": "blackhole",
    "prohibit": "prohibit",
    "unreachable": "route",
    "ttl": "ran out",
    "df too big": "more than the mtu",
    "dead neighbour": "did not answer arp",
    "neighbour queue": "wait for the neighbour",
    "rcvbuf": "receive buffer of the socket at port 53 is full",
    "udp checksum": "udp checksum is wrong",
    "tcp": "tcp checksum is wrong",
    "icmp checksum": "icmp checksum is wrong",
    "ip checksum": "ip header checksum is wrong",
    "ip bad header": "ip header is not valid",
    "ip short": "shorter than its header says",
    "unknown ip protocol": "nobody speaks ip protocol",
    "sctp": "nobody speaks ip protocol",
    "unknown ethertype": "nobody takes frames of protocol 0x88b5",
    "other host": "mac address is another host's",
    "martian": "",
    "v6 multicast src": "ip header is not valid",
    "peer device down": "the link is down",
    "own device down": "the link is down",
    "ipv6 disabled": "ipv6 is disabled at eth0",
    "bridge port": "the bridge had no port",
    "bridge isolated": "is isolated",
    "bridge in port": "spanning tree",
    "icmp unknown": "type that the kernel does not handle",
    "multicast group": "joined the multicast group",
}


def record(reason, location, protocol="0800", **more):
    transport = re.match("(tcp|udp|icmp)?", location.removeprefix("__"))[0] or "udp"
    return {
        "drop.reason": reason,
        "drop.location": location,
        "network.type": NETWORKS.get(protocol, f"0x{protocol}"),
        "transport": transport,
        "src.address": "10.1.0.2",
        "dst.address": "10.2.0.1",
        "src.port": 4000,
        "dst.port": 53,
        "interface.name": "eth0",
        "netns": 4026532000,
        "netns.name": "cni-1",
        "k8s.pod.namespace": "shop",
        "k8s.pod.name": "web",
        **more,
    }


@pytest.mark.parametrize("drop", REAL, ids=lambda d: f"{d['cause']} {d['protocol']}")
def test_real_drops_are_explained(drop):
    expected = next(text for cause, text in SAYS.items() if drop["cause"].startswith(cause))
    told = explain(record(drop["reason"], drop["location"], drop["protocol"]), {})
    assert expected in told.sentence.lower()
    assert "gives" not in told.sentence
    assert told.sentence[0].isupper()
    assert told.sentence.endswith(".")
    assert told.hint


def test_every_rule_fills_its_texts_even_with_an_empty_record():
    known = set(words({}))
    for rule in module._RULES:
        for text in (rule.sentence, rule.hint, *rule.evidence):
            assert {name for _, name, _, _ in Formatter().parse(text) if name} <= known, text
            assert len(text) <= 140


def test_every_rule_can_win():
    """A rule that an earlier one hides would be dead text."""
    for index, rule in enumerate(module._RULES):
        for earlier in module._RULES[:index]:
            same = earlier.reason in (rule.reason, "*")
            assert not (same and not earlier.when and not earlier.at), rule


def test_evidence_is_asked_for_and_quoted():
    drop = record("IP_RPFILTER", "ip_rcv_finish_core+0x25b")
    wanted = wanted_evidence(drop)
    assert wanted == ("net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.all.rp_filter")
    told = explain(drop, {"net.ipv4.conf.eth0.rp_filter": "1"})
    assert told.sentence.endswith("(net.ipv4.conf.eth0.rp_filter is 1).")
    del drop["interface.name"]
    assert wanted_evidence(drop) == ("net.ipv4.conf.all.rp_filter",)


def test_netfilter_names_the_hook_and_the_place():
    place = {
        "netfilter.family": "ip",
        "netfilter.hook": "FORWARD",
        "netfilter.mechanism": "nf_tables",
    }
    drop = record("NETFILTER_DROP", "nft_do_chain+0x46f", **place) | {"netns.name": "node"}
    told = explain(drop | {"conntrack.state": "new"}, {})
    assert told.sentence == (
        "An nftables (or iptables-nft) rule dropped it in ip FORWARD on the node."
    )
    assert "conntrack" not in told.hint
    assert "conntrack" not in explain(drop, {}).hint
    late = drop | {"transport": "tcp", "tcp.flags": "RST"}
    assert "ct state invalid" in explain(late, {}).hint
    hook = drop | {"netfilter.mechanism": "hook"}
    assert "net.netfilter.nf_conntrack_max" in wanted_evidence(hook)
    assert "iptables-legacy" in explain(hook, {}).sentence


def test_places_are_named():
    assert words({"netns.name": "node", "k8s.pod.name": "x"})["where"] == "on the node"
    assert words({"netns": 7})["where"] == "in netns 7"
    assert words({})["where"] == "on this host"


def test_unknown_reasons_say_so_truthfully():
    told = explain({"drop.reason": "NEW_REASON", "drop.location": "new_func.cold+0x1"}, {})
    assert told.sentence == (
        "The kernel dropped it in new_func on this host and gives NEW_REASON as the reason."
    )
    untold = explain({"drop.reason": "NOT_SPECIFIED", "drop.location": "new_func+0x1"}, {})
    assert "without giving a reason" in untold.sentence


CORE = """
    NOT_SPECIFIED NO_SOCKET SOCKET_CLOSE SOCKET_FILTER SOCKET_RCVBUFF UNIX_DISCONNECT UNIX_SKIP_OOB
    PKT_TOO_SMALL TCP_CSUM UDP_CSUM NETFILTER_DROP OTHERHOST IP_CSUM IP_INHDR IP_RPFILTER
    UNICAST_IN_L2_MULTICAST XFRM_POLICY IP_NOPROTO PROTO_MEM TCP_AUTH_HDR TCP_MD5NOTFOUND
    TCP_MD5UNEXPECTED TCP_MD5FAILURE TCP_AONOTFOUND TCP_AOUNEXPECTED TCP_AOKEYNOTFOUND TCP_AOFAILURE
    SOCKET_BACKLOG TCP_FLAGS TCP_ABORT_ON_DATA TCP_ZEROWINDOW TCP_OLD_DATA TCP_OVERWINDOW
    TCP_OFOMERGE TCP_RFC7323_PAWS TCP_RFC7323_PAWS_ACK TCP_RFC7323_TW_PAWS TCP_RFC7323_TSECR
    TCP_LISTEN_OVERFLOW TCP_OLD_SEQUENCE TCP_INVALID_SEQUENCE TCP_INVALID_END_SEQUENCE
    TCP_INVALID_ACK_SEQUENCE TCP_RESET TCP_INVALID_SYN TCP_CLOSE TCP_FASTOPEN TCP_OLD_ACK
    TCP_TOO_OLD_ACK TCP_ACK_UNSENT_DATA TCP_OFO_QUEUE_PRUNE TCP_OFO_DROP IP_OUTNOROUTES
    BPF_CGROUP_EGRESS IPV6DISABLED NEIGH_CREATEFAIL NEIGH_FAILED NEIGH_QUEUEFULL NEIGH_DEAD
    NEIGH_HH_FILLFAIL TC_EGRESS SECURITY_HOOK QDISC_DROP QDISC_OVERLIMIT QDISC_CONGESTED CAKE_FLOOD
    FQ_BAND_LIMIT FQ_HORIZON_LIMIT FQ_FLOW_LIMIT CPU_BACKLOG XDP TC_INGRESS UNHANDLED_PROTO SKB_CSUM
    SKB_GSO_SEG SKB_UCOPY_FAULT DEV_HDR DEV_READY FULL_RING NOMEM HDR_TRUNC TAP_FILTER TAP_TXFILTER
    ICMP_CSUM INVALID_PROTO IP_INADDRERRORS IP_INNOROUTES IP_LOCAL_SOURCE IP_INVALID_SOURCE
    IP_LOCALNET IP_INVALID_DEST PKT_TOO_BIG DUP_FRAG FRAG_REASM_TIMEOUT FRAG_TOO_FAR TCP_MINTTL
    IPV6_BAD_EXTHDR IPV6_NDISC_FRAG IPV6_NDISC_HOP_LIMIT IPV6_NDISC_BAD_CODE IPV6_NDISC_BAD_OPTIONS
    IPV6_NDISC_NS_OTHERHOST QUEUE_PURGE TC_COOKIE_ERROR PACKET_SOCK_ERROR TC_CHAIN_NOTFOUND
    TC_RECLASSIFY_LOOP VXLAN_INVALID_HDR VXLAN_VNI_NOT_FOUND MAC_INVALID_SOURCE VXLAN_ENTRY_EXISTS
    NO_TX_TARGET IP_TUNNEL_ECN TUNNEL_TXINFO LOCAL_MAC ARP_PVLAN_DISABLE MAC_IEEE_MAC_CONTROL
    BRIDGE_INGRESS_STP_STATE CAN_RX_INVALID_FRAME CANFD_RX_INVALID_FRAME CANXL_RX_INVALID_FRAME
    PFMEMALLOC DUALPI2_STEP_DROP PSP_INPUT PSP_OUTPUT RECURSION_LIMIT
""".split()  # noqa: SIM905 - enum skb_drop_reason of 6.18, in its order


@pytest.mark.parametrize("reason", CORE[1:])
def test_every_core_reason_of_this_kernel_has_a_rule(reason):
    assert "gives" not in explain(record(reason, "anything+0x1"), {}).sentence
