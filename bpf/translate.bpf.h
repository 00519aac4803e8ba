/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A filter on the addresses of one side of NAT, and the packets as they look on the other: those of a
 * connection that is followed are asked about as they will look, or looked, beyond NAT.
 */
#if defined(WITH_TRACE) && !defined(TRACER_TRANSLATE_H)
#define TRACER_TRANSLATE_H

static __always_inline int same_address(const __u8 *one, const __u8 *other)
{
	return *(__u64 *)one == *(__u64 *)other && *(__u64 *)(one + 8) == *(__u64 *)(other + 8);
}

static __always_inline int same_tuple(const struct tuple *one, const struct tuple *other)
{
	return same_address(one->saddr, other->saddr) && same_address(one->daddr, other->daddr) &&
	       *(__u64 *)&one->sport == *(__u64 *)&other->sport;
}

/* Does NAT change anything but ICMP's type, which an answer changes anyway? */
static __always_inline int is_translated(const struct conntrack *ct)
{
	if (!same_address(ct->orig.saddr, ct->reply.daddr) ||
	    !same_address(ct->orig.daddr, ct->reply.saddr))
		return 1;
	return has_ports(ct->orig.protocol) &&
	       (ct->orig.sport != ct->reply.dport || ct->orig.dport != ct->reply.sport);
}

#ifdef SELECT_PCAP
/* Whether anything is known of such packets: by the last bytes of addresses, and ports, as sent. */
static __always_inline __u8 *translated_at(__be32 saddr, __be32 daddr, __be32 ports)
{
	int slot = 0;
	struct translated_hashes *hashes = translated_hashes.lookup(&slot);
	__u64 hash = (saddr | (__u64)daddr << 32) * 0x9e3779b97f4a7c15ULL;

	hash = ((hash >> 32) ^ ports) * 0x9e3779b97f4a7c15ULL >> 32;
	if (!hashes)
		return NULL;
	KNOWN_NOT_NULL(hashes);
	return &hashes->known[hash & (TRANSLATED_SLOTS - 1)];
}

/* Could the packet in the frame look otherwise beyond NAT? Most could not, which is soon known. */
static __always_inline int may_be_translated(const struct frame *frame)
{
	__be16 ethertype = *(__be16 *)(frame->packet + ETHERTYPE_AT);
	const __u8 *l3 = frame->packet + L2_BYTES;
	__u8 *known;

#ifdef SELECT_INNER
	return 1; /* the frame may have the packet inside a tunnel's */
#endif
	if (ethertype == bpf_htons(ETH_P_IP) && l3[0] == 0x45 && has_ports(l3[9]))
		known = translated_at(*(__be32 *)(l3 + 12), *(__be32 *)(l3 + 16),
				      *(__be32 *)(l3 + IPV4_BYTES));
	else if (ethertype == bpf_htons(ETH_P_IPV6) && has_ports(l3[6]))
		known = translated_at(*(__be32 *)(l3 + 20), *(__be32 *)(l3 + 36),
				      *(__be32 *)(l3 + IPV6_BYTES));
	else
		return 1;
	return !known || *known;
}

static __always_inline void translate(const struct tuple *from, const struct tuple *to)
{
	struct tuple written = *from, beyond = answer_to(to);
	__u8 *known;

	if (translations.lookup(&written))
		return;
	known = translated_at(*(__be32 *)(from->saddr + 12), *(__be32 *)(from->daddr + 12),
			      bpf_htons(from->sport) | (__u32)bpf_htons(from->dport) << 16);
	if (known)
		*known = 1;
	if (translations.update(&written, &beyond))
		lose(LOSS_HOPS);
	change_version(IS_TRANSLATED);
}

/* Write how the packet looks beyond NAT into its frame. */
static __always_inline void rewrite(struct frame *frame, const struct tuple *beyond)
{
	__u8 *l3 = frame->packet + L2_BYTES, *l4 = l3 + IPV4_BYTES;

	if (beyond->ethertype == ETH_P_IP) {
		__builtin_memcpy(l3 + 12, beyond->saddr + 12, 4);
		__builtin_memcpy(l3 + 16, beyond->daddr + 12, 4);
	} else {
		__builtin_memcpy(l3 + 8, beyond->saddr, ADDRESS_BYTES);
		__builtin_memcpy(l3 + 24, beyond->daddr, ADDRESS_BYTES);
		l4 = l3 + IPV6_BYTES;
	}
	/* Behind options or extension headers the ports stay as they are. */
	if (!has_ports(beyond->protocol) ||
	    (beyond->ethertype == ETH_P_IP ? l3[0] != 0x45 : l3[6] != beyond->protocol))
		return;
	*(__be16 *)l4 = bpf_htons(beyond->sport);
	*(__be16 *)(l4 + 2) = bpf_htons(beyond->dport);
}
#endif

