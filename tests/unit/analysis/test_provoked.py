"""Each kind of explanation is provoked for real in tests/functional, or it is said why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.analysis import ct_failures
from tracer.analysis import explain as module

FUNCTIONAL = Path(__file__).parents[2] / "functional"

PROVOKED = {
    "test_drops_conntrack.py": ["The conntrack table", "It was dropped"],
    "test_rules.py": ["{object}The policy of", "{object}A rule of"],
    "test_rules_evidence.py": ["By the rules"],
    "test_rules_trace.py": ["One of {candidates}"],
    "test_drops_receiving.py": [
        "NO_SOCKET", "SOCKET_RCVBUFF", "IP_NOPROTO", "UNHANDLED_PROTO", "OTHERHOST", "IP_CSUM",
        "TCP_CSUM", "UDP_CSUM", "IP_INHDR", "QDISC_DROP",
    ],
    "test_drops_routing.py": [
        "IP_RPFILTER", "IP_LOCALNET", "IP_INADDRERRORS ip_error", "IP_INADDRERRORS ip6_forward",
        "IP_INNOROUTES", "NOT_SPECIFIED ip_error", "NOT_SPECIFIED dst_discard*",
        "IP_INHDR ip_forward", "IP_INHDR ip6_forward", "PKT_TOO_BIG", "NEIGH_FAILED",
        "* neigh_invalidate",
    ],
    "test_drops_causes.py": [
        "IP_INVALID_SOURCE", "IP_LOCAL_SOURCE", "UNICAST_IN_L2_MULTICAST", "IPV6DISABLED",
        "SOCKET_FILTER", "QUEUE_PURGE", "PACKET_SOCK_ERROR", "UNHANDLED_PROTO icmp*", "ICMP_CSUM",
        "INVALID_PROTO", "PKT_TOO_SMALL", "PROTO_MEM", "TCP_FLAGS", "TCP_INVALID_SYN", "TCP_*",
        "TCP_*ACK*", "TCP_RFC7323_*", "TCP_RESET", "TCP_MINTTL", "TCP_MD5*", "TCP_AUTH_HDR",
        "DUP_FRAG", "FRAG_REASM_TIMEOUT", "IPV6_NDISC_*", "IPV6_NDISC_NS_OTHERHOST",
        "XFRM_POLICY", "TC_INGRESS", "TC_EGRESS", "NOT_SPECIFIED veth_xdp_*", "NEIGH_QUEUEFULL",
        "FULL_RING", "NO_TX_TARGET", "TUNNEL_TXINFO", "VXLAN_VNI_NOT_FOUND", "VXLAN_INVALID_HDR",
        "IP_TUNNEL_ECN", "LOCAL_MAC", "VXLAN_ENTRY_EXISTS", "MAC_INVALID_SOURCE",
        "MAC_IEEE_MAC_CONTROL", "BRIDGE_INGRESS_STP_STATE", "UNHANDLED_PROTO ip6_tlvopt_unknown",
        "IP_INNOROUTES ip6_pkt_prohibit*", "NOT_SPECIFIED ipv6_destopt_rcv", "An nftables (or",
        "A netfilter hook", "A queue rule",
    ],
}  # fmt: skip
"""Kinds by the file that provokes them."""

_RECORDED = "provoked by hand on 6.18, and recorded in tests/data/drops.json"
_OLDER = "of kernels that give no reason (before 5.17), tests/kernels run the drops there"
_NO_MODULE = "the kernel of the tests has not what it takes"
_NODE_WIDE = "it would take the memory, a limit or the CPU of the whole machine"
_BY_CHANCE = "a race or a fault of the kernel's, which nobody can make happen"
_NOT_SEEN = "no way was found yet to make 6.18 say so"
NOT_PROVOKED = {
    "NETFILTER_DROP": "where the stack was not recorded: the kernels of the tests always do",
    "NOT_SPECIFIED ip6_mc_input": "neighbours do it all the time: seen by every test of IPv6",
    "IP_INADDRERRORS": "the rest of what is provoked by its function",
    "NOT_SPECIFIED br_*": _RECORDED,
    "IP_OUTNOROUTES": _NOT_SEEN,
    "IP_INVALID_DEST": _NOT_SEEN,
    "ARP_PVLAN_DISABLE": _NOT_SEEN,
    "SOCKET_CLOSE": _NOT_SEEN,
    "TCP_LISTEN_OVERFLOW": _NOT_SEEN,
    "TCP_ZEROWINDOW": _NOT_SEEN,
    "TCP_ABORT_ON_DATA": _NOT_SEEN,
    "TCP_CLOSE": _NOT_SEEN,
    "TCP_FASTOPEN": _NOT_SEEN,
    "UNIX_*": _NOT_SEEN,
    "XDP": _NOT_SEEN,
    "FRAG_TOO_FAR": _NOT_SEEN,
    "HDR_TRUNC": _NOT_SEEN,
    "IPV6_BAD_EXTHDR": _NOT_SEEN,
    "NOT_SPECIFIED ip_forward": _OLDER,
    "NOT_SPECIFIED arp_*": _NOT_SEEN,
    "NOT_SPECIFIED vxlan_*": _OLDER,
    "BPF_CGROUP_EGRESS": "it would take a cgroup of ours and a process in it",
    "TCP_AO*": _NO_MODULE,
    "FQ_*": _NO_MODULE,
    "QDISC_OVERLIMIT": _NO_MODULE,
    "QDISC_CONGESTED": _NO_MODULE,
    "DUALPI2_STEP_DROP": _NO_MODULE,
    "CAKE_FLOOD": _NO_MODULE,
    "OVS_DROP*": _NO_MODULE,
    "CAN*": _NO_MODULE,
    "PSP_*": _NO_MODULE,
    "SECURITY_HOOK": _NO_MODULE,
    "TC_*": _NO_MODULE,
    "TAP_FILTER": _NO_MODULE,
    "TAP_TXFILTER": _NO_MODULE,
    "SOCKET_BACKLOG": _BY_CHANCE,
    "TCP_OFO_QUEUE_PRUNE": _BY_CHANCE,
    "NEIGH_DEAD": _BY_CHANCE,
    "NEIGH_HH_FILLFAIL": _BY_CHANCE,
    "SKB_CSUM": _BY_CHANCE,
    "SKB_GSO_SEG": _BY_CHANCE,
    "SKB_UCOPY_FAULT": _BY_CHANCE,
    "DEV_READY": _BY_CHANCE,
    "DEV_HDR": _BY_CHANCE,
    "RECURSION_LIMIT": _NODE_WIDE,
    "CPU_BACKLOG": _NODE_WIDE,
    "NEIGH_CREATEFAIL": _NODE_WIDE,
    "NOMEM": _NODE_WIDE,
    "PFMEMALLOC": _NODE_WIDE,
    "NOT_SPECIFIED": "the last resort, for what no rule knows",
    "The kernel dropped": "the last resort, for what no rule knows",
}
"""The others, and why."""


def kind(rule):
    """What tells it from others: reason and first function, else how its sentence begins."""
    if rule.at:
        return f"{rule.reason} {rule.at[0]}"
    return rule.reason if rule.reason != "*" else " ".join(rule.sentence.split()[:3])


UNTOLD = {kind(rule) for rule in module.rules_untold.RULES} - {
    "NOT_SPECIFIED veth_xdp_*",
    "NOT_SPECIFIED ipv6_destopt_rcv",
}
"""By the function alone: what the kernels of tests/kernels do that give no reason."""


def test_every_kind_is_provoked_or_it_is_said_why_not():
    provoked = [one for kinds in PROVOKED.values() for one in kinds]
    assert len(provoked) == len(set(provoked))
    assert not set(provoked) & NOT_PROVOKED.keys()
    assert {kind(rule) for rule in module._RULES} - UNTOLD == {*provoked, *NOT_PROVOKED}
    assert all(NOT_PROVOKED.values())


@pytest.mark.parametrize("file", PROVOKED)
def test_the_tests_name_the_reasons_that_they_provoke(file):
    text = (FUNCTIONAL / file).read_text()
    for one in PROVOKED[file]:
        reason = one.split()[0].strip("*").partition("*")[0]
        if reason.isupper() and "_" in reason and reason != "NOT_SPECIFIED":
            assert reason in text, one


def test_every_failure_of_conntrack_is_provoked():
    text = (FUNCTIONAL / "test_conntrack_failures.py").read_text()
    kinds = (*ct_failures.FAILURES.values(), ct_failures.TABLE_FULL, ct_failures.INSERT_FAILED)
    assert [kind.name for kind in kinds if f'"{kind.name}"' not in text] == []
