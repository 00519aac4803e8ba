/* SPDX-License-Identifier: GPL-2.0-only */
/* dev-rx: tracepoint net:netif_receive_skb, a packet taken from a device. */

int dev_rx(unsigned long long *ctx)
{
	const int typed = TYPED_dev_rx;
	struct sk_buff *skb = (void *)ctx[0];
	struct net_device *dev = LOAD(skb->dev);

#ifdef WITH_FLOWS
	flow_receive(typed, skb, dev);
#endif
#ifdef WITH_TRACE
	/* The network header is not set yet; data stands where it will be. */
	struct sight sight = {.hop = HOP_DEV_RX, .may_begin = MAY_BEGIN};

	see(typed, skb, dev, LOAD(skb->data), &sight);
	if (concerns(typed, &sight))
		tell(typed, &sight);
#endif
	return 0;
}
