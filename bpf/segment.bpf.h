/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Segmentation: a device that cannot do it gets the segments of what was handed to its queue, new
 * sk_buffs in new memory. They are known by TCP's sequence numbers.
 */
#if defined(WITH_TRACE) && !defined(TRACER_SEGMENT_H)
#define TRACER_SEGMENT_H

/* The large TCP packet that a CPU put into a queue last. */
struct whole_packet {
	__u64 packet_id;
	__u32 netns;
	__u32 ifindex;
	__u32 sequence;
	__u32 bytes;
	struct tuple tuple;
};
BPF_PERCPU_ARRAY(whole_packets, struct whole_packet, 1);

static __always_inline __u32 tcp_sequence(const struct sight *sight)
{
	__u8 *l4 = sight->l3 + (sight->tuple.ethertype == ETH_P_IP ? IPV4_BYTES : IPV6_BYTES);
	__be32 sequence = 0;

	bpf_probe_read_kernel(&sequence, sizeof(sequence), l4 + 4);
	return bpf_ntohl(sequence);
}

/* Told at a queue: it may be cut into segments behind it. */
static __always_inline void remember_whole(const struct sight *sight, const struct hop_event *event)
{
	int slot = 0;
	struct whole_packet *whole;

	if (event->gso_segments <= 1 || event->tuple.protocol != IPPROTO_TCP)
		return;
	whole = whole_packets.lookup(&slot);
	if (!whole)
		return;
	whole->packet_id = event->packet_id;
	whole->netns = event->netns;
	whole->ifindex = event->ifindex;
	whole->sequence = tcp_sequence(sight);
	whole->bytes = event->bytes;
	whole->tuple = event->tuple;
}

/* Could the packet at a driver be a segment of the one that this CPU put into that device's queue? */
static __always_inline struct whole_packet *whole_of(const struct sight *sight)
{
	int slot = 0;
	struct whole_packet *whole = whole_packets.lookup(&slot);

	return whole && whole->packet_id && whole->ifindex == sight->ifindex &&
			       whole->netns == sight->netns
		       ? whole
		       : NULL;
}

/* A packet handed to a driver: if it is a segment of a followed one, it is followed, too. */
static __always_inline void adopt_segment(const struct sight *sight)
{
	__u64 head = (__u64)sight->head;
	struct followed fresh = {}, *known;
	struct whole_packet *whole = whole_of(sight);

	if (!whole || !same_tuple(&whole->tuple, &sight->tuple) ||
	    tcp_sequence(sight) - whole->sequence >= whole->bytes)
		return;
	known = followed_at(head);
	if (known && known->signature == sight->signature)
		return;
	fresh.packet_id = whole->packet_id;
	fresh.signature = sight->signature;
	follow_at(head, &fresh);
}

#endif
