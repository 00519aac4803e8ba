/* SPDX-License-Identifier: GPL-2.0-only */
/* fib6-lookup: as fib-lookup, for IPv6. */

int fib6_lookup(unsigned long long *ctx)
{
	const struct fib6_result *result = (void *)ctx[1];
	const struct fib6_table *table = (void *)ctx[2];
	const struct flowi6 *flow = (void *)ctx[3];
	struct fib6_nh *nh;
	__u8 daddr[16] = {};

	if (!anything_followed())
		return 0;
	nh = READ(result->nh);
	bpf_probe_read_kernel(daddr, sizeof(daddr), &flow->daddr);
	route_hop(READ(table->tb6_id), daddr, nh ? &nh->nh_common : NULL, 0);
	return 0;
}
