"""Causes of drops in devices, queues, bridges and tunnels, in TCP, and in the kernel at large."""

from __future__ import annotations

from tracer.analysis.rules import Rule

DEVICES = (
    Rule(
        "QDISC_DROP",
        "The queue (qdisc) of {device} {where} refused it: it is full, or the link is down.",
        "`tc -s qdisc show` and `ip link` there",
    ),
    Rule(
        "QDISC_OVERLIMIT",
        "The queue (qdisc) of {device} {where} is at its limit.",
        "`tc -s qdisc show` there; a longer queue, or less traffic",
    ),
    Rule(
        "QDISC_CONGESTED",
        "The queue (qdisc) of {device} {where} dropped it to signal congestion.",
        "normal under load (codel, red); `tc -s qdisc show` there",
    ),
    Rule(
        "DUALPI2_STEP_DROP",
        "The queue (dualpi2) of {device} {where} dropped it to signal congestion.",
        "normal under load; `tc -s qdisc show` there",
    ),
    Rule(
        "CAKE_FLOOD",
        "The queue (cake) of {device} took its flow for a flood.",
        "`tc -s qdisc show` there",
    ),
    Rule(
        "FQ_*",
        "The queue (fq) of {device} {where} refused it: its flow or band is full, or its send time"
        " is too far ahead.",
        "`tc -s qdisc show` there: limit, flow_limit, horizon",
    ),
    Rule(
        "DEV_READY",
        "{Device} is down or not ready {where}.",
        "`ip link` there; its other end or its program may be gone",
    ),
    Rule(
        "FULL_RING",
        "The receive ring behind {device} is full: its reader is too slow.",
        "more CPU for the reader (virtual machine, veth peer, tap program), or a longer ring",
    ),
    Rule(
        "CPU_BACKLOG",
        "The CPU's queue of received packets is full {where}.",
        "raise net.core.netdev_max_backlog, or spread the load (RPS, more queues)",
        evidence=("net.core.netdev_max_backlog",),
    ),
    Rule(
        "XDP",
        "The XDP program of {device} dropped it.",
        "`bpftool net` there shows the program; with Cilium or Calico eBPF, ask its own tools",
    ),
    Rule(
        "TC_INGRESS",
        "A tc filter or BPF program at the ingress of {device} {where} dropped it.",
        "`tc filter show dev DEVICE ingress` and `bpftool net` there",
    ),
    Rule(
        "TC_EGRESS",
        "A tc filter or BPF program at the egress of {device} {where} dropped it.",
        "`tc filter show dev DEVICE egress` and `bpftool net` there",
    ),
    Rule("TC_*", "tc could not classify it at {device} {where}.", "`tc filter show` there"),
    Rule(
        "TAP_FILTER",
        "The filter of the tap device {device} refused it.",
        "the program that owns the device set the filter",
    ),
    Rule(
        "TAP_TXFILTER",
        "The MAC filter of the tap device {device} refused it.",
        "the virtual machine asked only for some addresses",
    ),
    Rule("DEV_HDR", "The device's own header is not valid at {device}.", "look at its driver"),
    Rule(
        "SKB_GSO_SEG",
        "It could not be cut into segments for {device}.",
        "ethtool -K DEVICE gso off",
    ),
    Rule("SKB_UCOPY_FAULT", "Its data could not be copied from the program.", "look at the sender"),
    Rule(
        "RECURSION_LIMIT",
        "Devices stacked on each other send it in a circle at {device}.",
        "look for a tunnel or bridge that leads back to itself",
    ),
    Rule(
        "NO_TX_TARGET",
        "{Device} {where} has nowhere to send it.",
        "`bridge fdb show` there; a bond without slaves, a vxlan without remote",
    ),
    Rule(
        "CAN*",
        "It is not a valid CAN frame.",
        "not a packet of the IP network",
    ),
)

BRIDGES = (
    Rule(
        "BRIDGE_INGRESS_STP_STATE",
        "The bridge port {device} {where} does not forward: spanning tree blocks it.",
        "`bridge link` there",
    ),
    Rule(
        "NOT_SPECIFIED",
        "The bridge had no port to send it to {where}: the port blocks, is isolated, filters the"
        " VLAN, or is the one it came by.",
        "`bridge -d link`, `bridge fdb` and `bridge vlan` there (isolated, hairpin, state)",
        at=("br_*", "__br_*"),
    ),
    Rule(
        "MAC_INVALID_SOURCE",
        "Its source MAC address cannot be a sender's.",
        "look at the sender behind {device}",
    ),
    Rule(
        "LOCAL_MAC",
        "Its source MAC address is {device}'s own.",
        "look for a loop or a duplicate MAC address",
    ),
    Rule(
        "MAC_IEEE_MAC_CONTROL",
        "It is a MAC control frame (pause), which a bridge never forwards.",
        "harmless",
    ),
)

