/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a followed packet is told at a hop. Every hook asks a little of every packet; all that comes
 * after, for packets that may be followed, is one subprogram, compiled once.
 */
#if defined(WITH_TRACE) && !defined(TRACER_TELL_H)
#define TRACER_TELL_H

#define DATAREF_MASK 0xffff
#define CLONED 1 /* the first bit of the byte at __cloned_offset */

#define HOP_HEAD_BYTES (__builtin_offsetof(struct hop_event, packet) + 16)

/* All zero, but of a long record only what stands before the packet and its Ethernet header. */
static __always_inline void clear_hop(struct hop_event *event)
{
	__builtin_memset(event, 0, sizeof(*event) > 512 ? HOP_HEAD_BYTES : sizeof(*event));
}

/* The record of a hop that happens now, its other fields zero; NULL, and counted, without room. */
static __always_inline struct hop_event *new_hop(void)
{
	struct hop_event *event = hops.ringbuf_reserve(sizeof(*event));

	if (!event) {
		lose(LOSS_HOPS);
		return NULL;
	}
	clear_hop(event);
	event->time_ns = bpf_ktime_get_boot_ns();
	return event;
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

static __always_inline void name_qdisc(const struct Qdisc *qdisc, struct hop_event *event)
{
	const struct Qdisc_ops *ops = READ(qdisc->ops);

	bpf_probe_read_kernel_str(event->gateway, IFNAME_BYTES, ops->id);
}

/*
 * Has tc sent the packet here? mirred and nft's fwd have the kernel note it (5.6: 2c64605b590e),
 * bpf_redirect since 6.4 (59e498a3289f), and only where that goes out of a device.
 */
static __always_inline __u16 redirect_flags(int typed, const struct sk_buff *skb)
{
	__u16 flags = 0;

#ifdef BYTE_sk_buff__redirected
	if (LOAD_BIT(sk_buff, skb, redirected))
		flags |= HOP_REDIRECTED;
#ifdef BYTE_sk_buff__from_ingress
	if (flags && LOAD_BIT(sk_buff, skb, from_ingress))
		flags |= HOP_FROM_INGRESS;
#endif
#endif
	return flags;
}

/* Fill in all that is the same at every hop. */
static __always_inline void describe(int typed, const struct sight *sight, struct hop_event *event)
{
	struct skb_shared_info *shared = sight->head + LOAD(sight->skb->end);
	__u16 mac = LOAD(sight->skb->mac_header);

	event->packet_id = sight->packet_id;
	event->hop = sight->hop;
	event->flags = sight->flags | redirect_flags(typed, sight->skb);
	event->location = sight->location;
	event->argument = sight->argument;
	event->out_ifindex = sight->out_ifindex;
	event->nf_family = sight->nf_family;
	event->nf_hook = sight->nf_hook;
	event->skb = (__u64)sight->skb;
	event->head = (__u64)sight->head;
	event->netns = sight->netns;
	event->ifindex = sight->ifindex;
	event->bytes = sight->bytes;
	event->mark = LOAD(sight->skb->mark);
	event->signature = sight->signature;
	event->tcp_flags = sight->tcp_flags;
	event->tuple = sight->tuple;
	if (sight->qdisc)
		name_qdisc((void *)sight->qdisc, event);
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

/* What follows from what was told, at the hops where something does. */
static __always_inline void conclude(const struct sight *sight, const struct hop_event *event)
{
	if (event->hop == HOP_DEV_QUEUE) {
		/* By then NAT has settled both tuples. */
		remember_flow(event);
		remember_translation(event);
		remember_first(event);
		remember_whole(sight, event);
	}
	if ((event->hop == HOP_CONSUMED || event->hop == HOP_DROPPED) && event->flags & HOP_GONE)
		unfollow(event->head);
}

/* Is the packet followed, perhaps from here on? Then `sight` has its id. */
static __always_inline int recognise(int typed, struct sight *sight)
{
	struct followed *packet;

	look(typed, sight);
	if (sight->hop == HOP_DEV_XMIT)
		adopt_segment(sight);
	packet = follow(typed, sight, &sight->flags);
	if (packet) {
		sight->packet_id = packet->packet_id;
		sight->followed_signature = packet->signature;
	}
	return 0;
}

static __always_inline int report_hop(int typed, const struct sight *sight)
{
	struct hop_event *event = new_hop();

	if (!event)
		return 0;
	describe(typed, sight, event);
	remember(event, sight->followed_signature);
	conclude(sight, event);
	hops.ringbuf_submit(event, 0);
	return 0;
}

/*
 * bcc knows no subprograms: each is a function of its own to it, and the loader turns calls of its
 * number into calls of it. Hooks whose fields are plain loads have others than the rest. Two, one
 * after the other: their stacks and the hook's have 512 bytes together.
 */
#ifdef CALL_tell_typed
int follow_typed(struct sight *sight)
{
	return recognise(1, sight);
}
int tell_typed(struct sight *sight)
{
	return report_hop(1, sight);
}
static int (*call_follow_typed)(struct sight *sight) = (void *)CALL_follow_typed;
static int (*call_tell_typed)(struct sight *sight) = (void *)CALL_tell_typed;
#endif
#ifdef CALL_tell_raw
int follow_raw(struct sight *sight)
{
	return recognise(0, sight);
}
int tell_raw(struct sight *sight)
{
	return report_hop(0, sight);
}
static int (*call_follow_raw)(struct sight *sight) = (void *)CALL_follow_raw;
static int (*call_tell_raw)(struct sight *sight) = (void *)CALL_tell_raw;
#endif
/* Tell of a packet at a hop, if it is followed; that is known by `sight->packet_id` then. */
static __always_inline void tell(int typed, struct sight *sight)
{
#ifdef CALL_tell_typed
	if (typed) {
		call_follow_typed(sight);
		if (sight->packet_id)
			call_tell_typed(sight);
	}
#endif
#ifdef CALL_tell_raw
	if (!typed) {
		call_follow_raw(sight);
		if (sight->packet_id)
			call_tell_raw(sight);
	}
#endif
}

#endif
