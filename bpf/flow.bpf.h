/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow plane: one count per packet and pod device. */
#if defined(WITH_FLOWS) && !defined(TRACER_FLOW_H)
#define TRACER_FLOW_H

#define KIND_VETH 0x68746576ULL /* "veth", as a little-endian number */
#define KIND_NETKIT 0x74696b74656eULL /* "netkit" */

/* The generation is full: keep the sums exact per pod end. */
static __always_inline void count_other(struct flow_other_key *key, __u64 packets, __u64 bytes)
{
	struct drop_count zero = {};
	struct drop_count *count;
	int slot = 0;
	void *map = flow_other.lookup(&slot);

	if (!map)
		return; /* it has not begun */
	count = bpf_map_lookup_elem_(map, key);
	if (!count) {
		bpf_map_update_elem_(map, key, &zero, BPF_NOEXIST);
		count = bpf_map_lookup_elem_(map, key);
	}
	if (!count) {
		lose(LOSS_FLOW_OTHER);
		return;
	}
	count->packets += packets;
	count->bytes += bytes;
}

/* The counter of `key` in the generation `map`; NULL when that is full. */
static __always_inline struct flow_count *flow_counter(void *map, void *key)
{
	struct flow_count zero = {};
	struct flow_count *count = bpf_map_lookup_elem_(map, key);

	if (count)
		return count;
	/* -EEXIST: what interrupted this was first. */
	bpf_map_update_elem_(map, key, &zero, BPF_NOEXIST);
	return bpf_map_lookup_elem_(map, key);
}

static __always_inline void count_packet(struct flow_count *count, const struct crossing *at)
{
	count->packets += weight(at);
	count->bytes += (__u64)at->bytes * weight(at);
	count->last_ns = at->cpu->now_ns;
#ifdef SAMPLE_FLOWS
	if (weight(at) > count->sample_rate)
		count->sample_rate = weight(at);
#endif
	if (at->tcp) {
		count->tcp_flags |= at->tcp;
		if (!(at->tcp & (TCP_WINDOW | TCP_SYN | TCP_RST)))
			count->zero_windows += weight(at);
	}
}

/* Move what a cache slot holds into the map. */
static __always_inline void flush_slot(struct cached_flow *cached)
{
	struct flow_other_key other = {.netns = cached->key.netns,
				       .ifindex = cached->key.ifindex,
				       .direction = cached->key.direction};
	struct flow4_key key __attribute__((aligned(8))) = cached->key;
	struct flow_count *count = NULL;
	int slot = 0;
	void *map = flows4.lookup(&slot);

	key.cpu = bpf_get_smp_processor_id();
	if (map)
		count = flow_counter(map, &key);
	if (!count) {
		count_other(&other, cached->count.packets, cached->count.bytes);
		return;
	}
	if (!count->packets)
		count->first_ns = cached->count.first_ns;
	if (!count->syn_ns)
		count->syn_ns = cached->count.syn_ns;
	if (cached->count.rtt_us)
		count->rtt_us = cached->count.rtt_us;
	count->last_ns = cached->count.last_ns;
	count->dscp = cached->count.dscp;
#ifdef SAMPLE_FLOWS
	if (cached->count.sample_rate > count->sample_rate)
		count->sample_rate = cached->count.sample_rate;
#endif
	count->packets += cached->count.packets;
	count->bytes += cached->count.bytes;
	count->tcp_flags |= cached->count.tcp_flags;
	count->resets += cached->count.resets;
	count->zero_windows += cached->count.zero_windows;
}

/* The second of its hash, or in place of the one that has been silent for longer. */
static __always_inline struct cached_flow *other_way(struct flow_set *set,
						     const struct flow4_words *flow)
{
	struct cached_flow *cached = &set->ways[1];
	struct flow_count fresh = {};

	if (same_flow4((void *)&cached->key, flow))
		return cached;
	if ((__s32)(set->ways[0].count.tick - cached->count.tick) < 0)
		cached = &set->ways[0];
	if (cached->count.packets)
		flush_slot(cached);
	*(struct flow4_words *)&cached->key = *flow;
	cached->count = fresh;
	return cached;
}

/* Most packets belong to a flow that this CPU has just counted: no hash table for those. */
static __always_inline void count_ipv4(int typed, const struct flow4_words *flow,
				       const struct crossing *at)
{
	struct cached_flow *cached;
	struct flow_set *set;
	__u32 slot = at->cpu->first_set + (flow4_hash(flow) & (FLOW_SETS - 1));

	if (at->cpu->generation & 1)
		slot += FLOW_SETS;
	set = flow_cache.lookup(&slot);
	if (!set)
		return;
	cached = &set->ways[0];
	if (RARELY(!same_flow4((void *)&cached->key, flow)))
		cached = other_way(set, flow);
	if (is_due(&cached->count, at))
		look_closer(typed, &cached->count, at, flow->sender ^ flow->receiver);
	count_packet(&cached->count, at);
}

static __always_inline __u64 tuple_hash(const struct tuple *tuple)
{
	return *(__u64 *)(tuple->saddr + 8) ^ *(__u64 *)(tuple->daddr + 8) ^
	       (tuple->sport | (__u32)tuple->dport << 16);
}

static __always_inline void count_any(int typed, struct flow_key *flow, const struct crossing *at)
{
	struct flow_other_key other = {
		.netns = flow->netns, .ifindex = flow->ifindex, .direction = flow->direction};
	struct flow_count *count = NULL;
	int slot = 0;
	void *map = flows.lookup(&slot);

	flow->cpu = bpf_get_smp_processor_id();
	if (map)
		count = flow_counter(map, flow);
	if (!count) {
		count_other(&other, weight(at), (__u64)at->bytes * weight(at));
		return;
	}
	if (is_due(count, at))
		look_closer(typed, count, at, tuple_hash(&flow->tuple));
	count_packet(count, at);
}

