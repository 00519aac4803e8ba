/* SPDX-License-Identifier: GPL-2.0-only */
/* sock-copied: tracepoint skb:skb_copy_datagram_iovec, bytes copied to the application. */

int sock_copied(unsigned long long *ctx)
{
	const int typed = TYPED_sock_copied;
	struct sk_buff *skb = (void *)ctx[0];
	struct sight sight = {.hop = HOP_COPIED, .argument = ctx[1]};

	if (!anything_followed())
		return 0;
	see_in_socket(typed, skb, LOAD(skb->sk), &sight);
	if (may_be_followed(&sight))
		tell(typed, &sight);
	return 0;
}
