/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow plane: one count per packet and pod device. */
#if defined(WITH_FLOWS) && !defined(TRACER_FLOW_H)
#define TRACER_FLOW_H

#define IFF_LOOPBACK 8
#define KIND_VETH 0x68746576ULL /* "veth", as a little-endian number */
#define KIND_NETKIT 0x74696b74656eULL /* "netkit" */

/* The generation is full: keep the sums exact per pod end. */
static __always_inline void count_other(const struct flow_key *flow, __u32 bytes)
{
	struct flow_other_key key = {
		.netns = flow->netns, .ifindex = flow->ifindex, .direction = flow->direction};
	struct drop_count zero = {};
	struct drop_count *count = flow_other.lookup(&key);

	if (!count) {
		flow_other.update(&key, &zero);
		count = flow_other.lookup(&key);
	}
	if (!count) {
		lose(LOSS_FLOW_OTHER);
		return;
	}
	count->packets += 1;
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

static __always_inline struct flow_count *ipv4_counter(const struct flow_key *flow)
{
	struct flow4_key key = {
		.netns = flow->netns,
		.ifindex = flow->ifindex,
		.sport = flow->tuple.sport,
		.dport = flow->tuple.dport,
		.protocol = flow->tuple.protocol,
		.direction = flow->direction,
	};
	int slot = 0;
	void *map = flows4.lookup(&slot);

	__builtin_memcpy(key.saddr, flow->tuple.saddr + 12, 4);
	__builtin_memcpy(key.daddr, flow->tuple.daddr + 12, 4);
	return map ? flow_counter(map, &key) : NULL;
}

static __always_inline struct flow_count *other_counter(struct flow_key *flow)
{
	int slot = 0;
	void *map = flows.lookup(&slot);

	return map ? flow_counter(map, flow) : NULL;
}

static __always_inline void count_flow(struct flow_key *flow, __u32 bytes, __u8 tcp_flags)
{
	struct flow_count *count =
		flow->tuple.ethertype == ETH_P_IP ? ipv4_counter(flow) : other_counter(flow);
	__u64 tick = bpf_jiffies64();

	if (!count) {
		count_other(flow, bytes);
		return;
	}
	if (count->tick != tick) {
		/* A clock costs as much as the rest: once a tick is enough for the last time. */
		count->tick = tick;
		count->last_ns = bpf_ktime_get_boot_ns();
		if (!count->packets)
			count->first_ns = count->last_ns;
	}
	count->packets += 1;
	count->bytes += bytes;
	count->tcp_flags |= tcp_flags;
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
					__u32 bytes, struct flow_key *key)
{
	__u32 linear_bytes;
	__u8 tcp_flags;

#ifdef SELECT_PODS
	if (!place_selected(key->netns, key->ifindex))
		return;
#endif
	key->tuple.ethertype = bpf_ntohs(LOAD(skb->protocol));
	linear_bytes = LOAD(skb->tail) - (__u32)((__u64)l3 - (__u64)LOAD(skb->head));
	tcp_flags = read_tuple(l3, linear_bytes, &key->tuple, NULL);
	count_flow(key, bytes, tcp_flags);
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
	struct flow_key key = {.netns = LOAD(net->ns.inum), .ifindex = LOAD(dev->ifindex)};

	if (key.netns == NODE_NETNS) {
		if (!is_pair(dev, key.ifindex))
			return;
		key.direction = DIRECTION_INGRESS;
	} else {
		if (LOAD(dev->flags) & IFF_LOOPBACK)
			return;
		key.direction = DIRECTION_EGRESS;
	}
	/* skb->data is at the link header here: len counts it, bytes must not. */
	flow_packet(typed, skb, l3, LOAD(skb->len) - (__u32)((__u64)l3 - (__u64)LOAD(skb->data)),
		    &key);
}

/* What a pod receives by a device whose other end is not on the node: macvlan, a physical one. */
static __always_inline void flow_receive(int typed, const struct sk_buff *skb,
					 const struct net_device *dev)
{
	const struct net *net = LOAD(dev->nd_net.net);
	struct place place = {.netns = LOAD(net->ns.inum), .ifindex = LOAD(dev->ifindex)};
	struct flow_key key = {
		.netns = place.netns, .ifindex = place.ifindex, .direction = DIRECTION_INGRESS};

	if (place.netns == NODE_NETNS || !unpaired_places.lookup(&place))
		return;
	/* The network header is not set yet; data stands where it will be. */
	flow_packet(typed, skb, LOAD(skb->data), LOAD(skb->len), &key);
}

#endif
