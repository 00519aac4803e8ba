"""The stacks in tests/data/stacks.json are real: every hook, by rules that dropped, on 6.18.

What other kernels show was measured on 5.10, 6.1, 6.12 and 7.2, with the innermost frames only.
"""

import json
from pathlib import Path

import pytest

from tracer.analysis.netfilter import netfilter_place

REAL = json.loads((Path(__file__).parents[2] / "data" / "stacks.json").read_text())["drops"]


@pytest.mark.parametrize("drop", REAL, ids=lambda drop: f"{drop['rule']} {drop['packet']}")
def test_real_stacks(drop):
    assert netfilter_place(drop["location"], drop["stack"]) == drop["place"]


def test_every_hook_is_among_the_real_stacks():
    seen = {(d["place"].get("netfilter.family"), d["place"]["netfilter.hook"]) for d in REAL}
    hooks = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    assert {(family, hook) for family in ("ip", "ip6", "inet", "bridge") for hook in hooks} <= seen
    assert {("arp", "INPUT"), ("arp", "OUTPUT"), ("inet", "INGRESS")} <= seen
    assert {("netdev", "INGRESS"), ("netdev", "EGRESS")} <= seen


@pytest.mark.parametrize(
    ("caller", "family", "hook"),
    [
        ("ip_rcv", "ip", "PREROUTING"),
        ("ip_local_deliver", "ip", "INPUT"),
        ("ip_forward", "ip", "FORWARD"),
        ("__ip_local_out", "ip", "OUTPUT"),
        ("ip_output", "ip", "POSTROUTING"),
        ("ip_mc_output", "ip", "POSTROUTING"),
        ("ipv6_rcv", "ip6", "PREROUTING"),
        ("ip6_input", "ip6", "INPUT"),
        ("ip6_forward", "ip6", "FORWARD"),
        ("__ip6_local_out", "ip6", "OUTPUT"),
        ("ip6_output", "ip6", "POSTROUTING"),
        ("__netif_receive_skb_core", "netdev", "INGRESS"),
        ("__dev_queue_xmit", "netdev", "EGRESS"),
        ("__br_forward", "bridge", "FORWARD"),
    ],
)
def test_kernels_where_nf_hook_slow_frees(caller, family, hook):
    stack = ["kfree_skb+0x5", "nf_hook_slow+0xa1", f"{caller}+0x10", "process_backlog+0x1"]
    assert netfilter_place("nf_hook_slow+0xa1", stack) == {
        "netfilter.family": family,
        "netfilter.hook": hook,
        "netfilter.mechanism": "hook",
    }


def test_packets_received_in_lists_have_one_more_frame():
    stack = ["nf_hook_slow+0x7d", "nf_hook_slow_list+0x80", "ip_sublist_rcv+0x1", "ip_list_rcv+0x2"]
    assert netfilter_place("nf_hook_slow+0x7d", stack)["netfilter.hook"] == "PREROUTING"


def test_the_trampoline_of_a_function_traced_by_fexit_has_no_name():
    around = ["0xffffffffc0a7c047", "nf_hook_slow+0x5", "ip_forward+0x1"]
    place = netfilter_place("nf_hook_slow+0xa1", ["nf_hook_slow+0xa1", *around])
    assert (place["netfilter.family"], place["netfilter.hook"]) == ("ip", "FORWARD")


def test_a_drop_below_a_hook_is_not_netfilters():
    stack = ["__udp4_lib_rcv+0x4bc", "ip_local_deliver+0x1", "nf_hook_slow+0x10", "ip_rcv+0x1"]
    assert netfilter_place("__udp4_lib_rcv+0x4bc", stack) == {}


def test_without_a_stack_the_mechanism_remains():
    assert netfilter_place("nft_do_chain+0x46f", []) == {"netfilter.mechanism": "nf_tables"}
    assert netfilter_place("nf_reinject+0x1", ["x+0x1"]) == {"netfilter.mechanism": "nf_queue"}


def test_an_unknown_caller_leaves_the_hook_out():
    stack = ["nft_do_chain+0x46f", "nft_do_chain_ipv4+0x1", "nf_hook_slow+0x1", "some_tunnel+0x1"]
    assert netfilter_place("nft_do_chain+0x46f", stack) == {
        "netfilter.family": "ip",
        "netfilter.mechanism": "nf_tables",
    }
