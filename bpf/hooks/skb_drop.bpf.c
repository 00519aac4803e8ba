/* SPDX-License-Identifier: GPL-2.0-only */
/* skb-drop: tracepoint skb:kfree_skb, every packet freed because it died. */

#ifdef WITH_TRACE
/* The end of a followed packet, told as a hop and as a drop. */
static __always_inline void report_end(int typed, void *ctx, struct sk_buff *skb,
				       struct drop_event *event)
{
	struct sight sight = {.hop = HOP_DROPPED, .may_begin = MAY_BEGIN};

	see_in_socket(typed, skb, NULL, &sight);
	sight.netns = event->netns;
	sight.ifindex = event->ifindex;
	sight.location = event->location;
	sight.argument = event->reason;
	if (typed ? concerns(typed, &sight) : call_concerns_raw(&sight))
		tell(typed, &sight);
	if (!sight.packet_id)
		return;
	event->packet_id = sight.packet_id;
	event->time_ns = bpf_ktime_get_boot_ns();
	report_drop(ctx, skb, event);
}
#endif

int skb_drop(unsigned long long *ctx)
{
	const int typed = TYPED_skb_drop;
	struct sk_buff *skb = (void *)ctx[0];
	struct sock *rx_sk = NULL;
	struct drop_event *event;
	__u32 reason = 0;
	int slot = 0, selected;

#ifdef DROP_RX_SK
	rx_sk = (void *)ctx[3];
#endif
#ifdef DROP_REASON
	reason = ctx[2];
	/* Below are "not dropped yet" and, since 6.3, "consumed": not the same numbers everywhere. */
	if (reason < SKB_DROP_REASON_NOT_SPECIFIED)
		return 0;
#endif
	event = scratch.lookup(&slot);
	if (!event || !locate(typed, skb, rx_sk, event))
		return 0;
	event->location = ctx[1];
	event->reason = reason;
	capture(typed, skb, event);
	selected = attribute(skb, event);
#ifdef WITH_TRACE
	report_end(typed, ctx, skb, event);
	return 0;
#endif
	if (!drop_selected(event, selected))
		return 0;
	event->time_ns = bpf_ktime_get_boot_ns();
#ifdef WITH_DROP_EVENTS
	event->packet_id = 0;
	report_drop(ctx, skb, event);
#endif
#ifdef WITH_FLOWS
	count_flow_drop(skb, event);
#endif
	return 0;
}
