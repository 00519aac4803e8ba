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

#define FOLLOW_JIFFIES 60000 /* a minute or more: how long a packet is on its way */

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

#define NF_ACCEPT_ 1 /* what netfilter programs answer, always */

static __always_inline __u32 *head_count(__u64 head)
{
	int slot = 0;
	struct head_counts *counts = head_counts.lookup(&slot);
	/* To the verifier an address stays one, whatever is computed of it, until its bytes are swapped. */
	__u64 hash = __builtin_bswap64(head) * 0x9e3779b97f4a7c15ULL;

	if (!counts)
		return NULL;
	KNOWN_NOT_NULL(counts);
	return &counts->packets[(hash >> 48) & (HEAD_SLOTS - 1)];
}

/* What is known of the packet with data at `head`, or of one that had it before. */
static __always_inline struct followed *followed_at(__u64 head)
{
	__u32 *count = head_count(head);

	return count && *count ? followed_packets.lookup(&head) : NULL;
}

static __always_inline void unfollow(__u64 head)
{
	__u32 *count = head_count(head);

	if (count && !followed_packets.delete(&head))
		__sync_fetch_and_add(count, -1);
}

/* Counted before it is there, deleted before it is replaced: a count is never too low. */
static __always_inline struct followed *follow_at(__u64 head, struct followed *fresh)
{
	__u32 *count = head_count(head);

	if (!count)
		return NULL;
	if (followed_at(head))
		unfollow(head);
	__sync_fetch_and_add(count, 1);
	if (followed_packets.update(&head, fresh))
		lose(LOSS_HOPS);
	return followed_packets.lookup(&head);
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

/* Could it be a followed packet? */
static __always_inline int may_be_followed(const struct sight *sight)
{
	return followed_at((__u64)sight->head) || told_last(sight);
}

/*
 * Is there anything to tell of a packet, or could it be chosen here? Nearly every one is neither: what
 * costs least is asked first.
 */
static __always_inline int concerns(int typed, struct sight *sight)
{
	int followed = anything_followed() && may_be_followed(sight);

	sight->may_choose = may_choose(typed, sight);
	return followed || sight->may_choose;
}

static __always_inline int accepted(int typed, const struct sight *sight)
{
	return sight->may_choose == PERHAPS_TRANSLATED ? accepted_beyond(typed, sight)
						       : sight->may_choose == ACCEPTED;
}

/* The packet, if it is followed or to be followed from here on; `flags` tells how it was known. */
static __always_inline struct followed *follow(int typed, struct sight *sight, __u16 *flags)
{
	__u64 head = (__u64)sight->head;
	struct followed *known = NULL;
	struct last_told *last = NULL;
	struct followed fresh = {};
	__u32 was_known = 0, was_last = 0;
	int is_new = sight->may_begin == MUST_BEGIN, is_known, is_last;

	if (anything_followed()) {
		known = followed_at(head);
		last = told_last(sight);
	}
	if (known)
		was_known = known->signature;
	if (last)
		was_last = last->signature;
	is_known = was_known == sight->signature && !is_new;
	is_last = was_last == sight->signature && !is_new;
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
		if (is_new && known)
			unfollow(head);
		if (is_new && last)
			last->packet_id = 0;
		if (!accepted(typed, sight) || !packet_selected(typed, sight))
			return NULL;
		*flags |= HOP_FIRST;
		fresh.packet_id = new_packet_id();
		fresh.signature = sight->signature;
	}
	keep_following();
	return follow_at(head, &fresh);
}

#endif