TUNNELS = (
    Rule(
        "VXLAN_VNI_NOT_FOUND",
        "No VXLAN device {where} has its network identifier.",
        "do both ends use the same VNI? `ip -d link show type vxlan`",
    ),
    Rule(
        "VXLAN_INVALID_HDR", "Its VXLAN header is not valid.", "is the port used by something else?"
    ),
    Rule(
        "VXLAN_ENTRY_EXISTS",
        "Its MAC address is a static entry of another VXLAN remote.",
        "`bridge fdb show dev DEVICE` there",
    ),
    Rule(
        "IP_TUNNEL_ECN",
        "Its congestion marks inside and outside of the tunnel disagree.",
        "look at the sender",
    ),
    Rule(
        "TUNNEL_TXINFO",
        "{Device} expects the tunnel's parameters with each packet, and it came without.",
        "an `external` tunnel device needs a route or BPF program that sets them",
    ),
    Rule("PSP_*", "PSP encryption refused it.", "do both ends have the connection's keys?"),
    Rule(
        "NOT_SPECIFIED",
        "The tunnel {device} {where} could not take or send it.",
        "`ip -s -d link show` there: errors, remote, key, MTU",
        at=("vxlan_*", "geneve_*", "ipip_*", "ip_tunnel_*", "ipgre_*", "ip6_tnl_*", "wg_*"),
    ),
)

TCP = (
    Rule(
        "TCP_LISTEN_OVERFLOW",
        "The listen queue of TCP port {dport} is full {where}: the server accepts too slowly.",
        "speed up the server, or raise its backlog and net.core.somaxconn",
        evidence=("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"),
    ),
    Rule(
        "TCP_ZEROWINDOW",
        "The receiver's window is closed: its program reads too slowly {where}.",
        "look at the program behind port {dport}",
    ),
    Rule(
        "TCP_FLAGS",
        "Its TCP flags ({flags}) make no sense in this state.",
        "look at the sender {src}",
    ),
    Rule(
        "TCP_OFO_QUEUE_PRUNE",
        "Out-of-order data was thrown away for lack of socket memory {where}.",
        "packets are lost on the way, or the receive buffer is small",
        evidence=("net.ipv4.tcp_rmem",),
    ),
    Rule(
        "TCP_RFC7323_*",
        "Its TCP timestamp is older than the last one, or answers none that was sent.",
        "clients behind one NAT with different clocks, or a very late duplicate",
    ),
    Rule(
        "TCP_RESET",
        "It is an RST, or the answer to one: the connection ended.",
        "look at which end sent it, and why",
    ),
    Rule(
        "TCP_INVALID_SYN",
        "It is a SYN within an open connection.",
        "a port reused too soon, or spoofing",
    ),
    Rule(
        "TCP_CLOSE",
        "Its TCP socket is closed {where}.",
        "harmless: a late packet of an ended connection",
    ),
    Rule(
        "TCP_ABORT_ON_DATA",
        "Data came after the program had closed its socket.",
        "the program closed before it had read all",
    ),
    Rule("TCP_FASTOPEN", "TCP fast open had no use for it.", "harmless"),
    Rule(
        "TCP_MINTTL",
        "Its TTL is below the socket's minimum (IP_MINTTL).",
        "it came from farther than the program allows",
    ),
    Rule(
        "TCP_MD5*",
        "Its TCP MD5 signature is missing, wrong or not expected.",
        "compare the keys of both ends",
    ),
    Rule(
        "TCP_AO*",
        "Its TCP authentication option is missing, wrong or not expected.",
        "compare the keys of both ends",
    ),
    Rule(
        "TCP_AUTH_HDR", "Its TCP authentication options are malformed.", "look at the sender {src}"
    ),
    Rule(
        "TCP_*ACK*",
        "It acknowledges what is too old or was never sent.",
        "a late or spoofed packet, or a firewall that rewrites sequence numbers",
    ),
    Rule(
        "TCP_*",
        "Its TCP data lies outside of what the receiver waits for: old, repeated or too far ahead.",
        "harmless in small numbers (retransmission); else look for loss and reordering",
    ),
)

KERNEL = (
    Rule(
        "OVS_DROP*",
        "A flow of Open vSwitch dropped it at {device} {where}.",
        "`ovs-appctl dpctl/dump-flows` there; with Antrea, `antctl trace-packet`",
    ),
    Rule(
        "NOMEM",
        "The kernel had no memory for it {where}.",
        "look at the node's free memory and dmesg",
    ),
    Rule(
        "PFMEMALLOC",
        "The kernel ran on its memory reserve and kept that for swapping.",
        "look at the node's free memory",
    ),
    Rule(
        "SECURITY_HOOK",
        "A security module (SELinux, AppArmor, BPF LSM) refused it {where}.",
        "look at the audit log",
    ),
    Rule(
        "QUEUE_PURGE",
        "The queue it waited in was emptied {where}.",
        "its socket or device was closed: harmless unless it recurs",
    ),
)

RULES = (*DEVICES, *BRIDGES, *TUNNELS, *TCP, *KERNEL)
