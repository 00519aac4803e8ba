/* SPDX-License-Identifier: GPL-2.0-only */
/* What lies in a tunnel's packet: IPIP, 6in4 and their like, GRE, VXLAN, Geneve. */
#if defined(WITH_TRACE) && !defined(TRACER_TUNNEL_H)
#define TRACER_TUNNEL_H

#define ETH_P_TEB 0x6558 /* an Ethernet frame */
#define ETHERTYPE_AT 12
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define UDP_BYTES 8
#define VXLAN_BYTES 8
#define VXLAN_PORT 4789
#define VXLAN_PORT_LINUX 8472 /* the kernel's default, and flannel's */
#define GENEVE_PORT 6081
#define GENEVE_BYTES 8
#define GENEVE_OPTION_WORDS 0x3f
#define GRE_BYTES 4
#define GRE_CHECKSUM 0x80
#define GRE_KEY 0x20
#define GRE_SEQUENCE 0x10
#define GRE_VERSION 7
#ifndef IPPROTO_GRE
#define IPPROTO_IPV6 41
#define IPPROTO_GRE 47
#endif

/*
 * The packet inside; ethertype is 0 where there is none. In a map, where the verifier does not
 * remember by which of many ways its numbers came about, and because before 6.13 a program and the
 * subprogram that it calls have 512 bytes of stack together.
 */
struct inner {
	__u32 offset; /* of its network header, from the outer one */
	__u32 ethertype; /* host byte order */
	__u8 ip[24]; /* the header read last, IPV4_BYTES of it */
	__u8 next[16]; /* and what follows it */
};
BPF_PERCPU_ARRAY(inner_packets, struct inner, 1);

static __always_inline int is_vxlan(__u16 port)
{
	return port == VXLAN_PORT || port == VXLAN_PORT_LINUX;
}

/*
 * Where the outer IP header ends; `protocol` is what follows. Of IPv6 with the one extension that
 * Linux adds: the limit of tunnels in tunnels.
 */
static __always_inline __u32 outer_bytes(const void *l3, __u32 linear_bytes, __u16 ethertype,
					 __u8 *ip, __u8 *protocol)
{
	if (linear_bytes < IPV4_BYTES || bpf_probe_read_kernel(ip, IPV4_BYTES, l3))
		return 0;
	if (ethertype == ETH_P_IP) {
		*protocol = ip[9];
		return (ip[6] << 8 | ip[7]) & IPV4_FRAGMENT_OFFSET ? 0 : (ip[0] & 0xf) * 4;
	}
	if (ethertype != ETH_P_IPV6)
		return 0;
	*protocol = ip[6];
	if (*protocol != IPPROTO_DSTOPTS)
		return IPV6_BYTES;
	bpf_probe_read_kernel(ip, 8, l3 + IPV6_BYTES);
	*protocol = ip[0];
	return IPV6_BYTES + (ip[1] + 1) * 8;
}

/* `next` are the first bytes behind the outer IP header; returns how long the tunnel's header is. */
static __always_inline __u32 tunnel_bytes(__u8 protocol, const __u8 *next, __u16 *ethertype)
{
	__u16 port = next[2] << 8 | next[3];

	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6) {
		*ethertype = protocol == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6;
		return 0;
	}
	if (protocol == IPPROTO_GRE && !(next[1] & GRE_VERSION)) {
		*ethertype = next[2] << 8 | next[3];
		return GRE_BYTES + (next[0] & GRE_CHECKSUM ? 4 : 0) + (next[0] & GRE_KEY ? 4 : 0) +
		       (next[0] & GRE_SEQUENCE ? 4 : 0);
	}
	if (protocol == IPPROTO_UDP && is_vxlan(port)) {
		*ethertype = ETH_P_TEB;
		return UDP_BYTES + VXLAN_BYTES;
	}
	if (protocol == IPPROTO_UDP && port == GENEVE_PORT) {
		*ethertype = next[10] << 8 | next[11];
		return UDP_BYTES + GENEVE_BYTES + (next[8] & GENEVE_OPTION_WORDS) * 4;
	}
	return 0;
}

/*
 * Find the packet that a tunnel's carries, its headers in the first `linear_bytes` from `l3` on; NULL
 * without one.
 */
static __always_inline struct inner *find_inner(const void *l3, __u32 linear_bytes, __u16 ethertype)
{
	int slot = 0;
	struct inner *inner = inner_packets.lookup(&slot);
	__u8 protocol = 0;
	__u16 type = 0;
	__u32 at;

	if (!inner)
		return NULL;
	at = outer_bytes(l3, linear_bytes, ethertype, inner->ip, &protocol);
	if (!at || bpf_probe_read_kernel(inner->next, sizeof(inner->next), l3 + at))
		return NULL;
	inner->offset = at + tunnel_bytes(protocol, inner->next, &type);
	inner->ethertype = type;
	if (inner->ethertype == ETH_P_TEB) {
		__be16 ether = 0;

		bpf_probe_read_kernel(&ether, sizeof(ether), l3 + inner->offset + ETHERTYPE_AT);
		inner->ethertype = bpf_ntohs(ether);
		inner->offset += L2_BYTES;
	}
	if (inner->offset + IPV4_BYTES > linear_bytes)
		return NULL;
	return inner->ethertype == ETH_P_IP || inner->ethertype == ETH_P_IPV6 ? inner : NULL;
}

/* The signature of the packet inside, which has no options; as read_tuple() makes it. */
static __always_inline __u32 inner_packet_signature(const void *l3, __u32 linear_bytes,
						    struct inner *inner)
{
	__u8 *ip = inner->ip, *l4 = inner->next;
	int is_ipv4 = inner->ethertype == ETH_P_IP;
	__u32 size = is_ipv4 ? IPV4_BYTES : IPV6_BYTES;
	__u32 bytes = linear_bytes - inner->offset - size - 4; /* behind the ports */

	if (bytes > 0xffff || bpf_probe_read_kernel(ip, IPV4_BYTES, l3 + inner->offset) ||
	    bpf_probe_read_kernel(l4, sizeof(inner->next), l3 + inner->offset + size))
		return 0;
	if (bytes < 12) { /* what lies behind the packet's end is not the packet's */
		*(__u32 *)(l4 + 4) &= first_bytes(bytes);
		*(__u32 *)(l4 + 8) &= first_bytes(bytes > 4 ? bytes - 4 : 0);
	}
	if (is_ipv4)
		return packet_signature(ip + 4, ip[9], l4, (ip[2] << 8 | ip[3]) - IPV4_BYTES);
	return packet_signature(NULL, ip[6], l4, ip[4] << 8 | ip[5]);
}

#endif
