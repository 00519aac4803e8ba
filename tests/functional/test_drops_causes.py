"""Each cause that this kernel can be made to drop for: the reason it gives, and why, in words.

Which rules of explanation have no provocation, and why, is in tests/unit/analysis/test_provoked.py.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import pytest
from lab import causes, runner
from lab.expect import say
from lab.rules import iptables, nft
from lab.traffic import new_port, send_udp

pytestmark = pytest.mark.usefixtures("cluster")
"""First of all: it sweeps away the namespaces of a former run, `routed` among them."""

ROUTER, RIGHT = "router", "right"
SOME = 0
"""As many as it happens to be, one at least."""


class Cause(NamedTuple):
    """What a provocation leaves."""

    provoke: causes.Provoke
    where: str
    reason: str
    words: str
    count: int = 3
    transport: str | None = None
    """Where the kernel's own packets (ARP, neighbour discovery) would die of it as well."""


CAUSES = (
    Cause(causes.invalid_source, ROUTER, "IP_INVALID_SOURCE", "no address that may send"),
    Cause(causes.local_source, ROUTER, "IP_LOCAL_SOURCE", "is an address of"),
    Cause(causes.unicast_in_broadcast, ROUTER, "UNICAST_IN_L2_MULTICAST", "unicast packet"),
    Cause(causes.ipv6_disabled, ROUTER, "IPV6DISABLED", "ipv6 is disabled at mute0", SOME),
    Cause(causes.socket_filter, RIGHT, "SOCKET_FILTER", "bpf filter on the socket"),
    Cause(causes.queue_purge, ROUTER, "QUEUE_PURGE", "was emptied", SOME),
    Cause(causes.packet_socket, ROUTER, "PACKET_SOCK_ERROR", "no room for its copy", SOME),
    Cause(causes.icmp_of_no_type, RIGHT, "UNHANDLED_PROTO", "icmp message of a type"),
    Cause(causes.icmp_checksum, RIGHT, "ICMP_CSUM", "icmp checksum is wrong"),
    Cause(causes.broadcast_timestamp, ROUTER, "INVALID_PROTO", "icmp timestamp"),
    Cause(causes.too_small, ROUTER, "PKT_TOO_SMALL", "shorter than its header"),
    Cause(causes.receive_buffer, RIGHT, "PROTO_MEM", "receive buffer is full", SOME),
    Cause(causes.syn_with_fin, RIGHT, "TCP_FLAGS", "(fin,syn) make no sense"),
    Cause(causes.syn_again, RIGHT, "TCP_INVALID_SYN", "syn within an open connection"),
    Cause(causes.out_of_sequence, RIGHT, "TCP_INVALID_SEQUENCE", "outside of what the receiver"),
    Cause(causes.ack_of_unsent, RIGHT, "TCP_ACK_UNSENT_DATA", "never sent"),
    Cause(causes.old_timestamp, RIGHT, "TCP_RFC7323_PAWS", "timestamp is older"),
    Cause(causes.reset, RIGHT, "TCP_RESET", "is an rst", SOME),
    Cause(causes.min_ttl, RIGHT, "TCP_MINTTL", "ttl is below", SOME),
    Cause(causes.md5_missing, RIGHT, "TCP_MD5NOTFOUND", "md5 signature", SOME),
    Cause(causes.two_signatures, RIGHT, "TCP_AUTH_HDR", "malformed"),
    Cause(causes.fragment_twice, RIGHT, "DUP_FRAG", "has come before", 2),
    Cause(causes.fragments_time_out, RIGHT, "FRAG_REASM_TIMEOUT", "did not come in time", 1),
    Cause(causes.ndisc_from_afar, ROUTER, "IPV6_NDISC_HOP_LIMIT", "neighbour discovery"),
    Cause(causes.ndisc_for_another, ROUTER, "IPV6_NDISC_NS_OTHERHOST", "another host"),
    Cause(causes.bad_extension, RIGHT, "NOT_SPECIFIED", "extension header is not valid"),
    Cause(causes.unknown_option, RIGHT, "UNHANDLED_PROTO", "option that is not known"),
    Cause(causes.prohibited, ROUTER, "IP_INNOROUTES", "is a prohibit route"),
    Cause(causes.xfrm_policy, ROUTER, "XFRM_POLICY", "ipsec policy"),
    Cause(causes.tc_ingress, ROUTER, "TC_INGRESS", "ingress of to-left", 3, "udp"),
    Cause(causes.tc_egress, ROUTER, "TC_EGRESS", "egress of to-right", 3, "udp"),
    Cause(causes.xdp, ROUTER, "NOT_SPECIFIED", "xdp program at br5", SOME),
    Cause(causes.xdp_of_a_veth, ROUTER, "NOT_SPECIFIED", "xdp program at to-left", 3, "udp"),
    Cause(causes.neighbour_queue, ROUTER, "NEIGH_QUEUEFULL", "wait for the neighbour", SOME),
    Cause(causes.ring_is_full, ROUTER, "FULL_RING", "receive ring behind full0", SOME),
    Cause(causes.no_tunnel_goal, ROUTER, "NO_TX_TARGET", "nowhere to send it", SOME),
    Cause(causes.tunnel_without_parameters, ROUTER, "TUNNEL_TXINFO", "came without", SOME),
    Cause(causes.unknown_vni, ROUTER, "VXLAN_VNI_NOT_FOUND", "network identifier"),
    Cause(causes.vxlan_header, ROUTER, "VXLAN_INVALID_HDR", "vxlan header"),
    Cause(causes.tunnel_ecn, ROUTER, "IP_TUNNEL_ECN", "congestion marks"),
    Cause(causes.tunnel_echo, ROUTER, "LOCAL_MAC", "source mac address is vx5's own"),
    Cause(causes.tunnel_static_entry, ROUTER, "VXLAN_ENTRY_EXISTS", "static entry"),
    Cause(causes.bridge_source, ROUTER, "MAC_INVALID_SOURCE", "source mac address"),
    Cause(causes.pause_frame, ROUTER, "MAC_IEEE_MAC_CONTROL", "pause"),
    Cause(causes.blocked_port, ROUTER, "BRIDGE_INGRESS_STP_STATE", "spanning tree", SOME),
)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.provoke.__name__)
def test_cause(routed, drops, cause):
    place = {ROUTER: routed.router, RIGHT: routed.right.where}[cause.where]
    watch = runner.watch(drops)
    about = {"type": "drop", "drop.reason": cause.reason, "netns": place.inode}
    # A reason that is not told has many causes: others may meanwhile drop without one, too.
    about |= {"explanation": lambda text: cause.words in text.lower()}
    if cause.transport:
        about["transport"] = cause.transport
    with ExitStack() as stack:
        cause.provoke(routed, stack)
        if cause.count:
            found = watch.expect(cause.count, about, timeout_s=10)
        else:
            runner.until(lambda: watch.find(about), f"a drop for {cause.reason}", 10)
            found = watch.find(about)
    say(found, about, cause.words)


