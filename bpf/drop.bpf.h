/* SPDX-License-Identifier: GPL-2.0-only */
/* The drop of a packet: where it was, what it was, whose it was, and how it is told and counted. */
#ifndef TRACER_DROP_H
#define TRACER_DROP_H

#define AF_INET_ 2
#define AF_INET6_ 10
#define AF_PACKET_ 17

/* Netlink and unix sockets carry their messages in skbs too: those are not packets. */
static __always_inline int is_packet(const struct sock *sk, int has_device)
{
	__u16 family = sk ? READ(sk->__sk_common.skc_family) : 0;
	if (!sk)
		return has_device;
	return family == AF_INET_ || family == AF_INET6_ || family == AF_PACKET_ || has_device;
}

/* Copy the packet from its network header on behind its Ethernet header, true or made up. */
static __always_inline void capture(int typed, const struct sk_buff *skb, struct drop_event *event)
{
	__u8 *head = LOAD(skb->head);
	__u32 mac = LOAD(skb->mac_header);
	__u32 network = LOAD(skb->network_header);
	__u32 data = LOAD(skb->data) - head;
	__u32 end = LOAD(skb->tail);
	__be16 protocol = LOAD(skb->protocol);
	__u32 l3_bytes;

	if (!network)
		network = data;
	event->bytes = LOAD(skb->len) + data - network;
	if (mac != MAC_HEADER_UNSET && mac + L2_BYTES <= network) {
		event->has_mac = 1;
		bpf_probe_read_kernel(event->packet, L2_BYTES, head + mac);
	} else {
		event->has_mac = 0;
		__builtin_memset(event->packet, 0, L2_BYTES);
	}
	/* A VLAN tag in the frame, an encapsulation: what follows here is what protocol says. */
	event->packet[12] = protocol & 0xff;
	event->packet[13] = protocol >> 8;
	l3_bytes = end > network ? end - network : 0;
	l3_bytes = copy_packet(event->packet + L2_BYTES, PACKET_BYTES - L2_BYTES, head + network,
			       l3_bytes);
	event->captured_bytes = L2_BYTES + l3_bytes;
	__builtin_memset(&event->tuple, 0, sizeof(event->tuple));
	event->tuple.ethertype = bpf_ntohs(protocol);
	read_tuple(typed, head + network, l3_bytes, &event->tuple, NULL);
}

/* Whose packet is it, if `tuple` tells? Returns 1 when that pod is selected. */
static __always_inline int find_pod(const struct tuple *tuple, struct drop_event *event)
{
	__u32 source = pod_address(tuple->saddr), destination = pod_address(tuple->daddr);

	if (source) {
		event->direction = DIRECTION_EGRESS;
		__builtin_memcpy(event->pod_address, tuple->saddr, ADDRESS_BYTES);
	} else if (destination) {
		event->direction = DIRECTION_INGRESS;
		__builtin_memcpy(event->pod_address, tuple->daddr, ADDRESS_BYTES);
	}
	return source == POD_SELECTED || destination == POD_SELECTED;
}

/* By the packet's own addresses, else by those its connection had before NAT. */
static __always_inline int attribute(const struct sk_buff *skb, struct drop_event *event)
{
	int selected;

	event->direction = DIRECTION_UNKNOWN;
	__builtin_memset(event->pod_address, 0, ADDRESS_BYTES);
	__builtin_memset(&event->ct, 0, sizeof(event->ct));
	read_conntrack(READ(skb->_nfct), &event->ct);
	selected = find_pod(&event->tuple, event);
	if (event->direction || !event->ct.present)
		return selected;
	selected = find_pod(&event->ct.orig, event);
	if (event->direction && event->ct.info >= IP_CT_IS_REPLY)
		event->direction = DIRECTION_EGRESS + DIRECTION_INGRESS - event->direction;
	return selected;
}

static __always_inline int drop_selected(const struct drop_event *event, int pod_selected)
{
#ifdef SELECT_NETNS
	if (event->netns != SELECT_NETNS)
		return 0;
#endif
#ifdef SELECT_INTERFACE
	if (!name_is(event->ifname, SELECT_INTERFACE))
		return 0;
#endif
#ifdef SELECT_REASONS
	__u32 reason = event->reason;
	if (!selected_reasons.lookup(&reason))
		return 0;
#endif
#ifdef SELECT_PODS
	if (!pod_selected && !place_selected(event->netns, event->ifindex) &&
	    !selected_cgroups.lookup(&event->cgroup_id))
		return 0;
#endif
#ifdef SELECT_PCAP
	if (!pcap_match(event->packet, event->captured_bytes, event->bytes + L2_BYTES))
		return 0;
#endif
	return 1;
}

/* Fill in where the packet was; returns 0 when it is no packet of a network. */
static __always_inline int locate(int typed, const struct sk_buff *skb, const struct sock *rx_sk,
				  struct drop_event *event)
{
	struct net_device *dev = LOAD(skb->dev);
	struct sock *sk = rx_sk ?: LOAD(skb->sk);
	struct place place = {}, route = route_place(skb);
	int has_device = device_place(dev, &place);
	__u32 iif = LOAD(skb->skb_iif);

