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
	count->tcp_flags |= tcp_flags;
}

/* Move what a cache slot holds into the map. */
static __always_inline void flush_slot(struct cached_flow *cached)
{
	struct flow_other_key other = {.netns = cached->key.netns,
				       .ifindex = cached->key.ifindex,
				       .direction = cached->key.direction};
	struct flow4_key key = cached->key;
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

/* In the pieces the key was written in: reading it in larger ones would wait for the writes. */
static __always_inline int same_flow(const struct flow4_key *one, const struct flow4_key *other)
{
	const __u32 *a = (void *)one, *b = (void *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] &&
	       one->sport == other->sport && one->dport == other->dport &&
	       one->protocol == other->protocol && one->direction == other->direction;
}

static __always_inline __u32 flow_slot(const struct flow4_key *key)
{
	const __u32 *words = (void *)key;
	__u64 hash = words[0] ^ words[1] ^ (__u64)words[2] << 16 ^ (__u64)words[3] << 32;

	hash ^= (__u64)key->sport << 8 ^ (__u64)key->dport << 24 ^ key->protocol ^
		(__u64)key->direction << 60;
	return (hash * 0x9e3779b97f4a7c15ULL) >> 40 & (FLOW_SLOTS - 1);
}

/* Most packets belong to a flow that this CPU has just counted: no hash table for those. */
static __always_inline void count_ipv4(const struct flow4_key *key, __u32 bytes, __u8 tcp_flags)
{
	struct flow_count fresh = {};
	struct cached_flow *cached;
	__u32 slot = 0, *generation = flow_generation.lookup(&slot);

	slot = flow_slot(key);
	if (generation && *generation)
		slot += FLOW_SLOTS;
	cached = flow_cache.lookup(&slot);
	if (!cached)
		return;
	if (!same_flow(&cached->key, key)) {
		if (cached->count.packets)
			flush_slot(cached);
		cached->key = *key;
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

/*
 * The key of an IPv4 packet without options that is no fragment, straight from its headers: where
 * the kernel lets us see them as structs (bpf_rdonly_cast), by plain loads that read 0 on a fault.
 */
static __always_inline int read_flow4(int typed, void *l3, struct flow4_key *key, __u8 *tcp_flags)
{
	__u8 header[20 + 16];
	void *ip = header, *l4 = header + 20;

#ifdef IPHDR_BTF_ID
	if (typed) {
		ip = bpf_rdonly_cast_(l3, IPHDR_BTF_ID);
		l4 = bpf_rdonly_cast_(l3 + 20, TCPHDR_BTF_ID);
	} else
#endif
		if (bpf_probe_read_kernel(header, sizeof(header), l3))
		return 0;
	if (*(__u8 *)ip != 0x45 || *(__u16 *)(ip + 6) & bpf_htons(IPV4_FRAGMENT_OFFSET))
		return 0;
	key->protocol = *(__u8 *)(ip + 9);
	*(__u32 *)key->saddr = *(__u32 *)(ip + 12);
	*(__u32 *)key->daddr = *(__u32 *)(ip + 16);
	if (has_ports(key->protocol)) {
		key->sport = bpf_ntohs(*(__u16 *)l4);
		key->dport = bpf_ntohs(*(__u16 *)(l4 + 2));
	} else if (key->protocol == IPPROTO_ICMP) {
		key->sport = *(__u16 *)l4 & 0xff;
		key->dport = *(__u16 *)l4 >> 8;
	}
	*tcp_flags = key->protocol == IPPROTO_TCP ? *(__u16 *)(l4 + 12) >> 8 : 0;
	return 1;
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
	struct flow4_key key4 = {
		.netns = key->netns, .ifindex = key->ifindex, .direction = key->direction};
	__u32 linear_bytes;
	__u8 tcp_flags = 0;

#ifdef SELECT_PODS
	if (!place_selected(key->netns, key->ifindex))
		return;
#endif
	key->tuple.ethertype = bpf_ntohs(LOAD(skb->protocol));
	linear_bytes = LOAD(skb->tail) - (__u32)((__u64)l3 - (__u64)LOAD(skb->head));
	if (key->tuple.ethertype == ETH_P_IP && linear_bytes >= 20 + 16 &&
	    read_flow4(typed, (void *)l3, &key4, &tcp_flags)) {
		count_ipv4(&key4, bytes, tcp_flags);
		return;
	}
	tcp_flags = read_tuple(l3, linear_bytes, &key->tuple, NULL);
	count_any(key, bytes, tcp_flags);
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
