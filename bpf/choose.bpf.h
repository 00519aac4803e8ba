/* SPDX-License-Identifier: GPL-2.0-only */
/* Which packets `trace` was asked for, at a hop where one may be chosen. */
#if defined(WITH_TRACE) && !defined(TRACER_CHOOSE_H)
#define TRACER_CHOOSE_H

/*
 * May a packet be chosen at this hop? Where a packet is sent by its host it must: one that looks like
 * the last one in the same memory is another all the same, unless it is the inside of a tunnel.
 */
enum beginning { MAY_NOT_BEGIN = 0, MAY_BEGIN = 1, MUST_BEGIN = 2 };

/* Does the filter accept it? Perhaps the packet as it looks beyond NAT: that takes a closer look. */
enum choice { NOT_CHOSEN = 0, ACCEPTED = 1, PERHAPS_TRANSLATED = 2 };

/* A packet at a hop: what is known of it there, and what comes of that. */
struct sight {
	struct sk_buff *skb;
	void *head;
	void *l3;
	__u64 location; /* as in struct hop_event, like the next five */
	__u32 argument;
	__u32 out_ifindex;
	__u16 hop;
	__u8 nf_family;
	__u8 nf_hook;
	__u32 netns;
	__u32 ifindex;
	__u32 linear_bytes; /* of the packet, from l3 on */
	__u32 bytes; /* all of them, from l3 on */
	__u32 may_begin; /* enum beginning */
	__u32 may_choose; /* enum choice */
	__u32 signature;
	__u32 tcp_flags;
	__u64 qdisc; /* address of the struct Qdisc, or 0 */
	__u64 packet_id; /* once it is known for a followed one; and its signature as it was chosen */
	__u32 followed_signature;
	__u16 flags; /* enum hop_flag */
	__u16 pad;
	struct tuple tuple __attribute__((aligned(8))); /* it is written in larger pieces */
};

/* Read addresses, ports and signature. */
static __always_inline void look(int typed, struct sight *sight)
{
	sight->tuple.ethertype = bpf_ntohs(LOAD(sight->skb->protocol));
	sight->tcp_flags = TCP_FLAGS & read_tuple(typed, sight->l3, sight->linear_bytes,
						  &sight->tuple, &sight->signature);
}

static __always_inline int has_options(__u16 ethertype, __u8 first)
{
	return ethertype == bpf_htons(ETH_P_IP) && first != 0x45;
}

#ifdef SELECT_PCAP
/* Begin the frame: MAC addresses, which most filters do not ask for, and the EtherType. */
static __always_inline void begin_frame(int typed, const struct sight *sight, struct frame *frame)
{
#ifdef PCAP_READS_MAC
	__u16 mac = LOAD(sight->skb->mac_header);

	if (mac == MAC_HEADER_UNSET || sight->head + mac + L2_BYTES > sight->l3 ||
	    bpf_probe_read_kernel(frame->packet, L2_BYTES, sight->head + mac))
		__builtin_memset(frame->packet, 0, L2_BYTES);
#endif
	*(__u16 *)(frame->packet + ETHERTYPE_AT) = LOAD(sight->skb->protocol);
}
#endif

/*
 * Does the filter accept it? It wants an Ethernet frame in map memory, whatever the packet has.
 * Most look no further than the first PCAP_REACH bytes behind the Ethernet header.
 */
static __always_inline int filter_accepts(int typed, const struct sight *sight)
{
#ifdef SELECT_PCAP
	int slot = 0;
	struct frame *frame = frames.lookup(&slot);
	__u16 ethertype = LOAD(sight->skb->protocol);
	__u32 bytes = sight->linear_bytes;

	if (!frame)
		return 0;
	begin_frame(typed, sight, frame);
	read_words(typed, (void *)frame->packet + L2_BYTES, WINDOW_WORDS, sight->l3);
	if (bytes > WINDOW_BYTES) {
		if (PCAP_REACH <= WINDOW_BYTES && !has_options(ethertype, frame->packet[L2_BYTES]))
			bytes = WINDOW_BYTES;
		else
			bytes = copy_packet(frame->packet + L2_BYTES, PACKET_BYTES - L2_BYTES,
					    sight->l3, bytes);
	}
#ifdef SELECT_INNER
	struct inner *inner = find_inner(sight->l3, sight->linear_bytes, bpf_ntohs(ethertype));

	if (inner) {
		*(__u16 *)(frame->packet + ETHERTYPE_AT) = bpf_htons(inner->ethertype);
		bytes = copy_packet(frame->packet + L2_BYTES, PACKET_BYTES - L2_BYTES,
				    sight->l3 + inner->offset, sight->linear_bytes - inner->offset);
		return pcap_match(frame->packet, L2_BYTES + bytes,
				  L2_BYTES + sight->bytes - inner->offset);
	}
#endif
	return pcap_match(frame->packet, L2_BYTES + bytes, L2_BYTES + sight->bytes);
#else
	return 1;
#endif
}

/* Is any packet sampled now? User space may look in bursts. */
static __always_inline __u32 sample_rate(void)
{
#ifdef SAMPLE
	int slot = 0;
	__u32 *rate = sample_rates.lookup(&slot);

	return rate ? *rate : 0;
#else
	return 1;
#endif
}

