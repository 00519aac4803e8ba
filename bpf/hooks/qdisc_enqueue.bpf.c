/* SPDX-License-Identifier: GPL-2.0-only */
/* qdisc-enqueue: tracepoint qdisc:qdisc_enqueue, a packet that a queueing discipline keeps. */

int qdisc_enqueue(unsigned long long *ctx)
{
	const int typed = TYPED_qdisc_enqueue;

	if (anything_followed())
		qdisc_hop(typed, (void *)ctx[0], (void *)ctx[2], HOP_QDISC_ENQUEUE);
	return 0;
}
