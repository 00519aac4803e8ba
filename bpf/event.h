/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The records that cross from kernel to user space, and the keys and values of the maps.
 * This file is the only home of their layout: tracer/layout.py parses it into numpy dtypes.
 * The parser's rules: fixed-width scalars, arrays, enums, earlier structs; every byte of
 * padding is written out; one declaration a line.
 */
#ifndef TRACER_EVENT_H
#define TRACER_EVENT_H

#define STACK_FRAMES 24
#define L2_BYTES 14
#define PACKET_BYTES 144 /* L2_BYTES of Ethernet header, then the packet from its network header */
#ifndef SNAPLEN
#define SNAPLEN 80 /* bytes of each hop's packet; a multiple of 8 */
#endif
#define DNS_BYTES 512 /* what a DNS message has at most without EDNS (RFC 1035 2.3.4) */
#define IFNAME_BYTES 16
#define TRANSIT_BUCKETS 32 /* the last has all that took longer */
#define ADDRESS_BYTES 16 /* IPv4 addresses are IPv4-mapped: ::ffff:a.b.c.d */

enum direction {
	DIRECTION_UNKNOWN = 0,
	DIRECTION_EGRESS = 1, /* the pod sent it */
	DIRECTION_INGRESS = 2, /* the pod was to receive it */
};

/* What could not be told or counted, by source; indexes the map `losses`. */
enum loss {
	LOSS_DROP_EVENTS = 0, /* ring buffer full: a drop was counted but not shown */
	LOSS_DROP_COUNTS =
		1, /* map drop_counts full: a drop was neither counted by place nor shown */
	LOSS_FLOW_DROPS = 2, /* map flow_drops full: a drop is missing from its flow */
	LOSS_FLOW_OTHER = 3, /* map flow_other full: a packet was not counted at all */
	LOSS_HOPS = 4, /* ring buffer full: a hop of a followed packet is missing */
	LOSS_FLOW_DETAILS =
		5, /* a map of what flows tell besides counts is full: one such detail is missing */
	LOSS_DNS_ANSWERS = 6, /* ring buffer full: the names of an answer are not known */
	LOSS_SOURCES = 7,
};

/* An L3/L4 flow as its sender wrote it. ICMP: type in sport, code in dport. */
struct tuple {
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport; /* host byte order */
	__u16 dport; /* host byte order */
	__u16 ethertype; /* host byte order */
	__u8 protocol; /* IPPROTO_*; 0 unless IPv4 or IPv6 */
	__u8 pad;
};

/* The conntrack entry a packet carried. */
struct conntrack {
	struct tuple orig; /* as the connection's opener wrote it, before NAT */
	struct tuple reply; /* as its answers look before they are translated back */
	__u32 status; /* enum ip_conntrack_status bits */
	__u32 mark;
	__u16 zone;
	__u8 info; /* enum ip_conntrack_info; it may be untracked without an entry */
	__u8 tcp_state; /* enum tcp_conntrack */
	__u32 present; /* 0: the packet had none */
};

struct drop_event {
	__u64 time_ns; /* CLOCK_BOOTTIME */
	__u64 location; /* address that freed the packet */
	__u64 skb;
	__u64 packet_id; /* of a packet that `trace` follows, else 0 */
	__u64 cgroup_id; /* cgroup v2 of the socket, 0 without one */
	__u64 stack[24]; /* STACK_FRAMES return addresses, innermost first, 0-filled */
	__u32 reason; /* enum skb_drop_reason, with the subsystem in the upper 16 bits */
	__u32 netns; /* inode; 0: not known */
	__u32 ifindex; /* in netns; 0: no device */
	__u32 iif; /* ifindex of the device the packet came in by */
	__u32 bytes; /* length from the network header on */
	__u32 mark;
	__u16 captured_bytes; /* valid bytes in packet */
	__u8 direction; /* enum direction, by known pod addresses */
	__u8 has_mac; /* 1: packet begins with the Ethernet header it really had */
	__u32 out_ifindex; /* the device that its route chose in netns; 0: none, or not known */
	char ifname[16];
	__u8 pod_address[16]; /* the known pod address of the packet or its connection, or zero */
	struct tuple tuple;
	struct conntrack ct;
	__u8 packet[144];
};

