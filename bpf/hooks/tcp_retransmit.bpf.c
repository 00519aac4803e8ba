/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tcp-retransmit: tracepoint tcp:tcp_retransmit_skb. The skb is the one in the retransmit queue: it
 * has no headers, but shares its data with the one that was sent; what is sent now is a new packet.
 */

#ifdef WITH_TRACE
static __always_inline void tell_retransmit(int typed, const struct sock *sk,
					    const struct sk_buff *skb)
{
	__u64 head = (__u64)LOAD(skb->head);
	struct followed *sent = anything_followed() ? followed_at(head) : NULL;
	struct hop_event *event;

	if (!sent)
		return;
	event = new_hop();
	if (!event)
		return;
	event->packet_id = sent->packet_id;
	event->signature = sent->signature;
	event->hop = HOP_RETRANSMIT;
	event->skb = (__u64)skb;
	event->head = head;
	event->netns = socket_netns(sk);
	event->bytes = LOAD(skb->len);
	hops.ringbuf_submit(event, 0);
}
#endif

int tcp_retransmit(unsigned long long *ctx)
{
	const int typed = TYPED_tcp_retransmit;
	const struct sock *sk = (void *)ctx[0];

#ifdef WITH_TRACE
	tell_retransmit(typed, sk, (void *)ctx[1]);
#endif
#ifdef WITH_FLOWS
#ifdef RETRANSMIT_ERROR
	if ((int)ctx[2])
		return 0;
#endif
	count_retransmit(typed, sk);
#endif
	return 0;
}
