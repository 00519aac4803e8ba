/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow plane: one count per packet and pod device. */
#if defined(WITH_FLOWS) && !defined(TRACER_FLOW_H)
#define TRACER_FLOW_H

#define IFF_LOOPBACK 8
#define KIND_VETH 0x68746576ULL /* "veth", as a little-endian number */
#define KIND_NETKIT 0x74696b74656eULL /* "netkit" */

/* The generation is full: keep the sums exact per pod end. */
static __always_inline void count_other(struct flow_other_key *key, __u64 packets, __u64 bytes)
{
	struct drop_count zero = {};
	struct drop_count *count = flow_other.lookup(key);

	if (!count) {
		flow_other.update(key, &zero);
		count = flow_other.lookup(key);
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
	/* -EEXIST: another CPU was first. Then there is an entry, with zeros for this CPU. */
	bpf_map_update_elem_(map, key, &zero, BPF_NOEXIST);
	return bpf_map_lookup_elem_(map, key);
}

static __always_inline void count_packet(struct flow_count *count, __u32 bytes, __u8 tcp_flags)
{
	__u64 tick = bpf_jiffies64();

	if (count->tick != tick) {
		/* A clock costs as much as the rest: once a tick is enough for the last time. */
		count->tick = tick;
		count->last_ns = bpf_ktime_get_boot_ns();
		if (!count->packets)
			count->first_ns = count->last_ns;
	}
	count->packets += 1;
	count->bytes += bytes;
	if (tcp_flags)
		count->tcp_flags |= tcp_flags;
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

	if (map)
		count = flow_counter(map, &key);
	if (!count) {
		count_other(&other, cached->count.packets, cached->count.bytes);
		return;
	}
	if (!count->packets)
		count->first_ns = cached->count.first_ns;
	count->last_ns = cached->count.last_ns;
	count->packets += cached->count.packets;
	count->bytes += cached->count.bytes;
	count->tcp_flags |= cached->count.tcp_flags;
}

/* Most packets belong to a flow that this CPU has just counted: no hash table for those. */
static __always_inline void count_ipv4(const struct flow4_words *flow, __u32 bytes, __u8 tcp_flags)
{
	struct flow_count fresh = {};
	struct cached_flow *cached;
	struct flow4_words *known;
	__u32 slot = 0, *generation = flow_generation.lookup(&slot);

	slot = flow4_hash(flow) & (FLOW_SLOTS - 1);
	if (generation && *generation)
		slot += FLOW_SLOTS;
	cached = flow_cache.lookup(&slot);
	if (!cached)
		return;
	known = (void *)&cached->key;
	if (!same_flow4(known, flow)) {
		if (cached->count.packets)
			flush_slot(cached);
		*known = *flow;
		cached->count = fresh;
	}
	count_packet(&cached->count, bytes, tcp_flags);
}

static __always_inline void count_any(struct flow_key *flow, __u32 bytes, __u8 tcp_flags)
{
	struct flow_other_key other = {
		.netns = flow->netns, .ifindex = flow->ifindex, .direction = flow->direction};
	struct flow_count *count = NULL;
	int slot = 0;
	void *map = flows.lookup(&slot);

	if (map)
		count = flow_counter(map, flow);
	if (count)
		count_packet(count, bytes, tcp_flags);
	else
		count_other(&other, 1, bytes);
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
	if (known->ifindex != ifindex) {
		ops = READ(dev->rtnl_link_ops);
		if (ops)
			bpf_probe_read_kernel_str(kind, sizeof(kind), READ(ops->kind));
		known->pair = *(__u64 *)kind == KIND_VETH || *(__u64 *)kind == KIND_NETKIT;
		known->ifindex = ifindex;
	}
	return known->pair;
}

/* Count a packet of `bytes` from `l3` on, at a device of a pod or at the node's end of its pair. */
static __always_inline void flow_packet(int typed, const struct sk_buff *skb, const void *l3,
					__u32 bytes, struct place place, __u32 direction)
{
	__u16 protocol = LOAD(skb->protocol);
	__u32 linear_bytes = LOAD(skb->tail) - (__u32)((__u64)l3 - (__u64)LOAD(skb->head));
	__u8 tcp_flags = 0;

#ifdef SELECT_PODS
	if (!place_selected(place.netns, place.ifindex))
		return;
#endif
	if (protocol == bpf_htons(ETH_P_IP) && linear_bytes >= 20 + 16) {
		struct flow4_words flow = {.place = place.netns | (__u64)place.ifindex << 32};

		if (read_flow4(typed, l3, direction, &flow, &tcp_flags)) {
			count_ipv4(&flow, bytes, tcp_flags);
			return;
		}
	}
	struct flow_key key = {
		.netns = place.netns, .ifindex = place.ifindex, .direction = direction};

	key.tuple.ethertype = bpf_ntohs(protocol);
	tcp_flags = read_tuple(typed, l3, linear_bytes, &key.tuple, NULL);
	count_any(&key, bytes, tcp_flags);
}

/*
 * Both ends of a packet between pods are seen where it is sent: at the sender's own device, and at
 * the node's end of the receiver's pair, where it is the receiver's ingress. So each packet runs
 * this once per pod, and what the pods receive needs no hook of its own.
 */
static __always_inline void flow_xmit(int typed, const struct sk_buff *skb,
				      const struct net_device *dev, const void *l3)
{
	const struct net *net = LOAD(dev->nd_net.net);
	struct place place = {.netns = LOAD(net->ns.inum), .ifindex = LOAD(dev->ifindex)};
	__u32 direction = DIRECTION_EGRESS;

	if (place.netns == NODE_NETNS) {
		if (!is_pair(dev, place.ifindex))
			return;
		direction = DIRECTION_INGRESS;
	} else if (LOAD(dev->flags) & IFF_LOOPBACK) {
		return;
	}
	/* skb->data is at the link header here: len counts it, bytes must not. */
	flow_packet(typed, skb, l3, LOAD(skb->len) - (__u32)((__u64)l3 - (__u64)LOAD(skb->data)),
		    place, direction);
}

/* What a pod receives by a device whose other end is not on the node: macvlan, a physical one. */
static __always_inline void flow_receive(int typed, const struct sk_buff *skb,
					 const struct net_device *dev)
{
	const struct net *net = LOAD(dev->nd_net.net);
	struct place place = {.netns = LOAD(net->ns.inum), .ifindex = LOAD(dev->ifindex)};

	if (place.netns == NODE_NETNS || !unpaired_places.lookup(&place))
		return;
	/* The network header is not set yet; data stands where it will be. */
	flow_packet(typed, skb, LOAD(skb->data), LOAD(skb->len), place, DIRECTION_INGRESS);
}

#endif
