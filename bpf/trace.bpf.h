/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The event plane of `trace`: choose a packet at the first hop where the selection holds, give it
 * an id, and tell every later hop of its data, through NAT, clones and namespaces.
 *
 * A packet is known by the address of its data (skb->head), which a veth crossing, NAT and clones
 * keep, together with its signature: addresses come back for other packets within microseconds.
 */
#if defined(WITH_TRACE) && !defined(TRACER_TRACE_H)
#define TRACER_TRACE_H

/*
 * May a packet be chosen at this hop? Where a packet is sent by its host it must: one that looks like
 * the last one in the same memory is another all the same, unless it is the inside of a tunnel.
 */
enum beginning { MAY_NOT_BEGIN = 0, MAY_BEGIN = 1, MUST_BEGIN = 2 };

#define DATAREF_MASK 0xffff
#define ROUTE_NS 1000000 /* a received packet is routed within this time */
#define FOLLOW_JIFFIES 60000 /* a minute or more: how long a packet is on its way */
#define CLONED 1 /* the first bit of the byte at __cloned_offset */

#define HOP_HEAD_BYTES (__builtin_offsetof(struct hop_event, packet) + 16)

/* All zero, but of a long record only what stands before the packet and its Ethernet header. */
static __always_inline void clear_hop(struct hop_event *event)
{
	__builtin_memset(event, 0, sizeof(*event) > 512 ? HOP_HEAD_BYTES : sizeof(*event));
}

/* Is any packet followed, so that this one could be? */
static __always_inline int anything_followed(void)
{
	int slot = 0;
	__u64 *until = follow_until.lookup(&slot);

	return until && *until > bpf_jiffies64();
}

static __always_inline void keep_following(void)
{
	int slot = 0;
	__u64 *until = follow_until.lookup(&slot), now = bpf_jiffies64();

	/* Not with each packet: every CPU reads it. */
	if (until && *until < now + FOLLOW_JIFFIES / 2)
		*until = now + FOLLOW_JIFFIES;
}

static __always_inline __u64 new_packet_id(void)
{
	int slot = 0;
	__u64 *last = packet_ids.lookup(&slot);

	if (!last)
		return 0;
	*last += 1;
	return *last << 12 | (bpf_get_smp_processor_id() & 0xfff);
}

/* The signature of the packet inside a tunnel's; 0 if none. */
static __always_inline __u32 inner_signature(const struct sight *sight)
{
	__u8 protocol = sight->tuple.protocol;
	__u16 port = sight->tuple.dport;
	struct inner *inner;

	if (protocol == IPPROTO_UDP && !is_vxlan(port) && port != GENEVE_PORT)
		return 0;
	if (protocol == IPPROTO_TCP)
		return 0;
	inner = find_inner(sight->l3, sight->linear_bytes, sight->tuple.ethertype);
	return inner ? inner_packet_signature(sight->l3, sight->linear_bytes, inner) : 0;
}

/*
 * Its data was moved (a copy for writing, room for a tunnel's header): it is still the skb that was
 * told last on this CPU.
 */
static __always_inline struct last_told *told_last(const struct sight *sight)
{
	int slot = 0;
	struct last_told *last = last_packets.lookup(&slot);

	return last && last->packet_id && last->skb == (__u64)sight->skb ? last : NULL;
}

/*
 * The packet, if it is followed or to be followed from here on; `flags` tells how it was known.
 * Nearly every packet is neither: what costs least is asked first.
 */
static __always_inline struct followed *follow(int typed, struct sight *sight, int may_begin,
					       __u16 *flags)
{
	__u64 head = (__u64)sight->head;
	struct followed *known = NULL;
	struct last_told *last = NULL;
	struct followed fresh = {};
	__u32 was_known = 0, was_last = 0;
	int may, is_known, is_last;

	if (anything_followed()) {
		known = followed_packets.lookup(&head);
		last = told_last(sight);
	}
	may = may_choose(typed, sight, may_begin);
	if (!known && !last && !may)
		return NULL;
	look(typed, sight);
	if (known)
		was_known = known->signature;
	if (last)
		was_last = last->signature;
	is_known = was_known == sight->signature && may_begin != MUST_BEGIN;
	is_last = was_last == sight->signature && may_begin != MUST_BEGIN;
	if (!is_known && !is_last && (was_known | was_last)) {
		__u32 inner = inner_signature(sight);

		is_known = inner && was_known == inner;
		is_last = inner && was_last == inner;
	}
	if (known && is_known)
		return known;
	/* What is known of this memory may be of a packet long gone. */
	if (last && is_last) {
		*flags |= HOP_JOINED;
		fresh.packet_id = last->packet_id;
		fresh.signature = last->signature;
	} else {
		if (may_begin == MUST_BEGIN && known)
			followed_packets.delete(&head);
		if (may_begin == MUST_BEGIN && last)
			last->packet_id = 0;
		if (!may || !packet_selected(typed, sight))
			return NULL;
		*flags |= HOP_FIRST;
		fresh.packet_id = new_packet_id();
		fresh.signature = sight->signature;
	}
	keep_following();
	followed_packets.update(&head, &fresh);
	return followed_packets.lookup(&head);
}

