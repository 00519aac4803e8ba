/* SPDX-License-Identifier: GPL-2.0-only */
/* netif-rx: tracepoint net:netif_rx, a packet put into a CPU's backlog, as veth does. */

int netif_rx(unsigned long long *ctx)
{
	const int typed = TYPED_netif_rx;
	struct sk_buff *skb = (void *)ctx[0];
	struct net_device *dev = LOAD(skb->dev);
	struct sight sight = {.hop = HOP_NETIF_RX};

	if (!anything_followed())
		return 0;
	see(typed, skb, dev, LOAD(skb->data), &sight);
	if (may_be_followed(&sight))
		tell(typed, &sight);
	return 0;
}
