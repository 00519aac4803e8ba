/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What flows tell besides packets and bytes. It costs more than to count, and so is looked at now
 * and then, and where a TCP connection begins or ends.
 */
#if defined(WITH_FLOWS) && !defined(TRACER_FLOW_LOOK_H)
#define TRACER_FLOW_LOOK_H

#define IFF_LOOPBACK 8
#define TCP_FIN 0x01U
#define TCP_SYN 0x02U
#define TCP_RST 0x04U
#define TCP_TURNS (TCP_FIN | TCP_SYN | TCP_RST)
#define SOCK_STREAM_ 1
/* A CPU looks closer at a flow once a tick (jiffy) for so many packets, then once in so many ticks. */
#define YOUNG_PACKETS 16
#define LOOK_TICKS 16
#define SK_TIME_WAIT 6
#define SK_NEW_SYN_RECV 12

/* A packet where it is counted. */
struct crossing {
	const struct sk_buff *skb;
	int received; /* taken from a device, not handed to one; a constant of the hook */
	__u32 bytes; /* from the network header on */
	__u32 tcp; /* flags and window, as read_tuple() tells */
	__u32 direction;
	struct place place;
	struct flow_cpu *cpu;
};

/* Once more, for the few that look closer: nothing is kept for them. */
static __always_inline const void *network_header(int typed, const struct crossing *at)
{
	return at->received ? (void *)LOAD(at->skb->data)
			    : (void *)LOAD(at->skb->head) + LOAD(at->skb->network_header);
}

/* Read the clock. Whoever interrupts this and sees the new tick sees all that goes with it. */
static __always_inline __u64 look_at_clock(volatile struct flow_cpu *cpu, __u32 tick)
{
	__u64 now_ns = bpf_ktime_get_boot_ns();

	cpu->first_set = bpf_get_smp_processor_id() * 2 * FLOW_SETS;
	cpu->now_ns = now_ns;
	cpu->tick = tick;
	return now_ns;
}

static __always_inline struct flow_cpu *this_cpu(void)
{
	__u32 number = bpf_get_smp_processor_id();

	return flow_cpus.lookup(&number);
}

/* How many packets the one that is counted stands for. */
static __always_inline __u32 weight(const struct crossing *at)
{
#ifdef SAMPLE_FLOWS
	return at->cpu->sample_rate ?: 1;
#else
	return 1;
#endif
}

/* Whether this is a packet for which another one is counted. */
static __always_inline int is_skipped(void)
{
#ifdef SAMPLE_FLOWS
	struct flow_cpu *cpu = this_cpu();

	if (!cpu || cpu->sample_rate <= 1)
		return 0;
	if (cpu->skip) {
		cpu->skip -= 1;
		return 1;
	}
	/* On average one less than the rate; random, to follow no rhythm of the traffic. */
	cpu->skip = bpf_get_prandom_u32() % (2 * cpu->sample_rate - 1);
#endif
	return 0;
}

/* The flow of any packet, with addresses of 16 bytes. */
static __always_inline void read_key(int typed, struct crossing *at, struct flow_key *key)
{
	const void *l3 = network_header(typed, at);
	__u32 linear_bytes = LOAD(at->skb->tail) - (__u32)((__u64)l3 - (__u64)LOAD(at->skb->head));

	__builtin_memset(key, 0, sizeof(*key));
	key->netns = at->place.netns;
	key->ifindex = at->place.ifindex;
	key->direction = at->direction;
	key->tuple.ethertype = bpf_ntohs(LOAD(at->skb->protocol));
	at->tcp = read_tuple(typed, l3, linear_bytes, &key->tuple, NULL);
}

/* The differentiated services of an IP packet: six bits of the traffic class. */
static __always_inline __u8 read_dscp(int typed, const void *l3)
{
	__u64 word = 0;

	read_words(typed, &word, 1, l3);
	if ((word & 0xf0) == 0x40)
		return (word >> 8 & 0xff) >> 2;
	return (word & 0xf) << 2 | (word >> 8 & 0xff) >> 6;
}

