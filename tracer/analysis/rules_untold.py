"""Causes of drops for which the kernel gives no reason: the function alone tells.

Kernels before 5.17 give none at all, and newer ones leave some places out. One function
often drops for several causes: the sentence names them all.
"""

from __future__ import annotations

from tracer.analysis.rules import Rule

_FUNCTIONS = (
    (
        ("__udp4_lib_rcv", "__udp6_lib_rcv"),
        "No UDP socket takes port {dport} {where}, or the checksum is wrong.",
        "`ss -lun` there; then checksum offload at the sender",
    ),
    (
        ("udp_queue_rcv*", "udpv6_queue_rcv*", "__udp_queue_rcv*", "__udp_enqueue*"),
        "The receive buffer of the socket at port {dport} is full {where}, or a filter refused it.",
        "speed up the reader, or give it a larger SO_RCVBUF; `nstat UdpRcvbufErrors` there",
    ),
    (
        ("tcp_v4_rcv", "tcp_v6_rcv"),
        "No TCP socket takes port {dport} {where}, or the checksum is wrong.",
        "`ss -ltn` there; then checksum offload at the sender",
    ),
    (
        ("tcp_*", "__tcp_*"),
        "TCP at port {dport} had no use for it {where}: old, repeated or unexpected.",
        "`nstat -a` there: the TcpExt counters tell which",
    ),
    (
        ("icmp_rcv", "icmpv6_rcv"),
        "Its ICMP message is broken, or of a type nobody handles {where}.",
        "look at the sender {src}",
    ),
    (
        ("ip_rcv_finish*",),
        "Its addresses were refused {where}: rp_filter, a martian source, or no route.",
        "`ip route get {src}` there; sysctl net.ipv4.conf.all.log_martians=1 tells more",
    ),
    (
        ("ip_rcv*", "ip6_rcv*", "ipv6_rcv*"),
        "Its MAC address is another host's, or its IP header is not valid.",
        "`nstat -a` there: the IpIn and Ip6In counters tell which",
    ),
    (
        ("ipv6_destopt_rcv", "ipv6_rthdr_rcv", "ipv6_srh_rcv", "ipv6_parse_hopopts"),
        "An IPv6 extension header is not valid {where}.",
        "look at the sender {src}",
    ),
    (
        ("ip_local_deliver*", "ip_protocol_deliver*", "ip6_protocol_deliver*", "ip6_input*"),
        "Nobody speaks IP protocol {transport} {where}, or an IPsec policy refused it.",
        "load the protocol's module, or see `ip xfrm policy` there",
    ),
    (
        ("*ip_finish_output*", "ip6_finish_output*", "ip*_fragment*", "ip6_output*", "ip_output*"),
        "{Device} {where} could not send it: too big, no neighbour, or refused by a cgroup's BPF.",
        "compare its length with the MTU; `ip neigh` and `bpftool cgroup tree` there",
    ),
    (
        ("ip_frag*", "inet_frag*", "ip6_frag*", "ip6frag*", "ipv6_frag*", "ip_defrag*"),
        "Its packet could not be put together from its fragments.",
        "fragments are lost on the way, or come too late",
    ),
    (
        ("__netif_receive_skb_core*",),
        "Nobody takes frames of protocol {network} at {device} {where}, or tc dropped it.",
        "harmless if it is LLDP, STP or the like; else `tc filter show` there",
    ),
    (
        (
            "__dev_queue_xmit",
            "__dev_xmit_skb",
            "kfree_skb_list*",
            "*_enqueue",
            "dev_hard_start_xmit",
        ),
        "The queue (qdisc) of {device} {where} refused it: it is full, or the link is down.",
        "`tc -s qdisc show` and `ip link` there",
    ),
    (
        ("enqueue_to_backlog", "netif_rx*", "dev_forward_skb*", "__dev_forward_skb*"),
        "{Device} could not receive it {where}: down, smaller MTU, or the CPU's queue is full.",
        "`ip link` there; net.core.netdev_max_backlog",
    ),
    (
        ("veth_xdp_*", "do_xdp_generic*", "netif_receive_generic_xdp*"),
        "An XDP program at {device} {where} dropped it, or passed it on to nowhere.",
        "`bpftool net` there shows the program",
    ),
    (
        ("veth_*", "tun_*", "tap_*", "virtnet_*", "macvlan_*", "ipvlan_*"),
        "The device {device} {where} could not pass it on: its other end is down, full or gone.",
        "`ip -s link` there",
    ),
    (
        ("__neigh_event_send", "neigh_*"),
        "The neighbour {dst}, or the gateway to it, does not answer.",
        "`ip neigh` there",
    ),
    (
        ("sk_filter*", "sock_queue_rcv*", "__sk_receive*", "sock_*"),
        "The socket refused it {where}: its filter, or a full buffer.",
        "`ss -m` there",
    ),
    (
        ("unix_*",),
        "It is data of a Unix socket, not of the network.",
        "its reader left",
    ),
    (
        ("packet_rcv*", "tpacket_rcv*"),
        "A packet socket (tcpdump or the like) had no room for its copy {where}.",
        "the packet itself goes on",
    ),
    (
        ("skb_queue_purge*", "skb_release_*", "inet_sock_destruct", "*_destroy", "*_reset"),
        "The queue it waited in was emptied {where}.",
        "its socket or device was closed: harmless unless it recurs",
    ),
    (
        ("nf_*", "__nf_*", "ip_vs_*", "nfnl*"),
        "Netfilter (conntrack, NAT or IPVS) dropped it {where}.",
        "`conntrack -S`, `nft list ruleset` and `ipvsadm -Ln` there",
    ),
)

RULES = tuple(
    Rule("NOT_SPECIFIED", sentence, hint, at=functions) for functions, sentence, hint in _FUNCTIONS
)