/* By signature: the same answer at every hop. */
static __always_inline int sampled(const struct sight *sight)
{
#ifdef SAMPLE
	__u32 rate = sample_rate();

	return rate && (sight->signature >> 1) % rate == 0;
#else
	return 1;
#endif
}

/* The first FIRST packets of each flow, by the sender's tuple. */
static __always_inline int among_first(struct sight *sight)
{
#ifdef FIRST_PACKETS
	int slot = 0;
	struct tuple *tuple = first_tuples.lookup(&slot);
	__u32 one = 1, *count;

	if (!tuple)
		return 0;
	*tuple = sight->tuple;
	read_sender_tuple(READ(sight->skb->_nfct), tuple);
	count = flow_firsts.lookup(tuple);
	if (!count) {
		flow_firsts.update(tuple, &one);
		return 1;
	}
	/* The old value of an atomic addition is not to be had before BPF's v3 instructions. */
	if (*count >= FIRST_PACKETS)
		return 0;
	__sync_fetch_and_add(count, 1);
	return 1;
#else
	return 1;
#endif
}

/*
 * Is it a selected pod's packet: by where it is, by an address, or because it belongs to a connection
 * of the pod's whose other side, beyond NAT, looks like this?
 */
static __always_inline int pods_packet(struct sight *sight)
{
#ifdef SELECT_PODS
	__u32 place = pod_place(sight->netns, sight->ifindex);

	if (place == POD_SELECTED)
		return 1;
	if (!place && (pod_address(sight->tuple.saddr) == POD_SELECTED ||
		       pod_address(sight->tuple.daddr) == POD_SELECTED))
		return 1;
	return followed_flows.lookup(&sight->tuple) != NULL;
#else
	return 1;
#endif
}

/*
 * Asking takes up to five look-ups: the answer no is kept, for a place and an IPv4 flow, until the
 * question's version changes. `copy` is the packet where it has been read, or NULL.
 */
static __always_inline struct answered_flow *answered_flow(int typed, const struct sight *sight,
							   int question, const void *copy,
							   struct flow4_words *flow)
{
#if defined(SELECT_PODS) || defined(SELECT_PCAP)
	__u8 tcp_flags = 0;
	__u32 slot;

	flow->place = sight->netns | (__u64)sight->ifindex << 32;
	if (LOAD(sight->skb->protocol) != bpf_htons(ETH_P_IP) || sight->linear_bytes < 20 + 16 ||
	    !read_flow4(copy ? OWN_MEMORY : typed, copy ?: sight->l3, 0, flow, &tcp_flags))
		return NULL;
	slot = (flow4_hash(flow) & (ANSWER_SLOTS - 1)) + question * ANSWER_SLOTS;
	return answered_flows.lookup(&slot);
#else
	return NULL;
#endif
}

static __always_inline __u64 version_of(int question)
{
	__u64 *version = selection_version.lookup(&question);

	return version ? *version : 0;
}

static __always_inline void change_version(int question)
{
	__u64 *version = selection_version.lookup(&question);

	if (version)
		__sync_fetch_and_add(version, 1);
}

static __always_inline int known_not(int typed, const struct sight *sight, int question,
				     const void *copy)
{
	struct flow4_words flow;
	struct answered_flow *kept = answered_flow(typed, sight, question, copy, &flow);

	return kept && kept->version == version_of(question) && same_flow4(&kept->flow, &flow);
}

/* `version` is the question's from before it was asked. */
static __always_inline void keep_no(int typed, const struct sight *sight, int question,
				    __u64 version)
{
	struct flow4_words flow;
	struct answered_flow *kept = answered_flow(typed, sight, question, NULL, &flow);

	if (!kept)
		return;
	kept->flow = flow;
	kept->version = version;
}

/* From now on packets like this belong to a selected pod. */
static __always_inline void follow_flow(struct tuple *tuple)
{
#ifdef SELECT_PODS
	__u32 one = 1;

	if (followed_flows.lookup(tuple))
		return;
	followed_flows.update(tuple, &one);
	change_version(IS_SELECTED);
#endif
}

static __always_inline struct tuple answer_to(const struct tuple *tuple)
{
	struct tuple answer = *tuple;

	__builtin_memcpy(answer.saddr, tuple->daddr, ADDRESS_BYTES);
	__builtin_memcpy(answer.daddr, tuple->saddr, ADDRESS_BYTES);
	answer.sport = tuple->dport;
	answer.dport = tuple->sport;
	return answer;
}

/* Keep in mind how the answers look, and the connection on both sides of NAT. */
static __always_inline void remember_flow(const struct hop_event *event)
{
#ifdef SELECT_PODS
	struct tuple tuple = answer_to(&event->tuple);

	if (has_ports(tuple.protocol))
		follow_flow(&tuple);
	if (!event->ct.present)
		return;
	tuple = event->ct.orig;
	follow_flow(&tuple);
	tuple = event->ct.reply;
	follow_flow(&tuple);
#endif
}

/* Was this packet asked for? Its headers have been read. */
static __always_inline int packet_selected(int typed, struct sight *sight)
{
	__u64 version = version_of(IS_SELECTED);

	if (!pods_packet(sight)) {
		keep_no(typed, sight, IS_SELECTED, version);
		return 0;
	}
#ifdef SELECT_TCP_FLAGS
	if (!(sight->tcp_flags & SELECT_TCP_FLAGS))
		return 0;
#endif
	if (!sampled(sight))
		return 0;
	return among_first(sight);
}

#endif
