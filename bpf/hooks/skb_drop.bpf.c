/* SPDX-License-Identifier: GPL-2.0-only */
/* skb-drop: tracepoint skb:kfree_skb, every packet freed because it died. */

#ifdef WITH_TRACE
/* The end of a packet as a hop, if it is followed; returns its id. */
static __always_inline __u64 tell_end(int typed, struct sk_buff *skb,
				      const struct drop_event *event)
{
	struct sight sight = {.hop = HOP_DROPPED, .may_begin = MAY_BEGIN};

	see_in_socket(typed, skb, NULL, &sight);
	sight.netns = event->netns;
	sight.ifindex = event->ifindex;
	sight.location = event->location;
	sight.argument = event->reason;
	/* Packets die seldom: that the flow is known for none of ours is not asked, stack is short. */
	sight.may_choose = ask_filter(typed, &sight);
	if (sight.may_choose || (anything_followed() && may_be_followed(&sight)))
		tell(typed, &sight);
	return sight.packet_id;
}

/* And as a drop, which has been located. A subprogram of its own: a program's stack is short. */
int tell_death(unsigned long long *ctx)
{
	const int typed = TYPED_skb_drop;
	struct sk_buff *skb = (void *)ctx[0];
	int slot = 0;
	struct drop_event *event = scratch.lookup(&slot);

	if (!event)
		return 0;
	capture(typed, skb, event);
	attribute(skb, event);
	event->time_ns = bpf_ktime_get_boot_ns();
	show_drop(ctx, skb, event);
	return 0;
}
static int (*call_tell_death)(unsigned long long *ctx) = (void *)CALL_tell_death;
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
	event->packet_id = 0;
#ifdef WITH_TRACE
	event->packet_id = tell_end(typed, skb, event);
	if (event->packet_id)
		call_tell_death(ctx);
	return 0;
#endif
	capture(typed, skb, event);
	selected = attribute(skb, event);
	if (!drop_selected(event, selected))
		return 0;
	event->time_ns = bpf_ktime_get_boot_ns();
#ifdef WITH_DROP_EVENTS
	report_drop(ctx, skb, event);
#endif
#ifdef WITH_FLOWS
	count_flow_drop(skb, event);
#endif
	return 0;
}
