/* SPDX-License-Identifier: GPL-2.0-only */
/* Every map, and the few functions that keep them. */
#ifndef TRACER_MAPS_H
#define TRACER_MAPS_H

BPF_PERCPU_ARRAY(losses, __u64, LOSS_SOURCES);

static __always_inline void lose(int source)
{
	__u64 *count = losses.lookup(&source);
	if (count)
		*count += 1;
}

/*
 * What user space knows of pods, kept up to date as they come and go: 1, or 2 when the pod is
 * selected. Places are whole namespaces (ifindex 0) and the pods' devices on the node.
 */
BPF_TABLE("hash", struct place, __u32, pod_places, MAX_PLACES);
struct address {
	__u8 bytes[ADDRESS_BYTES];
};
BPF_TABLE("hash", struct address, __u32, pod_addresses, MAX_PLACES);
BPF_TABLE("hash", __u32, __u32, selected_reasons, 256);
/* cgroups of selected host-network pods. */
BPF_TABLE("hash", __u64, __u32, selected_cgroups, MAX_PLACES);

/* The drop being looked at: larger than a BPF stack. */
BPF_PERCPU_ARRAY(scratch, struct drop_event, 1);

#if defined(WITH_DROP_EVENTS) || defined(WITH_TRACE)
BPF_RINGBUF_OUTPUT(drop_events, RING_PAGES);
#endif

#ifdef WITH_DROP_EVENTS
/* Two generations, as of the flow plane's maps: what is gone from the node fills none for good. */
BPF_TABLE("percpu_hash", struct drop_key, struct drop_count, drop_counts_0, DROP_KEYS);
BPF_TABLE("percpu_hash", struct drop_key, struct drop_count, drop_counts_1, DROP_KEYS);
BPF_ARRAY_OF_MAPS(drop_counts, "drop_counts_0", 1);
BPF_TABLE("lru_hash", struct drop_limit_key, struct drop_limit, drop_limits, 4096);
#endif

#ifdef WITH_TRACE
BPF_RINGBUF_OUTPUT(hops, HOP_RING_PAGES);
/* Packets followed, by the address of their data. */
struct followed {
	__u64 packet_id;
	__u32 signature;
	__u32 pad;
};
BPF_TABLE("lru_hash", __u64, struct followed, followed_packets, MAX_FOLLOWED);
/* At least as many as have an address of each hash: where that is 0, none is looked up. */
struct head_counts {
	__u32 packets[HEAD_SLOTS];
};
BPF_ARRAY(head_counts, struct head_counts, 1);
BPF_PERCPU_ARRAY(packet_ids, __u64, 1);
/* The followed packet told last on a CPU. */
struct last_told {
	__u64 packet_id;
	__u64 time_ns;
	__u64 skb;
	__u64 head;
	__u32 netns;
	__u32 ifindex;
	__u32 bytes;
	__u32 signature;
	__u32 unrouted; /* a routing decision comes next */
	__u32 pad;
	struct tuple tuple;
};
BPF_PERCPU_ARRAY(last_packets, struct last_told, 1);
BPF_ARRAY(follow_until, __u64, 1); /* jiffies64 */
/* What is asked of a flow, when the answer no may be kept: it saves look-ups for each packet. */
enum question {
	IS_SELECTED = 0, /* may it be a selected pod's? */
	IS_TRANSLATED = 1, /* does it look otherwise beyond NAT? */
	QUESTIONS = 2,
};
/* By question: changes when an answer may. User space counts its own in the upper half. */
BPF_ARRAY(selection_version, __u64, QUESTIONS);
/* Flows of which the answer is no, where `version` is still the question's. */
struct answered_flow {
	struct flow4_words flow;
	__u64 version;
};
#if defined(SELECT_PODS) || defined(SELECT_PCAP)
BPF_PERCPU_ARRAY(answered_flows, struct answered_flow, QUESTIONS *ANSWER_SLOTS);
#endif
#ifdef SELECT_PODS
/* Connections of the selected pods, as either side's sender writes them. */
BPF_TABLE("lru_hash", struct tuple, __u32, followed_flows, MAX_FOLLOWED);
#endif
#ifdef SELECT_PCAP
/* Of followed connections with NAT: what the sender writes, and how that looks beyond it. */
BPF_TABLE("lru_hash", struct tuple, struct tuple, translations, MAX_FOLLOWED);
/* 1 at the hash of each of them, for good: where it is 0, nothing is known, and nothing looked up. */
struct translated_hashes {
	__u8 known[TRANSLATED_SLOTS];
};
BPF_ARRAY(translated_hashes, struct translated_hashes, 1);
/* The Ethernet frame that the filter is asked about. */
struct frame {
	__u16 pad; /* the packet behind the Ethernet header is aligned */
	__u8 packet[PACKET_BYTES];
} __attribute__((aligned(8)));
BPF_PERCPU_ARRAY(frames, struct frame, 1);
#endif
#ifdef WAY_kretprobe
/*
 * What nf_hook_slow was called with, for its return, of followed packets: by the end of its caller's
 * stack. No two that run at once have the same, whatever interrupts them.
 */
