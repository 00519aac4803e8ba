/* SPDX-License-Identifier: GPL-2.0-only */
/* tcp-receive: tracepoint tcp:tcp_probe, a segment taken by an established connection. */

int tcp_receive(unsigned long long *ctx)
{
	const int typed = TYPED_tcp_receive;
	struct sock *sk = (void *)ctx[0];
	struct sk_buff *skb = (void *)ctx[1];
	struct sight sight = {};

	if (!anything_followed())
		return 0;
	see_in_socket(typed, skb, sk, &sight);
	end_hop(&sight, begin_hop(typed, &sight, HOP_TCP_RECEIVE, MAY_NOT_BEGIN));
	return 0;
}