def by_nft(routed, stack):
    port = new_port()
    stack.enter_context(nft(routed.router, "inet", "forward", f"udp dport {port} drop"))
    send_udp(routed.left.where, (routed.right.ip4, port), 3)


def by_xtables(routed, stack):
    port = new_port()
    rule = ("FORWARD", "-p", "udp", "--dport", str(port), "-j", "DROP")
    stack.enter_context(iptables(routed.router, "iptables-legacy", *rule))
    send_udp(routed.left.where, (routed.right.ip4, port), 3)


UNNAMED = {
    by_nft: "an nftables (or iptables-nft) rule dropped it",
    by_xtables: "a netfilter hook function dropped it",
    causes.queue_without_program: "a queue rule handed it to a program",
}


def test_what_netfilter_drops_where_no_rule_is_looked_for(routed):
    """With --rules=off the mechanism is all that is told."""
    with runner.whole("drops", "--rules=off", "-o", "json") as live:
        for provoke, words in UNNAMED.items():
            watch = runner.watch(live)
            # Elsewhere in the namespace, packets of a test before may die of a neighbour's silence.
            about = {"netns": routed.router.inode, "dst.address": routed.right.ip4}
            with ExitStack() as stack:
                provoke(routed, stack)
                found = watch.expect(3, about, timeout_s=10)
            say(found, {"netfilter.rule_source": None}, words)
