/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads of sk_buff, devices, headers and conntrack, the same for every way of attaching. */
#ifndef TRACER_SKB_H
#define TRACER_SKB_H

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define PROC_DYNAMIC_FIRST 0xf0000000U /* the first inode a namespace can have */
#define ARPHRD_ETHER 1
#define MAC_HEADER_UNSET 0xffff
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define NFCT_PTRMASK (~7ULL)

#ifndef IPPROTO_TCP
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_IPIP 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#endif

/*
 * A read that may fail, from any kernel address: 0 when it does. The value of a statement
 * expression has no qualifiers: typeof alone would make value_ const behind a const pointer,
 * and the compiler would take it for 0 without looking.
 */
#define READ(expression)                                                                           \
	({                                                                                         \
		typeof(({ (expression); })) value_ = 0;                                            \
		bpf_probe_read_kernel(&value_, sizeof(value_), &(expression));                     \
		value_;                                                                            \
	})

/*
 * A field behind a tracepoint argument. Typed programs load it directly, checked by the
 * verifier, a fault reading as 0; the others go through the helper. `typed` is a constant
 * in the scope of the caller.
 */
#define LOAD(expression) (typed ? (expression) : READ(expression))

/* The same for a field that is one bit: not 0, if that is set. */
#define LOAD_BIT(type, pointer, field)                                                             \
	(LOAD(*((__u8 *)(pointer) + BYTE_##type##__##field)) & MASK_##type##__##field)

/* What one window shows; programs ask for no more at once, whether there are windows or not. */
#define WINDOW_WORDS 6
#define WINDOW_BYTES (WINDOW_WORDS * 8)

#ifdef SK_BUFF_BTF_ID
/*
 * WINDOW_WORDS from any kernel address on, for plain loads of any size that read 0 on a fault:
 * we tell the verifier that there is an skb whose control block (an array of bytes, in which it
 * lets us read as we like) begins there.
 */
static __always_inline const void *window(const void *from)
{
	const __u64 offset = __builtin_offsetof(struct sk_buff, cb);

	return bpf_rdonly_cast_(from - offset, SK_BUFF_BTF_ID) + offset;
}
#endif

/* In place of `typed`: what is read is our own memory. */
#define OWN_MEMORY 2

/*
 * Copy `words` (a constant) from a kernel address; 0 when all went well. A fault behind a window is
 * not told: what could not be read is 0.
 */
#define MAX_WORDS 7
static __always_inline int read_words(int typed, __u64 *to, int words, const void *from)
{
	if (typed == OWN_MEMORY) {
		__builtin_memcpy(to, from, words * sizeof(*to));
		return 0;
	}
#ifdef SK_BUFF_BTF_ID
	if (typed) {
		const __u64 *first = window(from), *second = window(from + WINDOW_BYTES);

#pragma unroll
		for (int i = 0; i < MAX_WORDS; i++) {
			if (i < words)
				to[i] = i < WINDOW_WORDS ? first[i] : second[i - WINDOW_WORDS];
		}
		return 0;
	}
#endif
	return bpf_probe_read_kernel(to, words * sizeof(*to), from);
}

/* Copy the first of `bytes`, at most `room`; returns how many. */
static __always_inline __u32 copy_packet(__u8 *to, __u32 room, const void *from, __u64 bytes)
{
	if (bytes > room)
		bytes = room;
	/* Hide what the compiler knows: the verifier must see the bound on this very register. */
	asm volatile("" : "+r"(bytes));
	if (bytes > room || bpf_probe_read_kernel(to, bytes, from))
		return 0;
	return bytes;
}

struct place {
	__u32 netns;
	__u32 ifindex;
};

static __always_inline __u32 net_inode(const struct net *net)
{
	return net ? READ(net->ns.inum) : 0;
}

/* skb->dev shares its memory with other things once a socket owns the packet: believe it
 * only if what it leads to can be a device. */
static __always_inline int device_place(const struct net_device *dev, struct place *place)
{
	if (!dev)
		return 0;
	__u32 netns = net_inode(READ(dev->nd_net.net));
	int ifindex = READ(dev->ifindex);
	if (netns < PROC_DYNAMIC_FIRST && netns != NODE_NETNS)
		return 0;
	if (ifindex <= 0)
		return 0;
	place->netns = netns;
	place->ifindex = ifindex;
	return 1;
}

static __always_inline __u32 socket_netns(const struct sock *sk)
{
	return sk ? net_inode(READ(sk->__sk_common.skc_net.net)) : 0;
}

/* The device that the route of a packet chose; all zero without one. */
static __always_inline struct place route_place(const struct sk_buff *skb)
{
	struct dst_entry *dst = (void *)(READ(skb->_skb_refdst) & ~1UL);
	struct net_device *dev = dst ? READ(dst->dev) : NULL;
	struct place place = {};

	device_place(dev, &place);
	return place;
}

static __always_inline __u64 socket_cgroup(const struct sock *sk)
{
#ifdef HAS_sock_cgroup_data__cgroup
	__u8 state = sk ? READ(sk->__sk_common.skc_state) : 0;
	/* TIME_WAIT and NEW_SYN_RECV are not full sockets: they have no cgroup. */
	if (!sk || state == 6 || state == 12)
		return 0;
	struct cgroup *cgroup = READ(sk->sk_cgrp_data.cgroup);
	struct kernfs_node *kn = cgroup ? READ(cgroup->kn) : NULL;
	return kn ? READ(kn->id) : 0;
#else
	return 0;
#endif
}

static __always_inline void mapped_address(__u8 *to, const void *ipv4)
{
	*(__u16 *)(to + 10) = 0xffff;
	*(__u32 *)(to + 12) = *(__u32 *)ipv4;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_DCCP || protocol == IPPROTO_UDPLITE;
}

static __always_inline void set_ports(struct tuple *tuple, const __u8 *l4)
{
	if (has_ports(tuple->protocol)) {
		tuple->sport = l4[0] << 8 | l4[1];
		tuple->dport = l4[2] << 8 | l4[3];
	} else if (tuple->protocol == IPPROTO_ICMP || tuple->protocol == IPPROTO_ICMPV6) {
		tuple->sport = l4[0];
		tuple->dport = l4[1];
	}
}

/* IPv6 headers that may stand before the transport header. */
static __always_inline int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

/* Of a later fragment, which has no transport header: by the datagram's id and its place there. */
static __always_inline __u32 fragment_signature(__u32 id, __u32 offset)
{
	return (id ^ offset << 16) * 0x9e3779b1 | 1;
}

/* Follow up to four extension headers; returns the offset of the transport header from l3,
 * or 0 when there is none to read (a later fragment, a chain cut short). */
static __always_inline __u32 skip_extensions(const void *l3, __u32 linear_bytes, __u8 *next,
					     __u32 *signature)
{
	__u32 offset = 40;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u8 header[8] __attribute__((aligned(8))) = {};
		if (!is_extension(*next))
			return offset;
		if (offset + sizeof(header) > linear_bytes)
			return 0;
		bpf_probe_read_kernel(header, sizeof(header), l3 + offset);
		if (*next == IPPROTO_FRAGMENT && (header[2] || header[3] & 0xf8)) {
			*next = header[0];
			if (signature)
				*signature = fragment_signature(*(__u32 *)(header + 4),
								header[2] << 8 | header[3]);
			return 0;
		}
		offset += *next == IPPROTO_FRAGMENT ? 8 : (header[1] + 1) * 8;
		*next = header[0];
	}
	return is_extension(*next) ? 0 : offset;
}

/*
 * A hash of what no NAT on the way changes: IP id, and from the transport header (`l4_bytes` of the
 * packet begin with it) TCP's sequence numbers, UDP's length and first bytes, ICMP's id and sequence
 * number.
 */
static __always_inline __u32 packet_signature(const __u8 *ip_id, __u8 protocol, const __u8 *l4,
					      __u32 l4_bytes)
{
	__u32 first = *(__u32 *)(l4 + 4), second = *(__u32 *)(l4 + 8);
	__u32 hash = protocol;

	if (ip_id)
		hash ^= *(__u16 *)ip_id << 8;
	if (protocol == IPPROTO_UDP)
		first &= bpf_htonl(0xffff0000); /* the checksum covers the addresses */
	/* A bare acknowledgement has the numbers of the data that follows it. */
	if (protocol == IPPROTO_TCP && l4_bytes == (l4[12] >> 4) * 4)
		hash ^= 1 << 24;
	hash = (hash ^ first) * 0x9e3779b1;
	hash = ((hash ^ (hash >> 15)) ^ second) * 0x85ebca6b;
	return (hash ^ (hash >> 13)) | 1;
}

/*
 * Ports and signature from the first 16 bytes of the transport header; returns what they tell of
 * TCP, 0 of others: the flags, and TCP_WINDOW above, as it stands in the header.
 */
#define TCP_FLAGS 0xffU
#define TCP_WINDOW 0xffff00U
static __always_inline __u32 read_transport(const __u8 *l4, __u32 l4_bytes, const __u8 *ip_id,
					    struct tuple *tuple, __u32 *signature)
{
	set_ports(tuple, l4);
	if (signature)
		*signature = packet_signature(ip_id, tuple->protocol, l4, l4_bytes);
	return tuple->protocol == IPPROTO_TCP ? *(__u32 *)(l4 + 12) >> 8 : 0;
}

/* A mask for the first `count` bytes of a little-endian word. */
static __always_inline __u32 first_bytes(__u32 count)
{
	return count < 4 ? (1U << count * 8) - 1 : ~0U;
}

/*
 * Fill `tuple` (its ethertype is set) and, unless NULL, `signature` from the headers at `l3`;
 * returns the TCP flags and window seen, if any, as read_transport() does. Every skb's linear part is followed by skb_shared_info
 * (320 bytes), so a fixed-size read cannot leave the allocation; `linear_bytes` says how much of
 * it is packet.
 */
static __always_inline __u32 read_tuple(int typed, const void *l3, __u32 linear_bytes,
					struct tuple *tuple, __u32 *signature)
{
	__u64 words[7];
	__u8 *header = (void *)words, slow[16] __attribute__((aligned(8)));
	__u8 *ip_id = NULL;
	__u32 l4, bytes;

	if (tuple->ethertype != ETH_P_IP && tuple->ethertype != ETH_P_IPV6)
		return 0;
	if (linear_bytes < 20)
		return 0;
	if (tuple->ethertype == ETH_P_IP) {
		if (read_words(typed, words, 5, l3))
			return 0;
		ip_id = header + 4;
		tuple->protocol = header[9];
		mapped_address(tuple->saddr, header + 12);
		mapped_address(tuple->daddr, header + 16);
		if ((header[6] << 8 | header[7]) & IPV4_FRAGMENT_OFFSET) {
			if (signature)
				*signature = fragment_signature(*(__u16 *)ip_id,
								header[6] << 8 | header[7]);
			return 0;
		}
		l4 = (header[0] & 0xf) * 4;
		bytes = header[2] << 8 | header[3];
		if (l4 == 20 && linear_bytes >= 20 + sizeof(slow))
			return read_transport(header + 20, bytes - l4, ip_id, tuple, signature);
	} else {
		if (linear_bytes < 40 || read_words(typed, words, 7, l3))
			return 0;
		l4 = 40;
		bytes = 40 + (header[4] << 8 | header[5]);
		tuple->protocol = header[6];
		__builtin_memcpy(tuple->saddr, header + 8, 16);
		__builtin_memcpy(tuple->daddr, header + 24, 16);
		if (is_extension(tuple->protocol))
			l4 = skip_extensions(l3, linear_bytes, &tuple->protocol, signature);
		else if (linear_bytes >= 40 + sizeof(slow))
			return read_transport(header + 40, bytes - l4, NULL, tuple, signature);
	}
	/* Options, extension headers, or a packet that ends within the transport header. */
	if (!l4 || l4 + 4 > linear_bytes || bpf_probe_read_kernel(slow, sizeof(slow), l3 + l4))
		return 0;
	bytes -= l4;
	if (l4 + sizeof(slow) > linear_bytes) {
		/* What lies behind the packet's end is not the packet's. */
		l4 = linear_bytes - l4 - 4; /* bytes behind the ports */
		*(__u32 *)(slow + 4) &= first_bytes(l4);
		*(__u32 *)(slow + 8) &= first_bytes(l4 > 4 ? l4 - 4 : 0);
		slow[13] &= l4 > 9 ? 0xff : 0;
		*(__u16 *)(slow + 14) |= 1; /* not known to be zero */
	}
	return read_transport(slow, bytes, ip_id, tuple, signature);
}

static __always_inline void read_nf_tuple(const struct nf_conntrack_tuple *from, struct tuple *to)
{
	struct nf_conntrack_tuple tuple;

	bpf_probe_read_kernel(&tuple, sizeof(tuple), from);
	to->protocol = tuple.dst.protonum;
	if (tuple.src.l3num == 2) {
		to->ethertype = ETH_P_IP;
		mapped_address(to->saddr, &tuple.src.u3.ip);
		mapped_address(to->daddr, &tuple.dst.u3.ip);
	} else {
		to->ethertype = ETH_P_IPV6;
		__builtin_memcpy(to->saddr, &tuple.src.u3, 16);
		__builtin_memcpy(to->daddr, &tuple.dst.u3, 16);
	}
	if (has_ports(to->protocol)) {
		to->sport = bpf_ntohs(tuple.src.u.all);
		to->dport = bpf_ntohs(tuple.dst.u.all);
	} else if (to->protocol == IPPROTO_ICMP || to->protocol == IPPROTO_ICMPV6) {
		to->sport = tuple.dst.u.icmp.type;
		to->dport = tuple.dst.u.icmp.code;
	}
}

/* The sender's tuple of a packet that conntrack knows: what it wrote before any NAT. */
static __always_inline int read_sender_tuple(__u64 nfct, struct tuple *tuple)
{
	struct nf_conn *ct = (void *)(nfct & NFCT_PTRMASK);
	__u32 info = nfct & ~NFCT_PTRMASK;

	/* An ICMP error is RELATED to a connection: the tuple is not the packet's own. */
	if (!ct || info == IP_CT_RELATED || info == IP_CT_RELATED_REPLY)
		return 0;
	read_nf_tuple(&ct->tuplehash[info >= IP_CT_IS_REPLY].tuple, tuple);
	return 1;
}

static __always_inline void read_conntrack(__u64 nfct, struct conntrack *to)
{
	struct nf_conn *ct = (void *)(nfct & NFCT_PTRMASK);

	to->info = nfct & ~NFCT_PTRMASK;
	if (!ct)
		return;
	to->present = 1;
	to->status = READ(ct->status);
#ifdef HAS_nf_conn__mark
	to->mark = READ(ct->mark);
#endif
#ifdef HAS_nf_conn__zone
	to->zone = READ(ct->zone.id);
#endif
	read_nf_tuple(&ct->tuplehash[0].tuple, &to->orig);
	read_nf_tuple(&ct->tuplehash[1].tuple, &to->reply);
	if (to->orig.protocol == IPPROTO_TCP)
		to->tcp_state = READ(ct->proto.tcp.state);
}

#endif