/* Every drop is counted under this key, shown or not. */
struct drop_key {
	__u64 location;
	__u64 cgroup_id; /* of a socket of the node's own namespace, for host-network pods */
	__u32 reason;
	__u32 netns;
	__u32 ifindex;
	__u32 direction;
	__u8 pod_address[16]; /* as in drop_event */
};

struct drop_count {
	__u64 packets;
	__u64 bytes;
	__u64 shown; /* sent through the ring buffer */
};

/* One second's worth of shown drops of one reason in one place. */
struct drop_limit_key {
	__u32 reason;
	__u32 netns;
};

struct drop_limit {
	__u64 window; /* CLOCK_BOOTTIME second */
	__u64 shown;
};

/* Where a followed packet was seen. */
enum hop {
	HOP_DEV_QUEUE = 1, /* handed to a device's queue: net_dev_queue */
	HOP_DEV_XMIT = 2, /* handed to its driver: net_dev_start_xmit */
	HOP_NETIF_RX = 3, /* entered a backlog, as after crossing a veth: netif_rx */
	HOP_DEV_RX = 4, /* taken from a device: netif_receive_skb */
	HOP_NF_ENTER = 5, /* a netfilter hook, before everything else there */
	HOP_NF_LEAVE = 6, /* the same hook, after everything else there: accepted */
	HOP_ROUTE = 7, /* looked up in a routing table: fib_table_lookup */
	HOP_TCP_RECEIVE = 8, /* taken by an established connection: tcp_probe */
	HOP_COPIED = 9, /* copied to the application: skb_copy_datagram_iovec */
	HOP_RETRANSMIT = 10, /* about to be sent again: tcp_retransmit_skb */
	HOP_CONSUMED = 11, /* done with in good order: consume_skb */
	HOP_DROPPED = 12, /* freed because it died: kfree_skb */
	HOP_QDISC_ENQUEUE = 13, /* kept by a queueing discipline: qdisc_enqueue */
	HOP_QDISC_DEQUEUE = 14, /* left it: qdisc_dequeue */
};

enum hop_flag {
	HOP_FIRST = 1, /* chosen here: where it was before is not known */
	HOP_CLONE = 2, /* this skb shares its data with another */
	HOP_GSO = 4, /* several segments in one skb */
	HOP_JOINED = 8, /* recognised by the skb's address, its data having moved: inferred */
	HOP_GONE = 16, /* the last reference to the data goes with this skb */
	HOP_REDIRECTED = 32, /* by tc or nft's fwd, not yet received anew; not all kernels tell */
	HOP_FROM_INGRESS = 64, /* ...at the ingress of a device, otherwise at the egress */
};

/* One hop of one followed packet. */
struct hop_event {
	__u64 time_ns; /* CLOCK_BOOTTIME */
	__u64 packet_id; /* the same at every hop of a packet and its clones */
	__u64 skb;
	__u64 head; /* address of its data */
	__u64 location; /* consumed, dropped: address that freed it */
	__u32 netns;
	__u32 ifindex;
	__u32 bytes; /* from the network header on */
	__u32 mark;
	__u32 signature; /* hash of what no NAT changes */
	__u32 argument; /* dropped: reason; route: table; copied: bytes */
	__u16 hop; /* enum hop */
	__u16 flags; /* enum hop_flag */
	__u16 gso_segments; /* 0 unless HOP_GSO */
	__u16 captured_bytes; /* valid bytes in packet */
	__u8 nf_family; /* NFPROTO_*, of netfilter hops */
	__u8 nf_hook; /* enum nf_inet_hooks */
	__u8 has_mac; /* 1: packet begins with the Ethernet header it really had */
	__u8 tcp_flags;
	__s32 error; /* route: 0 or -errno */
	__u32 out_ifindex; /* route: the device chosen */
	__u32 pad;
	__u8 gateway[16]; /* route: next hop, or zero; qdisc: its kind as text */
	struct tuple tuple;
	struct conntrack ct;
	__u8 packet[SNAPLEN];
};

