/* SPDX-License-Identifier: GPL-2.0-only */
/* What pods are told by name servers, sent to user space as it stands in the packet. */
#if defined(WITH_DNS) && !defined(TRACER_DNS_H)
#define TRACER_DNS_H

#define DNS_PORT 53
#define UDP_HEADER_BYTES 8
#define DNS_QR 0x80 /* an answer */
#define DNS_OPCODE 0x78
#define DNS_RCODE 0x0f
#define RING_NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP: user space looks when it is time */

/*
 * Tell of the datagram whose UDP header is at `udp`, if it answers a query with something;
 * `linear_bytes` of it are at hand from there on.
 */
static __always_inline void tell_dns(const void *udp, __u32 linear_bytes, struct place place)
{
	/* UDP: ports, length, checksum. DNS: id, flags, questions, answers, … (RFC 1035 4.1.1) */
	__u8 header[16] __attribute__((aligned(8)));
	struct dns_answer *answer;
	__u32 bytes;

	if (linear_bytes < sizeof(header) || bpf_probe_read_kernel(header, sizeof(header), udp))
		return;
	bytes = header[4] << 8 | header[5];
	if (bytes < sizeof(header))
		return;
	bytes -= UDP_HEADER_BYTES;
	linear_bytes -= UDP_HEADER_BYTES;
	if ((header[10] & (DNS_QR | DNS_OPCODE)) != DNS_QR || header[11] & DNS_RCODE ||
	    !(header[14] | header[15]))
		return;
	answer = dns_answers.ringbuf_reserve(sizeof(*answer));
	if (!answer) {
		lose(LOSS_DNS_ANSWERS);
		return;
	}
	answer->time_ns = bpf_ktime_get_boot_ns();
	answer->netns = place.netns;
	answer->ifindex = place.ifindex;
	answer->message_bytes = bytes;
	answer->captured_bytes =
		copy_packet(answer->message, sizeof(answer->message), udp + UDP_HEADER_BYTES,
			    bytes < linear_bytes ? bytes : linear_bytes);
	dns_answers.ringbuf_submit(answer, RING_NO_WAKEUP);
}

/* The same for a packet whose key has been read. */
static __always_inline void see_dns4(const struct flow4_words *flow, const void *l3,
				     __u32 linear_bytes, struct place place)
{
	__u8 protocol = flow->sender >> 8;
	__u16 sport = flow->receiver >> 32;

	if (protocol == IPPROTO_UDP && sport == bpf_htons(DNS_PORT))
		tell_dns(l3 + 20, linear_bytes - 20, place);
}

/* The same for what is not plain IPv4. */
static __always_inline void see_dns(const struct tuple *tuple, const void *l3, __u32 linear_bytes,
				    struct place place)
{
	__u8 first = 0, next = 0;
	__u32 offset;

	if (tuple->protocol != IPPROTO_UDP || tuple->sport != DNS_PORT)
		return;
	bpf_probe_read_kernel(&first, sizeof(first), l3);
	offset = (first & 0xf) * 4;
	if (tuple->ethertype == ETH_P_IPV6) {
		bpf_probe_read_kernel(&next, sizeof(next), l3 + 6);
		offset = skip_extensions(l3, linear_bytes, &next, NULL);
	}
	if (offset && offset < linear_bytes)
		tell_dns(l3 + offset, linear_bytes - offset, place);
}

#endif