/* Does a device of the node lead into another namespace, as the node's end of a veth does? */
static __always_inline int is_pair(const struct net_device *dev, __u32 ifindex)
{
	__u32 slot = ifindex % DEVICE_SLOTS;
	struct device_kind *known = device_kinds.lookup(&slot);
	struct rtnl_link_ops *ops;
	char kind[8] = {};

	if (!known)
		return 0;
	if (RARELY(known->ifindex != ifindex)) {
		ops = READ(dev->rtnl_link_ops);
		if (ops)
			bpf_probe_read_kernel_str(kind, sizeof(kind), READ(ops->kind));
		known->pair = *(__u64 *)kind == KIND_VETH || *(__u64 *)kind == KIND_NETKIT;
		known->ifindex = ifindex;
	}
	return known->pair;
}

/* Count a packet at a device of a pod or at the node's end of its pair. */
static __always_inline void flow_packet(int typed, struct crossing *at)
{
	const struct sk_buff *skb = at->skb;
	struct flow_key key __attribute__((aligned(8)));
	const void *head, *data, *l3;
	__u32 linear_bytes, tick;

#ifdef SELECT_PODS
	if (!place_selected(at->place.netns, at->place.ifindex))
		return;
#endif
	at->cpu = this_cpu();
	if (!at->cpu)
		return;
	head = LOAD(skb->head);
	data = LOAD(skb->data);
	/* What was just taken from a device begins with the network header, which is not set yet. */
	l3 = at->received ? data : head + LOAD(skb->network_header);
	at->bytes = LOAD(skb->len) - (__u32)((__u64)l3 - (__u64)data);
	tick = bpf_jiffies64();
	if (RARELY(at->cpu->tick != tick))
		look_at_clock(at->cpu, tick);
	if (RARELY(at->cpu->armed_head == (__u64)head))
		end_transit(typed, at);
	else if (at->direction == DIRECTION_EGRESS && RARELY(at->cpu->armed_tick != tick))
		begin_transit(at, head);
	linear_bytes = LOAD(skb->tail) - (__u32)((__u64)l3 - (__u64)head);
	if (LOAD(skb->protocol) == bpf_htons(ETH_P_IP) && linear_bytes >= 20 + 16) {
		struct flow4_words flow = {.place = at->place.netns | (__u64)at->place.ifindex
									      << 32};

		if (read_flow4(typed, l3, at->direction, &flow, &at->tcp)) {
			count_ipv4(typed, &flow, at);
#ifdef WITH_DNS
			if (at->direction == DIRECTION_INGRESS)
				see_dns4(&flow, l3, linear_bytes, at->place);
#endif
			return;
		}
	}
	read_key(typed, at, &key);
	count_any(typed, &key, at);
#ifdef WITH_DNS
	if (at->direction == DIRECTION_INGRESS)
		see_dns(&key.tuple, l3, linear_bytes, at->place);
#endif
}

/*
 * Both ends of a packet between pods are seen where it is sent: at the sender's own device, and at
 * the node's end of the receiver's pair, where it is the receiver's ingress. So each packet runs
 * this once per pod, and what the pods receive needs no hook of its own.
 */
static __always_inline void flow_xmit(int typed, const struct sk_buff *skb,
				      const struct net_device *dev)
{
	const struct net *net = LOAD(dev->nd_net.net);
	struct crossing at = {
		.skb = skb,
		.place = {.netns = LOAD(net->ns.inum), .ifindex = LOAD(dev->ifindex)},
		.direction = DIRECTION_EGRESS,
	};

	if (is_skipped())
		return;
	if (at.place.netns == NODE_NETNS) {
		if (!is_pair(dev, at.place.ifindex))
			return;
		at.direction = DIRECTION_INGRESS;
	} else if (LOAD(dev->flags) & IFF_LOOPBACK) {
		return;
	}
	flow_packet(typed, &at);
}

/* What a pod receives by a device whose other end is not on the node: macvlan, a physical one. */
static __always_inline void flow_receive(int typed, const struct sk_buff *skb,
					 const struct net_device *dev)
{
	const struct net *net = LOAD(dev->nd_net.net);
	struct crossing at = {
		.skb = skb,
		.received = 1,
		.place = {.netns = LOAD(net->ns.inum), .ifindex = LOAD(dev->ifindex)},
		.direction = DIRECTION_INGRESS,
	};

	if (at.place.netns == NODE_NETNS || !unpaired_places.lookup(&at.place) || is_skipped())
		return;
	flow_packet(typed, &at);
}

/* TCP sends something again: counted beside the flow, for this may run amid the flow's own count. */
static __always_inline void count_retransmit(int typed, const struct sock *sk)
{
	struct flow_key key __attribute__((aligned(8))) = {};
	struct flow_count *count;
	int slot = 0;
	void *map = flows.lookup(&slot);

	if (!map || !socket_flow(typed, sk, &key))
		return;
#ifdef SELECT_PODS
	if (!place_selected(key.netns, key.ifindex))
		return;
#endif
	key.cpu = bpf_get_smp_processor_id();
	count = flow_counter(map, &key);
	if (!count) {
		lose(LOSS_FLOW_DETAILS);
		return;
	}
	count->retransmits += 1;
	if (count->packets)
		return;
	count->last_ns = bpf_ktime_get_boot_ns();
	if (!count->first_ns)
		count->first_ns = count->last_ns;
}

#endif