/*
 * Packets that crossed a pod's device, by direction: the device itself, or the node's end of its
 * pair for what the pod received.
 */
struct flow_key {
	__u32 netns;
	__u32 ifindex;
	struct tuple tuple;
	__u16 direction; /* enum direction */
	__u16 cpu; /* that counted it; 0 in other maps than those of the flows */
};

/*
 * The same for IPv4, in the words in which the packet has it: addresses and ports lie as in its
 * headers, direction and cpu where these have TTL and checksum. ICMP's type and code are sport's
 * two bytes.
 */
struct flow4_key {
	__u32 netns;
	__u32 ifindex;
	__u8 direction;
	__u8 protocol;
	__u16 cpu;
	__u8 saddr[4];
	__u8 daddr[4];
	__be16 sport;
	__be16 dport;
};

struct flow_count {
	__u64 packets;
	__u64 bytes; /* from the network header on, as netfilter counts them */
	__u32 tick; /* jiffies when it was last looked at closer */
	__u8 tcp_flags; /* OR of all flags seen */
	__u8 dscp; /* as of tick */
	__u16 sample_rate; /* one packet of so many was counted, for all of them; 0: each */
	__u64 first_ns; /* CLOCK_BOOTTIME */
	__u64 last_ns; /* at most one tick (jiffy) before the true last packet */
	__u64 syn_ns; /* first segment with SYN; 0: none */
	__u32 rtt_us; /* the sending socket's smoothed round-trip time, as of tick; 0: not known */
	__u32 resets; /* segments with RST */
	__u32 zero_windows; /* segments that offer no window, without SYN and RST */
	__u32 retransmits; /* skbs that TCP sent again; not counted in the same row as packets */
};

/* What each CPU has of its own: a cache line. */
struct flow_cpu {
	__u64 armed_head; /* the packet whose way across the node is timed: address of its data */
	__u64 armed_ns; /* when its pod sent it */
	__u64 now_ns; /* CLOCK_BOOTTIME, read in `tick` */
	__u32 armed_tick; /* jiffies of that: one packet a tick */
	__u32 armed_bytes;
	__u32 generation; /* of the flow maps; user space counts it up */
	__u32 first_set; /* of its two halves of the cache */
	__u32 sample_rate; /* count one packet of so many; 0 and 1: each */
	__u32 skip; /* so many more are not counted */
	__u32 tick; /* jiffies of now_ns */
	__u32 pad[3];
};

/* A connection as the node's conntrack knows it; its value is a struct conntrack. */
struct flow_connection_key {
	struct tuple orig;
	__u16 zone;
	__u16 pad;
};

/* How long sampled packets took across the node, from one pod's device to another's. */
struct flow_transit {
	__u64 sum_ns;
	__u64 max_ns;
	__u32 buckets[32]; /* TRANSIT_BUCKETS: how many took 2^index ns and less than twice that */
};

/* One CPU's counts of an IPv4 flow, before they go into the flow map; all up to last_ns is one line. */
struct cached_flow {
	struct flow4_key key;
	struct flow_count count;
	__u64 pad[5];
};

/* Those of one hash. With room for one only, two busy ones would push each other out all the time. */
struct flow_set {
	struct cached_flow ways[2];
};

/* Packets of a pod's flow that died, wherever on the node. */
struct flow_drop_key {
	struct flow_key flow; /* netns and ifindex of the place of death */
	__u32 reason;
	__u64 location;
};

/* What a name server told a pod, at the place where its flow is counted. */
struct dns_answer {
	__u64 time_ns; /* CLOCK_BOOTTIME */
	__u32 netns;
	__u32 ifindex;
	__u16 message_bytes; /* of the whole DNS message */
	__u16 captured_bytes; /* valid bytes in message */
	__u32 pad;
	__u8 message[DNS_BYTES];
};

/* What did not fit into the flow map, summed by pod end. */
struct flow_other_key {
	__u32 netns;
	__u32 ifindex;
	__u32 direction;
	__u32 pad;
};

#endif
