/* SPDX-License-Identifier: GPL-2.0-only */
/* fib-lookup: tracepoint fib:fib_table_lookup, a routing decision. */

int fib_lookup(unsigned long long *ctx)
{
	const struct flowi4 *flow = (void *)ctx[1];
	__u8 daddr[16] = {};
	__be32 destination;

	if (!anything_followed())
		return 0;
	destination = READ(flow->daddr);
	mapped_address(daddr, &destination);
	route_hop(ctx[0], READ(flow->__fl_common.flowic_iif), daddr, (void *)ctx[2], (int)ctx[3]);
	return 0;
}
