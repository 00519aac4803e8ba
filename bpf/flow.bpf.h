/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow plane: one count per packet and pod device. */
#ifndef TRACER_FLOW_H
#define TRACER_FLOW_H

#define IFF_LOOPBACK 8

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

static __always_inline void count_flow(struct flow_key *key, __u32 bytes, __u8 tcp_flags)
{
	__u64 now_ns = bpf_ktime_get_boot_ns();
	struct flow_count first = {.packets = 1,
				   .bytes = bytes,
				   .first_ns = now_ns,
				   .last_ns = now_ns,
				   .tcp_flags = tcp_flags};
	struct flow_count *count;
	int slot = 0;
	void *map = flows.lookup(&slot);

	if (!map)
		return;
	count = bpf_map_lookup_elem_(map, key);
	if (!count) {
		if (bpf_map_update_elem_(map, key, &first, BPF_NOEXIST) == 0)
			return;
		count = bpf_map_lookup_elem_(map, key);
	}
	if (!count) {
		count_other(key, bytes);
		return;
	}
	if (!count->packets)
		count->first_ns = now_ns; /* another CPU's packet made the entry */
	count->packets += 1;
	count->bytes += bytes;
	count->last_ns = now_ns;
	count->tcp_flags |= tcp_flags;
}

/* A packet of `bytes` from `l3` on crosses the device `dev` of a pod. */
static __always_inline void flow_packet(int typed, const struct sk_buff *skb,
					const struct net_device *dev, const void *l3, __u32 bytes,
					__u32 direction)
{
	struct flow_key key = {.direction = direction};
	const struct net *net = LOAD(dev->nd_net.net);
	__u32 linear_bytes;
	__u8 tcp_flags;

	key.netns = LOAD(net->ns.inum);
	if (key.netns == NODE_NETNS || LOAD(dev->flags) & IFF_LOOPBACK)
		return;
	key.ifindex = LOAD(dev->ifindex);
#ifdef SELECT_PODS
	if (!place_selected(key.netns, key.ifindex))
		return;
#endif
	key.tuple.ethertype = bpf_ntohs(LOAD(skb->protocol));
	linear_bytes = LOAD(skb->tail) - (__u32)((__u64)l3 - (__u64)LOAD(skb->head));
	tcp_flags = read_tuple(l3, linear_bytes, &key.tuple, NULL);
	count_flow(&key, bytes, tcp_flags);
}

#endif