struct running_hook {
	struct sk_buff *skb;
	struct nf_hook_state *state;
};
BPF_TABLE("lru_hash", __u64, struct running_hook, running_hooks, MAX_RUNNING_HOOKS);
#endif
#ifdef SAMPLE
BPF_ARRAY(sample_rates, __u32, 1);
#endif
#ifdef FIRST_PACKETS
BPF_TABLE("lru_hash", struct tuple, __u32, flow_firsts, MAX_FOLLOWED);
BPF_PERCPU_ARRAY(first_tuples, struct tuple, 1); /* the stack has no room for it */
#endif
#endif

#ifdef WITH_FLOWS
/*
 * Two generations of every flow map: programs fill the one that the outer map names, user
 * space reads and empties the other. Writing to an outer map waits for the programs that
 * still run (maybe_wait_bpf_programs, since 4.20), so nothing is counted behind the reader. A flow's
 * key has the CPU: a per-CPU hash keeps, and has to read, a value for every CPU there is, of which
 * nearly all are empty.
 */
BPF_TABLE("hash", struct flow_key, struct flow_count, flows_0, COUNTED_BY *MAX_OTHER_FLOWS);
BPF_TABLE("hash", struct flow_key, struct flow_count, flows_1, COUNTED_BY *MAX_OTHER_FLOWS);
BPF_ARRAY_OF_MAPS(flows, "flows_0", 1);
BPF_TABLE("hash", struct flow4_key, struct flow_count, flows4_0, COUNTED_BY *MAX_FLOWS);
BPF_TABLE("hash", struct flow4_key, struct flow_count, flows4_1, COUNTED_BY *MAX_FLOWS);
BPF_ARRAY_OF_MAPS(flows4, "flows4_0", 1);
BPF_TABLE("percpu_hash", struct flow_drop_key, struct drop_count, flow_drops_0, MAX_FLOW_DROPS);
BPF_TABLE("percpu_hash", struct flow_drop_key, struct drop_count, flow_drops_1, MAX_FLOW_DROPS);
BPF_ARRAY_OF_MAPS(flow_drops, "flow_drops_0", 1);
/*
 * In front of the IPv4 map: each CPU's recent flows, two generations of FLOW_SETS. A flow that
 * needs the place of another pushes that one's counts into the map. Arrays by CPU, because a
 * per-CPU one costs two cache lines more to find anything in, and because what can be mapped into
 * memory begins with a cache line.
 */
BPF_F_TABLE("array", __u32, struct flow_set, flow_cache, CPUS * 2 * FLOW_SETS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct flow_cpu, flow_cpus, CPUS, BPF_F_MMAPABLE);
/* Connections of the flows, and whether one is told as it is now. */
BPF_TABLE("hash", struct flow_connection_key, struct conntrack, flow_connections_0,
	  MAX_FLOW_CONNECTIONS);
BPF_TABLE("hash", struct flow_connection_key, struct conntrack, flow_connections_1,
	  MAX_FLOW_CONNECTIONS);
BPF_ARRAY_OF_MAPS(flow_connections, "flow_connections_0", 1);
BPF_ARRAY(told_connections, __u64, TOLD_SLOTS);
BPF_TABLE("hash", struct flow_key, struct flow_transit, flow_transits_0, MAX_FLOW_TRANSITS);
BPF_TABLE("hash", struct flow_key, struct flow_transit, flow_transits_1, MAX_FLOW_TRANSITS);
BPF_ARRAY_OF_MAPS(flow_transits, "flow_transits_0", 1);
/* What is_pair() found out about the node's devices. */
struct device_kind {
	__u32 ifindex;
	__u32 pair;
};
BPF_ARRAY(device_kinds, struct device_kind, DEVICE_SLOTS);
/* Devices in other namespaces whose packets do not come by a pair from the node. */
BPF_TABLE("hash", struct place, __u32, unpaired_places, MAX_FLOW_OTHER);
BPF_TABLE("percpu_hash", struct flow_other_key, struct drop_count, flow_other_0, MAX_FLOW_OTHER);
BPF_TABLE("percpu_hash", struct flow_other_key, struct drop_count, flow_other_1, MAX_FLOW_OTHER);
BPF_ARRAY_OF_MAPS(flow_other, "flow_other_0", 1);
#endif

#ifdef WITH_DNS
BPF_RINGBUF_OUTPUT(dns_answers, DNS_RING_PAGES);
#endif

#endif
