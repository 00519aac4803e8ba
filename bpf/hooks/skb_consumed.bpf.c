/* SPDX-License-Identifier: GPL-2.0-only */
/* skb-consumed: tracepoint skb:consume_skb, a packet done with in good order. */

int skb_consumed(unsigned long long *ctx)
{
	const int typed = TYPED_skb_consumed;
	struct sk_buff *skb = (void *)ctx[0];
	struct sight sight = {.hop = HOP_CONSUMED};
	__u64 head = (__u64)LOAD(skb->head);

	/* Nearly every packet ends here: ask before looking closer. */
	if (!anything_followed() || !followed_at(head))
		return 0;
	see_in_socket(typed, skb, LOAD(skb->sk), &sight);
#ifdef CONSUMED_LOCATION
	sight.location = ctx[1];
#endif
	tell(typed, &sight);
	return 0;
}