/* Of the TCP socket that sends; 0 where there is none, or it has not measured one yet. */
static __always_inline __u32 smoothed_rtt_us(int typed, const struct sk_buff *skb)
{
	const struct sock *sk = LOAD(skb->sk);
	__u64 word = 0;
	__u8 state;

	if (!sk)
		return 0;
	state = LOAD(sk->__sk_common.skc_state);
	/* Neither is a full socket. */
	if (state == SK_TIME_WAIT || state == SK_NEW_SYN_RECV)
		return 0;
	if (LOAD(sk->sk_protocol) != IPPROTO_TCP || LOAD(sk->sk_type) != SOCK_STREAM_)
		return 0;
	read_words(typed, &word, 1, &((const struct tcp_sock *)sk)->srtt_us);
	return (__u32)word >> 3;
}

/* Put the connection of a packet into the map, if no CPU has done so since it changed. */
static __always_inline void tell_connection(int typed, const struct crossing *at, __u64 ends)
{
	const __u64 prime = 0x9e3779b97f4a7c15ULL;
	__u64 nfct = LOAD(at->skb->_nfct), state = 0, mark = 0, now, *told;
	const struct nf_conn *ct = (void *)(nfct & NFCT_PTRMASK);
	struct flow_connection_key key __attribute__((aligned(8))) = {};
	struct conntrack entry __attribute__((aligned(8))) = {};
	__u32 slot = nfct * prime >> 32 & (TOLD_SLOTS - 1);
	int first = 0;
	void *map;

	if (!ct)
		return;
	if (at->tcp)
		read_words(typed, &state, 1, &ct->proto.tcp.state);
#ifdef HAS_nf_conn__mark
	read_words(typed, &mark, 1, &ct->mark);
#endif
	/* The address of an entry that is gone is soon another's: so the packet's own ends too. */
	now = ((nfct ^ ends) * prime ^ (__u32)mark ^ (state & 0xff) << 32) +
	      ((__u64)at->cpu->generation << 40);
	told = told_connections.lookup(&slot);
	if (!told || *told == now)
		return;
	*told = now;
	map = flow_connections.lookup(&first);
	if (!map)
		return;
	read_conntrack(nfct, &entry);
	key.orig = entry.orig;
	key.zone = entry.zone;
	if (bpf_map_update_elem_(map, &key, &entry, BPF_ANY))
		lose(LOSS_FLOW_DETAILS);
}

/* Is it time to look closer, or does the packet open or end a connection? */
static __always_inline int is_due(struct flow_count *count, const struct crossing *at)
{
	__u32 ticks = at->cpu->tick - count->tick;

	if (!RARELY(ticks >= LOOK_TICKS || ticks && count->packets < YOUNG_PACKETS ||
		    at->tcp & TCP_TURNS))
		return 0;
	count->tick = at->cpu->tick;
	return 1;
}

/* Follow this packet across the node: the CPU's first in this tick. */
static __always_inline void begin_transit(const struct crossing *at, const void *head)
{
	struct flow_cpu *cpu = at->cpu;

	cpu->armed_tick = cpu->tick;
	cpu->armed_head = (__u64)head;
	cpu->armed_ns = bpf_ktime_get_boot_ns();
	cpu->armed_bytes = at->bytes;
}

/* `ends` is a hash of the flow's addresses and ports. */
static __always_inline void look_closer(int typed, struct flow_count *count,
					const struct crossing *at, __u64 ends)
{
	__u64 now_ns = look_at_clock(at->cpu, count->tick);
	__u32 rtt_us;

	if (!count->packets)
		count->first_ns = now_ns;
	count->dscp = read_dscp(typed, network_header(typed, at));
	if (at->tcp & TCP_SYN && !count->syn_ns)
		count->syn_ns = now_ns;
	if (at->tcp & TCP_RST)
		count->resets += weight(at);
	if (at->direction == DIRECTION_INGRESS) {
		/* What a pod takes from a device by itself has no entry of the node's any more. */
		if (!at->received)
			tell_connection(typed, at, ends);
		return;
	}
	rtt_us = at->tcp ? smoothed_rtt_us(typed, at->skb) : 0;
	if (rtt_us)
		count->rtt_us = rtt_us;
}

