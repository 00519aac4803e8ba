/* SPDX-License-Identifier: GPL-2.0-only */
/* dev-xmit: tracepoint net:net_dev_start_xmit, a packet handed to a device's driver. */

int dev_xmit(unsigned long long *ctx)
{
	const int typed = TYPED_dev_xmit;
	struct sk_buff *skb = (void *)ctx[0];
	struct net_device *dev = (void *)ctx[1];

#ifdef WITH_FLOWS
	flow_xmit(typed, skb, dev);
#endif
#ifdef WITH_TRACE
	struct sight sight = {.hop = HOP_DEV_XMIT};

	if (!anything_followed())
		return 0;
	see(typed, skb, dev, LOAD(skb->head) + LOAD(skb->network_header), &sight);
	if (may_be_followed(&sight) || whole_of(&sight))
		tell(typed, &sight);
#endif
	return 0;
}
