/* SPDX-License-Identifier: GPL-2.0-only */
/* fib6-lookup: as fib-lookup, for IPv6. */

#define NULL_ENTRY_METRIC 0xffffffff /* of net->ipv6.fib6_null_entry, which stands for no match */

/* As fib_table_lookup has it for IPv4, and ip6_rt_type_to_error() for the types of routes. */
static __always_inline int fib6_error(const struct fib6_result *result)
{
	const struct fib6_info *entry = READ(result->f6i);

	if (!entry || READ(entry->fib6_metric) == NULL_ENTRY_METRIC)
		return -11; /* EAGAIN */
	switch (READ(result->fib6_type)) {
	case 6: /* RTN_BLACKHOLE */
		return -22; /* EINVAL */
	case 7: /* RTN_UNREACHABLE */
		return -113; /* EHOSTUNREACH */
	case 8: /* RTN_PROHIBIT */
		return -13; /* EACCES */
	case 9: /* RTN_THROW */
		return -11;
	}
	return 0;
}

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
	route_hop(READ(table->tb6_id), READ(flow->__fl_common.flowic_iif), daddr,
		  nh ? &nh->nh_common : NULL, fib6_error(result));
	return 0;
}
