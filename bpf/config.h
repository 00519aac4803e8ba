/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What user space settles at compile time (-D): the program is made for this kernel, this
 * command and this selection, so that nothing is asked per packet that is known before.
 *
 *   NODE_NETNS          inode of the node's own network namespace (required)
 *   TYPED_<hook>        1: the hook is a typed tracepoint, fields are plain loads
 *   WAY_<kind>          a hook is attached in this way; asked for where others take other arguments
 *   WITH_DROP_EVENTS    send drops through the ring buffer and count them by place
 *   WITH_FLOWS          count flows at pod devices, and drops by flow
 *   WITH_DNS            send what name servers answer pods through a ring buffer (needs WITH_FLOWS)
 *   SAMPLE_FLOWS        count one packet of as many as user space says, to keep a budget
 *   WITH_TRACE          follow selected packets from hop to hop, and send their drops
 *   SAMPLE              follow one packet of as many as user space says, none while that is 0
 *   FIRST_PACKETS       follow so many packets of each flow
 *   SELECT_TCP_FLAGS    follow TCP packets with one of these flags
 *   SK_BUFF_BTF_ID      the type window() gives bpf_rdonly_cast, where the kernel has it
 *   DROP_REASON         kfree_skb tells a reason (since 5.17, c504e5c2f964)
 *   RETRANSMIT_ERROR    tcp_retransmit_skb tells those that failed too (since 6.16)
 *   DROP_RX_SK          kfree_skb tells the receiving socket (since 6.11, ba8de796baf4)
 *   SELECT_PODS         only packets of the places, addresses and cgroups in the maps selected_*
 *   SELECT_NETNS        only packets that die in this network namespace
 *   SELECT_INTERFACE    only packets whose device has this name (as two 64-bit numbers)
 *   SELECT_REASONS      only the reasons in the map selected_reasons
 *   SELECT_PCAP         only packets that pcap_match() accepts
 *   SELECT_INNER        ...of a tunnel's packet: those whose inside it accepts
 *   SNAPLEN             bytes of each hop's packet that are told, a multiple of 8
 */
#ifndef TRACER_CONFIG_H
#define TRACER_CONFIG_H

#ifndef RING_PAGES
#define RING_PAGES 1024 /* 4 MiB: about 7,000 drops */
#endif
#ifndef HOP_RING_PAGES
#define HOP_RING_PAGES 4096 /* 16 MiB: about 50,000 hops */
#endif
#ifndef DNS_RING_PAGES
#define DNS_RING_PAGES 256 /* 1 MiB: about 1,900 answers */
#endif
#ifndef MAX_FOLLOWED
#define MAX_FOLLOWED 65536 /* packets under way at once */
#endif
#ifndef MAX_RUNNING_HOOKS
#define MAX_RUNNING_HOOKS 16384 /* followed packets in netfilter hooks at once */
#endif
#ifndef DROP_KEYS
#define DROP_KEYS 4096 /* pods x reasons x locations in one tick; one value per CPU each */
#endif
#ifndef DROP_RATE
#define DROP_RATE 1000 /* drops shown a second, reason and netns; 0: all */
#endif
#ifndef CPUS
#define CPUS 1 /* those that the machine may ever have */
#endif
#ifndef MAX_FLOWS
#define MAX_FLOWS 65536 /* IPv4 flows per interval */
#endif
#define MAX_OTHER_FLOWS (MAX_FLOWS / 2) /* IPv6 and others */
/* Who sends and who receives may be on a CPU each, and both count the flow. */
#define COUNTED_BY (CPUS > 1 ? 2 : 1)
#ifndef MAX_FLOW_DROPS
#define MAX_FLOW_DROPS (MAX_FLOWS / 4)
#endif
/* Of two directions and more each, and of what died. */
#define MAX_FLOW_CONNECTIONS (MAX_FLOWS / 2 + MAX_FLOW_DROPS)
#define MAX_FLOW_TRANSITS (MAX_FLOWS / 16) /* only those that had a packet timed */
#ifndef MAX_FLOW_OTHER
#define MAX_FLOW_OTHER 4096 /* pod devices x directions in one interval */
#endif
#define DEVICE_SLOTS 4096
#define HEAD_SLOTS 16384 /* hashes of followed packets' addresses; a power of two */
#define TRANSLATED_SLOTS (1 << 18) /* hashes of what NAT changes; a power of two */
#define ANSWER_SLOTS 1024 /* flows of which each CPU knows an answer; a power of two */
#define TOLD_SLOTS (1 << 18) /* hashes of connections that are told; a power of two */
#define FLOW_SETS 1024 /* hashes of IPv4 flows that each CPU keeps at hand; a power of two */
#ifndef MAX_PLACES
#define MAX_PLACES 16384
#endif

#endif
