"""Causes of drops in IP, neighbours and sockets.

What this kernel really does for each was provoked and recorded in tests/data/drops.json;
the rest follows include/net/dropreason-core.h and its users.
"""

from __future__ import annotations

from tracer.analysis.rules import Rule

_V4, _V6 = {"network.type": ("ipv4",)}, {"network.type": ("ipv6",)}
_TCP, _UDP = {"transport": ("tcp",)}, {"transport": ("udp",)}
_ROUTE_HINT = "`ip route get {dst}` there; add the route, or remove the blackhole/unreachable one"

SOCKETS = (
    Rule(
        "NO_SOCKET",
        "No UDP socket takes port {dport} {where}.",
        "is the server running, on this address and not only on 127.0.0.1? `ss -lun` there",
        when=_UDP,
    ),
    Rule(
        "NO_SOCKET",
        "No TCP socket listens on port {dport} {where}: it is answered with a reset.",
        "is the server running, on this address and not only on 127.0.0.1? `ss -ltn` there",
        when={**_TCP, "tcp.flags": ("SYN", "SYN,ECE,CWR")},
    ),
    Rule(
        "NO_SOCKET",
        "No TCP socket knows this connection to port {dport} {where}: it ended, or never was.",
        "a late packet of a closed connection is harmless; else look for a lost or expired NAT",
        when=_TCP,
    ),
    Rule(
        "NO_SOCKET",
        "No socket takes this {transport} packet {where}.",
        "is the program that should receive it running? `ss -a` there",
    ),
    Rule(
        "SOCKET_RCVBUFF",
        "The receive buffer of the socket at port {dport} is full {where}: its program reads too"
        " slowly.",
        "speed up the reader, or give it a larger SO_RCVBUF and raise net.core.rmem_max",
        evidence=("net.core.rmem_default", "net.core.rmem_max"),
    ),
    Rule(
        "SOCKET_BACKLOG",
        "The backlog of the socket at port {dport} is full {where}: it was busy too long.",
        "the program or its CPU is overloaded; larger socket buffers give it time",
        evidence=("net.core.rmem_max",),
    ),
    Rule(
        "SOCKET_FILTER",
        "A BPF filter on the socket, or of its cgroup, refused it {where}.",
        "`bpftool cgroup tree` and the program's SO_ATTACH_FILTER",
    ),
    Rule(
        "BPF_CGROUP_EGRESS",
        "A BPF program of the sender's cgroup refused it {where}.",
        "`bpftool cgroup tree` shows which; systemd's IPAddressDeny= makes such programs",
    ),
    Rule("SOCKET_CLOSE", "Its socket was closed {where}.", "harmless unless the program restarts"),
    Rule(
        "PROTO_MEM",
        "The socket at port {dport} had no memory for it {where}: its receive buffer is full, or"
        " all memory for {transport} sockets is in use.",
        "does its program read? `ss -m` there shows what sockets hold; net.ipv4.{transport}_mem",
        evidence=("net.ipv4.{transport}_mem",),
    ),
    Rule(
        "PACKET_SOCK_ERROR",
        "A packet socket (tcpdump or the like) had no room for its copy {where}.",
        "the packet itself goes on; give the capture a larger buffer",
    ),
    Rule(
        "UNIX_*",
        "It is data of a Unix socket, not of the network.",
        "the reader left, or does not take out-of-band data",
    ),
    Rule(
        "IP_NOPROTO",
        "Nobody speaks IP protocol {transport} {where}.",
        "load the protocol's module (sctp, ip_gre, …) or stop the sender",
    ),
    Rule(
        "UNHANDLED_PROTO",
        "It is an ICMP message of a type that the kernel does not handle.",
        "harmless; ask the sender {src} why",
        at=("icmp*",),
    ),
    Rule(
        "UNHANDLED_PROTO",
        "It has an IPv6 option that is not known {where}, and that says: drop it then.",
        "look at the sender {src}",
        at=("ip6_tlvopt_unknown",),
    ),
    Rule(
        "UNHANDLED_PROTO",
        "Nobody takes frames of protocol {network} {where}.",
        "harmless if it is LLDP, STP or the like; else load the protocol's module",
    ),
    Rule(
        "INVALID_PROTO",
        "It breaks its protocol's rules, such as a broadcast ICMP timestamp request.",
        "look at the sender {src}",
    ),
)

