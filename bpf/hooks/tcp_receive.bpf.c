/* SPDX-License-Identifier: GPL-2.0-only */
/* tcp-receive: tracepoint tcp:tcp_probe, a segment taken by an established connection. */

int tcp_receive(unsigned long long *ctx)
{
	const int typed = TYPED_tcp_receive;
	struct sock *sk = (void *)ctx[0];
	struct sk_buff *skb = (void *)ctx[1];
	struct sight sight = {.hop = HOP_TCP_RECEIVE};

	if (!anything_followed())
		return 0;
	see_in_socket(typed, skb, sk, &sight);
	if (may_be_followed(&sight))
		tell(typed, &sight);
	return 0;
}