/* At a queue, where NAT has settled both tuples: how each direction looks on the other side. */
static __always_inline void remember_translation(const struct hop_event *event)
{
#ifdef SELECT_PCAP
	if (!event->ct.present || !is_translated(&event->ct))
		return;
	translate(&event->ct.orig, &event->ct.reply);
	translate(&event->ct.reply, &event->ct.orig);
#endif
}

/*
 * At a queue, for --first: as it looks beyond NAT it is of a flow of which enough were chosen, for a
 * namespace that has no entry to tell what its sender wrote.
 */
static __always_inline void remember_first(const struct hop_event *event)
{
#ifdef FIRST_PACKETS
	const struct conntrack *ct = &event->ct;
	int slot = 0;
	struct tuple *beyond = first_tuples.lookup(&slot);
	__u32 enough = FIRST_PACKETS;

	if (!beyond || !ct->present || !is_translated(ct) || ct->info == IP_CT_RELATED ||
	    ct->info == IP_CT_RELATED_REPLY)
		return;
	*beyond = event->tuple;
	if (!same_tuple(beyond, &ct->orig) && !same_tuple(beyond, &ct->reply))
		flow_firsts.update(beyond, &enough);
#endif
}

/* Would the filter accept it, if it looked like that? */
static __always_inline int accepted_as(int typed, const struct sight *sight,
				       const struct tuple *beyond)
{
#ifdef SELECT_PCAP
	int slot = 0;
	struct frame *frame = frames.lookup(&slot);
	__u32 bytes;

	if (!frame)
		return 0;
	begin_frame(typed, sight, frame);
	bytes = copy_packet(frame->packet + L2_BYTES, PACKET_BYTES - L2_BYTES, sight->l3,
			    sight->linear_bytes);
	rewrite(frame, beyond);
	return pcap_match(frame->packet, L2_BYTES + bytes, L2_BYTES + sight->bytes);
#else
	return 0;
#endif
}

/* Would the filter accept it as it looks beyond NAT? Its headers have been read. */
static __always_inline int accepted_beyond(int typed, const struct sight *sight)
{
#ifdef SELECT_PCAP
	__u64 version = version_of(IS_TRANSLATED);
	struct tuple *beyond = translations.lookup(&sight->tuple);

	if (!beyond) {
		keep_no(typed, sight, IS_TRANSLATED, version);
		return 0;
	}
	return accepted_as(typed, sight, beyond);
#else
	return 0;
#endif
}

static __always_inline enum choice ask_filter(int typed, const struct sight *sight)
{
	if (filter_accepts(typed, sight))
		return ACCEPTED;
#ifdef SELECT_PCAP
	if (version_of(IS_TRANSLATED))
		return PERHAPS_TRANSLATED;
#endif
	return NOT_CHOSEN;
}

/* What costs least is asked first: could a packet be chosen here, and does the filter want it? */
static __always_inline enum choice may_choose(int typed, const struct sight *sight)
{
	enum choice choice;

	if (!sight->may_begin || !sample_rate())
		return NOT_CHOSEN;
#ifdef SELECT_PODS
	if (known_not(typed, sight, IS_SELECTED, NULL))
		return NOT_CHOSEN;
#endif
	choice = ask_filter(typed, sight);
#ifdef SELECT_PCAP
	if (choice == PERHAPS_TRANSLATED) {
		int slot = 0;
		struct frame *frame = frames.lookup(&slot);

		/* The filter's frame has the words already. */
		if (frame &&
		    (!may_be_translated(frame) ||
		     known_not(typed, sight, IS_TRANSLATED, (void *)frame->packet + L2_BYTES)))
			return NOT_CHOSEN;
	}
#endif
	return choice;
}

#endif