static __always_inline __u32 log2_32(__u32 value)
{
	__u32 log = 0;

#pragma unroll
	for (int bits = 16; bits; bits >>= 1) {
		if (value >> bits) {
			value >>= bits;
			log += bits;
		}
	}
	return log;
}

/*
 * The data that was armed is here: the packet has come to the other pod, or what it lay in has been
 * used again, as after the packet left the node.
 */
static __always_inline void end_transit(int typed, struct crossing *at)
{
	__u64 taken_ns = bpf_ktime_get_boot_ns() - at->cpu->armed_ns;
	struct flow_key key __attribute__((aligned(8)));
	struct flow_transit zero = {}, *transit;
	int slot = 0;
	__u32 bucket = taken_ns >> 32 ? TRANSIT_BUCKETS - 1 : log2_32(taken_ns);
	void *map = flow_transits.lookup(&slot);

	at->cpu->armed_head = 0;
	if (!map || at->direction != DIRECTION_INGRESS || at->bytes != at->cpu->armed_bytes)
		return;
	read_key(typed, at, &key);
	transit = bpf_map_lookup_elem_(map, &key);
	if (!transit) {
		bpf_map_update_elem_(map, &key, &zero, BPF_NOEXIST);
		transit = bpf_map_lookup_elem_(map, &key);
	}
	if (!transit) {
		lose(LOSS_FLOW_DETAILS);
		return;
	}
	__sync_fetch_and_add(&transit->sum_ns, taken_ns);
	__sync_fetch_and_add(&transit->buckets[bucket & (TRANSIT_BUCKETS - 1)], 1);
	if (taken_ns > transit->max_ns)
		transit->max_ns = taken_ns;
}

/* The flow that a TCP socket of a pod sends; 0 for other sockets. */
static __always_inline int socket_flow(int typed, const struct sock *sk, struct flow_key *key)
{
	const struct sock_common *common = &sk->__sk_common;
	const struct dst_entry *dst = READ(sk->sk_dst_cache);
	const struct net_device *dev = dst ? READ(dst->dev) : NULL;
	__u16 family = READ(common->skc_family);
	__be32 saddr = READ(common->skc_rcv_saddr), daddr = READ(common->skc_daddr);
	struct tuple *tuple = &key->tuple;

	key->netns = socket_netns(sk);
	key->direction = DIRECTION_EGRESS;
	if (key->netns == NODE_NETNS || dev && READ(dev->flags) & IFF_LOOPBACK)
		return 0;
	key->ifindex = dev ? READ(dev->ifindex) : 0;
	tuple->protocol = IPPROTO_TCP;
	tuple->sport = READ(common->skc_num);
	tuple->dport = bpf_ntohs(READ(common->skc_dport));
	if (family == AF_INET_) {
		tuple->ethertype = ETH_P_IP;
		mapped_address(tuple->saddr, &saddr);
		mapped_address(tuple->daddr, &daddr);
		return 1;
	}
#ifdef HAS_sock_common__skc_v6_daddr
	if (family != AF_INET6_)
		return 0;
	bpf_probe_read_kernel(tuple->saddr, ADDRESS_BYTES, &common->skc_v6_rcv_saddr);
	bpf_probe_read_kernel(tuple->daddr, ADDRESS_BYTES, &common->skc_v6_daddr);
	/* A socket for IPv6 that was connected to ::ffff:a.b.c.d sends IPv4. */
	tuple->ethertype = *(__u64 *)tuple->daddr == 0 && *(__u32 *)(tuple->daddr + 8) == 0xffff0000
				   ? ETH_P_IP
				   : ETH_P_IPV6;
	return 1;
#endif
	return 0;
}

#endif