/* Fill in all that is the same at every hop. */
static __always_inline void describe(int typed, struct sight *sight, struct hop_event *event)
{
	struct skb_shared_info *shared = sight->head + LOAD(sight->skb->end);
	__u16 mac = LOAD(sight->skb->mac_header);

	event->time_ns = bpf_ktime_get_boot_ns();
	event->skb = (__u64)sight->skb;
	event->head = (__u64)sight->head;
	event->netns = sight->netns;
	event->ifindex = sight->ifindex;
	event->bytes = sight->bytes;
	event->mark = LOAD(sight->skb->mark);
	event->signature = sight->signature;
	event->tcp_flags = sight->tcp_flags;
	event->tuple = sight->tuple;
	if (LOAD(*(__u8 *)sight->skb->__cloned_offset) & CLONED)
		event->flags |= HOP_CLONE;
	event->gso_segments = READ(shared->gso_segs);
	if (event->gso_segments > 1)
		event->flags |= HOP_GSO;
	if ((READ(shared->dataref.counter) & DATAREF_MASK) == 1)
		event->flags |= HOP_GONE;
	read_conntrack(LOAD(sight->skb->_nfct), &event->ct);
	if (mac != MAC_HEADER_UNSET && sight->head + mac + L2_BYTES <= sight->l3 &&
	    !bpf_probe_read_kernel(event->packet, L2_BYTES, sight->head + mac))
		event->has_mac = 1;
	event->packet[12] = sight->tuple.ethertype >> 8;
	event->packet[13] = sight->tuple.ethertype;
	event->captured_bytes = L2_BYTES + copy_packet(event->packet + L2_BYTES, SNAPLEN - L2_BYTES,
						       sight->l3, sight->linear_bytes);
}

/* Tell of a packet at `hop`, if it is followed; returns the event to add to and submit. */
static __always_inline struct hop_event *begin_hop(int typed, struct sight *sight, __u16 hop,
						   int may_begin)
{
	__u16 flags = 0;
	struct followed *packet = follow(typed, sight, may_begin, &flags);
	struct hop_event *event;

	if (!packet)
		return NULL;
	event = hops.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lose(LOSS_HOPS);
		return NULL;
	}
	clear_hop(event);
	event->packet_id = packet->packet_id;
	event->hop = hop;
	sight->followed_signature = packet->signature;
	event->flags = flags;
	describe(typed, sight, event);
	return event;
}

/* Remember whom a routing decision on this CPU will be about. */
static __always_inline void remember(const struct hop_event *event, __u32 signature)
{
	int slot = 0;
	struct last_told *last = last_packets.lookup(&slot);

	if (!last)
		return;
	last->packet_id = event->packet_id;
	last->time_ns = event->time_ns;
	last->unrouted = event->hop == HOP_DEV_RX ||
			 (event->hop == HOP_NF_LEAVE && event->nf_hook == NF_INET_PRE_ROUTING);
	last->skb = event->skb;
	last->head = event->head;
	last->netns = event->netns;
	last->ifindex = event->ifindex;
	last->bytes = event->bytes;
	last->signature = signature;
	last->tuple = event->tuple;
}

static __always_inline void end_hop(struct sight *sight, struct hop_event *event)
{
	if (!event)
		return;
	remember(event, sight->followed_signature);
	/* By then NAT has settled both tuples. */
	if (event->hop == HOP_DEV_QUEUE)
		remember_flow(event);
	hops.ringbuf_submit(event, 0);
}

/* What can be said of a packet on a device, its network header at `l3`. */
static __always_inline void see(int typed, struct sk_buff *skb, struct net_device *dev, void *l3,
				struct sight *sight)
{
	struct net *net = LOAD(dev->nd_net.net);

	sight->skb = skb;
	sight->head = LOAD(skb->head);
	sight->l3 = l3;
	sight->linear_bytes = LOAD(skb->tail) - (__u32)((__u64)l3 - (__u64)sight->head);
	sight->bytes = LOAD(skb->len) - (__u32)((__u64)l3 - (__u64)LOAD(skb->data));
	sight->netns = LOAD(net->ns.inum);
	sight->ifindex = LOAD(dev->ifindex);
}

/* The same where a socket has it: skb->dev may be something else by then. */
static __always_inline void see_in_socket(int typed, struct sk_buff *skb, const struct sock *sk,
					  struct sight *sight)
{
	__u32 network = LOAD(skb->network_header);

	sight->skb = skb;
	sight->head = LOAD(skb->head);
	sight->l3 = sight->head + network;
	sight->linear_bytes = LOAD(skb->tail) - network;
	sight->bytes = LOAD(skb->len) + (__u32)((__u64)LOAD(skb->data) - (__u64)sight->l3);
	sight->netns = sk ? socket_netns(sk) : 0;
	sight->ifindex = LOAD(skb->skb_iif);
}

#endif
