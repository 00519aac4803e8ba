"""Where in netfilter a packet died: family, hook and mechanism, from the kernel's stack.

A verdict is not in the drop event, but the functions on the stack are: nf_hook_slow and
nft_do_chain name the mechanism, and the function that called them stands at a known
hook (net/ipv4, net/ipv6, net/bridge; same names from 5.10 to 7.2, measured).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.model import Record

_NFT_FAMILIES = {
    "nft_do_chain_ipv4": "ip",
    "nft_do_chain_ipv6": "ip6",
    "nft_do_chain_inet": "inet",
    "nft_do_chain_inet_ingress": "inet",
    "nft_do_chain_arp": "arp",
    "nft_do_chain_bridge": "bridge",
    "nft_do_chain_netdev": "netdev",
}

_MECHANISMS = {
    "nft_do_chain": "nf_tables",
    # nf_hook_slow frees what a hook function returned NF_DROP for: xtables, conntrack, IPVS,
    # BPF, and on kernels whose nft_do_chain does not free by itself nf_tables too.
    "nf_hook_slow": "hook",
    "nf_reinject": "nf_queue",
    "nfqnl_reinject": "nf_queue",
    "nfqnl_recv_verdict": "nf_queue",
    "nf_queue": "nf_queue",
    "__nf_queue": "nf_queue",
}
"""Function that frees → what decided."""

_BETWEEN = _NFT_FAMILIES.keys() | {
    "nft_do_chain", "nf_hook_slow", "nf_hook_slow_list", "nf_hook", "br_nf_hook_thresh",
    "ipt_do_table", "ip6t_do_table", "arpt_do_table", "ebt_do_table",
}  # fmt: skip
"""Frames that may stand between the freeing function and the one that stands at the hook."""

_CALLERS: dict[str, dict[str, tuple[str, ...]]] = {
    "PREROUTING": {
        "ip": ("ip_rcv", "ip_sublist_rcv", "ip_list_rcv", "br_nf_pre_routing", "vrf_l3_rcv"),
        "ip6": ("ipv6_rcv", "ip6_sublist_rcv", "ipv6_list_rcv", "br_nf_pre_routing_ipv6"),
        "bridge": (
            "br_handle_frame",
            "br_nf_pre_routing_finish",
            "br_nf_pre_routing_finish_ipv6",
            "br_nf_pre_routing_finish_bridge",
        ),
    },
    "INPUT": {
        "ip": ("ip_local_deliver",),
        "ip6": ("ip6_input",),
        "arp": ("arp_rcv",),
        "bridge": ("br_pass_frame_up",),
    },
    "FORWARD": {
        "ip": ("ip_forward", "ipmr_queue_xmit", "ipmr_queue_fwd_xmit"),
        "ip6": ("ip6_forward", "ip6mr_forward2"),
        "": ("br_nf_forward_ip", "br_nf_forward"),
        "arp": ("br_nf_forward_arp",),
        "bridge": ("__br_forward", "br_nf_forward_finish"),
    },
    "OUTPUT": {
        "ip": ("__ip_local_out", "raw_send_hdrinc", "raw_sendmsg"),
        "ip6": (
            "__ip6_local_out",
            "ip6_xmit",
            "ndisc_send_skb",
            "mld_sendpack",
            "igmp6_send",
            "rawv6_send_hdrinc",
            "rawv6_sendmsg",
        ),
        "arp": ("arp_xmit",),
    },
    "POSTROUTING": {
        "ip": ("ip_output", "ip_mc_output"),
        "ip6": ("ip6_output", "ip6_mc_output"),
        "": ("br_nf_post_routing", "xfrm_output_resume"),
        "bridge": ("br_forward_finish",),
    },
    "INGRESS": {"netdev": ("__netif_receive_skb_core",)},
    "EGRESS": {"netdev": ("__dev_queue_xmit",)},
}

_HOOKS = {
    function: (family, hook)
    for hook, families in _CALLERS.items()
    for family, functions in families.items()
    for function in functions
}
"""Function that calls netfilter → (family, hook); family "" where it serves ip and ip6."""


def netfilter_place(location: str, stack: Sequence[str]) -> Record:
    """Fields `netfilter.family`, `.hook`, `.mechanism` of a drop; empty if not netfilter's.

    `location` and each of `stack` are `symbol+0xoffset`, the stack innermost first; it may
    begin with the frames of the tracing itself. The family is the rule's table's, where
    nf_tables dropped, else the hook's. Hook and family are left out where the stack
    does not tell.
    """
    freeing = _function(location)
    mechanism = _MECHANISMS.get(freeing)
    if mechanism is None:
        return {}
    frames = [_function(frame) for frame in stack]
    above = frames[frames.index(freeing) + 1 :] if freeing in frames else []
    family, hook = _hook(above)
    place = {"family": family, "hook": hook, "mechanism": mechanism}
    return {f"netfilter.{name}": value for name, value in place.items() if value}


def _function(frame: str) -> str:
    """Name without offset and without what the compiler added (`.part.0`, `.constprop.0`)."""
    return frame.partition("+")[0].partition(".")[0]


def _hook(above: Sequence[str]) -> tuple[str, str]:
    table = ""
    for index, function in enumerate(above):
        table = table or _NFT_FAMILIES.get(function, "")
        # Of no known text: a BPF trampoline around a function that is traced by fexit.
        if function in _BETWEEN or function.startswith("0x"):
            continue
        family, hook = _HOOKS.get(function, ("", ""))
        # One function serves two hooks: what the bridge itself sends came by br_dev_xmit.
        if function == "__br_forward" and above[index + 1 : index + 2] == ["br_dev_xmit"]:
            hook = "OUTPUT"
        return table or family, hook
    return table, ""
