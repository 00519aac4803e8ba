/* SPDX-License-Identifier: GPL-2.0-only */
/* A packet's stay in a queueing discipline; devices without one never come here. */
#if defined(WITH_TRACE) && !defined(TRACER_QDISC_H)
#define TRACER_QDISC_H

static __always_inline void qdisc_hop(int typed, const struct Qdisc *qdisc, struct sk_buff *skb,
				      __u16 hop)
{
	struct sight sight = {.hop = hop};

	see(typed, skb, LOAD(skb->dev), LOAD(skb->head) + LOAD(skb->network_header), &sight);
	sight.qdisc = (__u64)qdisc;
	if (may_be_followed(&sight))
		tell(typed, &sight);
}

#endif
