/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * qdisc-dequeue: tracepoint qdisc:qdisc_dequeue, a packet that leaves its queueing discipline for the
 * driver. Of several that leave at once (`ctx[2]`) it tells the first.
 */

int qdisc_dequeue(unsigned long long *ctx)
{
	const int typed = TYPED_qdisc_dequeue;
	struct sk_buff *skb = (void *)ctx[3];

	if (skb && anything_followed())
		qdisc_hop(typed, (void *)ctx[0], skb, HOP_QDISC_DEQUEUE);
	return 0;
}