ADDRESSES = (
    Rule(
        "IP_RPFILTER",
        "Reverse path filtering (rp_filter) refused the source {src}: the way back to it does not"
        " lead out of {device}.",
        "`ip route get {src}` there; mend the route, or set rp_filter to 2 (loose) or 0",
        evidence=("net.ipv4.conf.{iif}.rp_filter", "net.ipv4.conf.all.rp_filter"),
    ),
    Rule(
        "IP_LOCALNET",
        "A 127.0.0.0/8 address came in from the wire at {device}, which is never let in.",
        "if wanted (NodePort on localhost), set route_localnet; else look for a wrong NAT",
        evidence=("net.ipv4.conf.{iif}.route_localnet",),
    ),
    Rule(
        "IP_LOCAL_SOURCE",
        "Its source {src} is an address of {host} itself, but it came in from the wire.",
        "look for a duplicate address, a loop or spoofing; accept_local allows it",
        evidence=("net.ipv4.conf.{iif}.accept_local",),
    ),
    Rule(
        "IP_INVALID_SOURCE",
        "Its source {src} is no address that may send (multicast, broadcast or 0.0.0.0/8).",
        "look at the sender",
    ),
    Rule(
        "IP_INVALID_DEST",
        "Its destination {dst} is no address that can receive (0.0.0.0/8 or the like).",
        "look at the sender {src}",
    ),
    Rule(
        "ARP_PVLAN_DISABLE",
        "It would go out of {device} again, by which it came, and proxy_arp_pvlan is off.",
        "harmless unless proxy ARP on one device is wanted",
        evidence=("net.ipv4.conf.{iif}.proxy_arp_pvlan",),
    ),
    Rule(
        "OTHERHOST",
        "Its destination MAC address is another host's: {device} only overheard it.",
        "harmless on a mirror or in promiscuous mode; else a stale neighbour entry at the sender",
    ),
    Rule(
        "UNICAST_IN_L2_MULTICAST",
        "A unicast packet came in a broadcast or multicast frame.",
        "look at the sender, or clear drop_unicast_in_l2_multicast",
        evidence=("net.ipv4.conf.{iif}.drop_unicast_in_l2_multicast",),
    ),
    Rule(
        "IPV6DISABLED",
        "IPv6 is disabled at {device} {where}.",
        "set net.ipv6.conf.{iif}.disable_ipv6 to 0 if it is wanted",
        evidence=("net.ipv6.conf.{iif}.disable_ipv6", "net.ipv6.conf.all.disable_ipv6"),
    ),
    Rule(
        "NOT_SPECIFIED",
        "Nobody {where} has joined the multicast group {dst}.",
        "harmless: such packets are sent to everyone",
        at=("ip6_mc_input",),
    ),
)

ROUTING = (
    Rule(
        "IP_INADDRERRORS",
        "Its destination {dst} is not local, and IPv4 forwarding is off {where}.",
        "sysctl net.ipv4.ip_forward=1 there, if it is to route",
        at=("ip_error",),
        evidence=("net.ipv4.ip_forward", "net.ipv4.conf.{iif}.forwarding"),
    ),
    Rule(
        "IP_INADDRERRORS",
        "Its destination {dst} is not local, and IPv6 forwarding is off {where} (or it has a"
        " link-local address).",
        "sysctl net.ipv6.conf.all.forwarding=1 there, if it is to route",
        at=("ip6_forward",),
        evidence=("net.ipv6.conf.all.forwarding",),
    ),
    Rule(
        "IP_INADDRERRORS",
        "Its destination {dst} cannot be reached from {host}.",
        "`ip route get {dst}` there",
    ),
    Rule(
        "IP_INNOROUTES",
        "The route to {dst} {where} is a prohibit route.",
        _ROUTE_HINT,
        at=("ip6_pkt_prohibit*",),
    ),
    Rule("IP_INNOROUTES", "There is no route to {dst} {where}.", _ROUTE_HINT),
    Rule("IP_OUTNOROUTES", "The sender has no route to {dst} {where}.", _ROUTE_HINT),
    Rule(
        # Before 5.19 every reason to end here is untold (c4eb664191b4 names them).
        "NOT_SPECIFIED",
        "No route takes it to {dst} {where}: it is a blackhole, unreachable or prohibit route, or"
        " forwarding is off.",
        "if it is to route and net.ipv4.ip_forward is 0 there, set it; else `ip route get {dst}`",
        at=("ip_error",),
        evidence=("net.ipv4.ip_forward", "net.ipv4.conf.{iif}.forwarding"),
    ),
    Rule(
        "NOT_SPECIFIED",
        "The route to {dst} {where} is a blackhole, unreachable or prohibit route.",
        _ROUTE_HINT,
        at=("dst_discard*", "ip6_pkt_*"),
    ),
    Rule(
        "IP_INHDR",
        "Its TTL ran out {where}: it was on its last hop.",
        "look for a routing loop (traceroute), or a sender with a low TTL such as traceroute",
        at=("ip_forward",),
        when=_V4,
    ),
    Rule(
        "IP_INHDR",
        "Its hop limit ran out {where}: it was on its last hop.",
        "look for a routing loop (traceroute), or a sender with a low hop limit",
        at=("ip6_forward",),
        when=_V6,
    ),
    Rule(
        "NOT_SPECIFIED",
        "It was not forwarded {where}: its TTL or hop limit ran out, it is too big for the MTU, or"
        " its options forbid it.",
        "compare ip.ttl and ip.length of the record with the route and the MTU there",
        at=("ip_forward", "ip6_forward"),
    ),
    Rule(
        "PKT_TOO_BIG",
        "It has {length} bytes, more than the MTU of its next link, and may not be fragmented.",
        "let ICMP errors through (path MTU discovery), or make the MTUs along the path equal",
    ),
    Rule(
        "XFRM_POLICY",
        "An IPsec policy refused it {where}.",
        "`ip xfrm policy` and `ip xfrm state` there",
    ),
)