	if (!is_packet(sk, has_device))
		return 0;
	__builtin_memset(event->ifname, 0, IFNAME_BYTES);
	/* A receiving socket is sure; skb->dev may be stale by then. A sender's socket is not
	 * the place: the packet keeps it after it left the sender's namespace. */
	if (rx_sk && (!has_device || place.netns != socket_netns(rx_sk))) {
		place.netns = socket_netns(rx_sk);
		place.ifindex = iif;
	} else if (has_device) {
		bpf_probe_read_kernel_str(event->ifname, IFNAME_BYTES, dev->name);
	} else {
		/* Neither device nor receiver is left. */
		place.netns = route.netns ?: socket_netns(sk);
		place.ifindex = iif;
	}
	event->netns = place.netns;
	event->ifindex = place.ifindex;
	event->iif = iif;
	event->out_ifindex = route.netns == place.netns ? route.ifindex : 0;
	event->cgroup_id = socket_cgroup(sk);
	return 1;
}

#if defined(WITH_DROP_EVENTS) || defined(WITH_TRACE)
/* Through the ring buffer, with the stack; whether it had room. */
static __always_inline int show_drop(void *ctx, const struct sk_buff *skb, struct drop_event *event)
{
	event->skb = (__u64)skb;
	event->mark = READ(skb->mark);
	__builtin_memset(event->stack, 0, sizeof(event->stack));
	bpf_get_stack(ctx, event->stack, sizeof(event->stack), 0);
	if (!drop_events.ringbuf_output(event, sizeof(*event), 0))
		return 1;
	lose(LOSS_DROP_EVENTS);
	return 0;
}
#endif

#ifdef WITH_DROP_EVENTS
/* At most DROP_RATE events a second, reason and network namespace, so that a flood hides nothing
 * rare and no one else's. Two CPUs may open a window at once: the limit is soft, counts are not. */
static __always_inline int may_show(const struct drop_event *event)
{
	struct drop_limit_key key = {.reason = event->reason, .netns = event->netns};
	struct drop_limit first = {.window = event->time_ns / 1000000000, .shown = 1};
	struct drop_limit *limit;

	if (!DROP_RATE)
		return 1;
	limit = drop_limits.lookup(&key);
	if (!limit) {
		drop_limits.update(&key, &first);
		return 1;
	}
	if (limit->window != first.window) {
		limit->window = first.window;
		limit->shown = 0;
	}
	if (limit->shown >= DROP_RATE)
		return 0;
	__sync_fetch_and_add(&limit->shown, 1);
	return 1;
}

/* What a drop is counted by, in a map: the stack has no room for it. */
struct drop_counting {
	struct drop_key key;
	struct drop_count zero;
};
BPF_PERCPU_ARRAY(drop_counting, struct drop_counting, 1);

static __always_inline struct drop_count *drop_counter(void *map, const struct drop_event *event)
{
	int slot = 0;
	struct drop_counting *by = drop_counting.lookup(&slot);
	struct drop_count *count;

	if (!by)
		return NULL;
	by->key.location = event->location;
	by->key.cgroup_id = event->netns == NODE_NETNS ? event->cgroup_id : 0;
	by->key.reason = event->reason;
	by->key.netns = event->netns;
	by->key.ifindex = event->ifindex;
	by->key.direction = event->direction;
	__builtin_memcpy(by->key.pod_address, event->pod_address, ADDRESS_BYTES);
	count = bpf_map_lookup_elem_(map, &by->key);
	if (count)
		return count;
	/* -EEXIST: another CPU was first. */
	bpf_map_update_elem_(map, &by->key, &by->zero, BPF_NOEXIST);
	return bpf_map_lookup_elem_(map, &by->key);
}

static __always_inline void report_drop(void *ctx, const struct sk_buff *skb,
					struct drop_event *event)
{
	struct drop_count *count;
	int slot = 0;
	void *map = drop_counts.lookup(&slot);

	if (!map)
		return; /* it has not begun */
	count = drop_counter(map, event);
	if (!count) {
		lose(LOSS_DROP_COUNTS);
		return;
	}
	count->packets += 1;
	count->bytes += event->bytes;
	if (may_show(event) && show_drop(ctx, skb, event))
		count->shown += 1;
}
#endif

#ifdef WITH_FLOWS
/* The node's entry of what died, which may never come to a pod: its flow gets its number by it. */
static __always_inline void tell_dead_connection(const struct drop_event *event)
{
	struct flow_connection_key key __attribute__((aligned(8))) = {};
	int slot = 0;
	void *map;

	if (event->netns != NODE_NETNS || !event->ct.present)
		return;
	map = flow_connections.lookup(&slot);
	if (!map)
		return;
	key.orig = event->ct.orig;
	key.zone = event->ct.zone;
	if (bpf_map_update_elem_(map, &key, (void *)&event->ct, BPF_ANY))
		lose(LOSS_FLOW_DETAILS);
}

static __always_inline void count_flow_drop(const struct sk_buff *skb,
					    const struct drop_event *event)
{
	struct flow_drop_key key = {};
	struct drop_count first = {.packets = 1, .bytes = event->bytes};
	struct drop_count *count;
	int slot = 0;
	void *map = flow_drops.lookup(&slot);

	if (!map)
		return;
	key.flow.netns = event->netns;
	key.flow.ifindex = event->ifindex;
	key.flow.direction = event->direction;
	key.flow.tuple = event->tuple;
	read_sender_tuple(READ(skb->_nfct), &key.flow.tuple);
	key.reason = event->reason;
	key.location = event->location;
	count = bpf_map_lookup_elem_(map, &key);
	if (!count) {
		/* First: who reads the drop looks for the entry afterwards. */
		tell_dead_connection(event);
		if (bpf_map_update_elem_(map, &key, &first, BPF_NOEXIST) == 0)
			return;
		count = bpf_map_lookup_elem_(map, &key);
	}
	if (!count) {
		lose(LOSS_FLOW_DROPS);
		return;
	}
	count->packets += 1;
	count->bytes += event->bytes;
}
#endif

#endif
