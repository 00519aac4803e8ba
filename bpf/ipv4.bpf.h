/* SPDX-License-Identifier: GPL-2.0-only */
/* What nearly every packet is, IPv4 without options, read at the least cost. */
#ifndef TRACER_IPV4_H
#define TRACER_IPV4_H

/* A flow4_key in registers: its place, protocol and sender, and receiver and ports. */
struct flow4_words {
	__u64 place;
	__u64 sender;
	__u64 receiver;
};
_Static_assert(sizeof(struct flow4_words) == sizeof(struct flow4_key), "one layout");

static __always_inline int same_flow4(const struct flow4_words *one,
				      const struct flow4_words *other)
{
	return one->receiver == other->receiver && one->sender == other->sender &&
	       one->place == other->place;
}

static __always_inline __u32 flow4_hash(const struct flow4_words *flow)
{
	const __u64 prime = 0x9e3779b97f4a7c15ULL;
	__u64 hash = (flow->sender ^ flow->place) * prime;

	/* A product's bits know of none above: the ports, on top, are to come down first. */
	hash = hash >> 32 ^ flow->receiver ^ flow->receiver >> 32;
	return hash * prime >> 40;
}

/*
 * The key of an IPv4 packet without options that is no fragment, straight from its headers: where
 * the kernel lets us look through a window, by plain loads. `flow` has its place; `tcp` is as
 * read_tuple() tells it.
 */
static __always_inline int read_flow4(int typed, const void *l3, __u32 direction,
				      struct flow4_words *flow, __u32 *tcp)
{
	__u64 ip[5];
	__u8 protocol;

	if (read_words(typed, ip, 5, l3))
		return 0;
	/* Version and header length, and no fragment offset. */
	if ((ip[0] & 0xff1f0000000000ffULL) != 0x45)
		return 0;
	flow->sender = ip[1];
	flow->receiver = ip[2];
	protocol = flow->sender >> 8;
	flow->sender = (flow->sender & 0xffffffff0000ff00ULL) | direction;
	if (protocol == IPPROTO_TCP)
		*tcp = (__u32)ip[4] >> 8;
	else if (protocol == IPPROTO_ICMP)
		flow->receiver &= 0xffffffffffffULL;
	else if (!has_ports(protocol))
		flow->receiver &= 0xffffffffULL;
	return 1;
}

#endif