NEIGHBOURS = (
    Rule(
        "*",
        "The neighbour {dst}, or the gateway to it, did not answer ARP or neighbour discovery.",
        "`ip neigh` there: is it up, on the same link and in the right subnet?",
        at=("neigh_invalidate", "arp_error_report", "ndisc_error_report"),
    ),
    Rule(
        "NEIGH_FAILED",
        "The neighbour {dst}, or the gateway to it, did not answer ARP or neighbour discovery.",
        "`ip neigh` there: is it up, on the same link and in the right subnet?",
    ),
    Rule(
        "NEIGH_QUEUEFULL",
        "Too many packets wait for the neighbour {dst}, or the gateway to it, to answer.",
        "the neighbour is missing or slow: `ip neigh` there",
        evidence=("net.ipv4.neigh.{iif}.unres_qlen_bytes",),
    ),
    Rule(
        "NEIGH_CREATEFAIL",
        "There was no room for a neighbour entry for {dst} {where}.",
        "raise net.ipv4.neigh.default.gc_thresh3 (IPv6: net.ipv6.neigh…) on the node",
        evidence=("net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3"),
    ),
    Rule(
        "NEIGH_DEAD",
        "Its neighbour entry was removed while it waited.",
        "look for devices or routes that come and go",
    ),
    Rule(
        "NEIGH_HH_FILLFAIL",
        "No link-layer header could be written for the neighbour {dst} at {device}.",
        "`ip neigh` and the device's type there",
    ),
    Rule(
        "NOT_SPECIFIED",
        "Its ARP message was not acceptable {where}.",
        "compare its addresses with `ip addr` there",
        at=("arp_*",),
    ),
)

BROKEN = (
    Rule(
        "IP_CSUM",
        "Its IP header checksum is wrong.",
        "look for a faulty device, cable or driver in front of {device}",
    ),
    Rule(
        "TCP_CSUM",
        "Its TCP checksum is wrong.",
        "checksum offload on a virtual device is the usual cause: `ethtool -K DEVICE tx off`",
    ),
    Rule(
        "UDP_CSUM",
        "Its UDP checksum is wrong.",
        "checksum offload on a virtual device is the usual cause: `ethtool -K DEVICE tx off`",
    ),
    Rule("ICMP_CSUM", "Its ICMP checksum is wrong.", "look at the sender {src}"),
    Rule(
        "SKB_CSUM",
        "Its checksum could not be computed.",
        "look for a truncated packet or a faulty offload at {device}",
    ),
    Rule("IP_INHDR", "Its IP header is not valid.", "look at the sender, or a faulty tunnel"),
    Rule(
        "PKT_TOO_SMALL",
        "It is shorter than its header says.",
        "look for something that cuts packets: a tunnel, a driver, a capture that replays",
    ),
    Rule("HDR_TRUNC", "It ends within a header.", "look for something that cuts packets"),
    Rule("IPV6_BAD_EXTHDR", "An IPv6 extension header is not valid.", "look at the sender {src}"),
    Rule(
        "IPV6_NDISC_NS_OTHERHOST",
        "It is a neighbour solicitation for another host.",
        "harmless",
    ),
    Rule(
        "IPV6_NDISC_*",
        "Its neighbour discovery message breaks RFC 4861 (hop limit, code, options or fragment).",
        "look at the sender {src}: somebody may be spoofing",
    ),
    Rule(
        "DUP_FRAG",
        "A fragment like it has come before, or overlaps it.",
        "look for a loop or a duplicate path from {src}",
    ),
    Rule(
        "FRAG_REASM_TIMEOUT",
        "The other fragments of its packet did not come in time.",
        "fragments are lost on the way: lower the sender's MTU, or let fragments through firewalls",
        evidence=("net.ipv4.ipfrag_time", "net.ipv6.ip6frag_time"),
    ),
    Rule(
        "FRAG_TOO_FAR",
        "Too many fragments of other packets came between its fragments.",
        "look for heavy fragmentation from {src}",
        evidence=("net.ipv4.ipfrag_max_dist",),
    ),
)

RULES = (*SOCKETS, *ADDRESSES, *ROUTING, *NEIGHBOURS, *BROKEN)
