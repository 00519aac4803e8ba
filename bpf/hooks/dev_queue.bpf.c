/* SPDX-License-Identifier: GPL-2.0-only */
/* dev-queue: tracepoint net:net_dev_queue, a packet handed to a device's transmit queue. */

int dev_queue(unsigned long long *ctx)
{
	const int typed = TYPED_dev_queue;
	struct sk_buff *skb = (void *)ctx[0];
	struct net_device *dev = LOAD(skb->dev);
	struct sight sight = {.hop = HOP_DEV_QUEUE, .may_begin = MAY_BEGIN};

	see(typed, skb, dev, LOAD(skb->head) + LOAD(skb->network_header), &sight);
	if (concerns(typed, &sight))
		tell(typed, &sight);
	return 0;
}
