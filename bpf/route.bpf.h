/* SPDX-License-Identifier: GPL-2.0-only */
/* Routing decisions as hops of `trace`, for IPv4 and IPv6. */
#if defined(WITH_TRACE) && !defined(TRACER_ROUTE_H)
#define TRACER_ROUTE_H

#define ROUTE_NS 1000000 /* a received packet is routed within this time */
#define LOOPBACK_IFINDEX_ 1 /* LOOPBACK_IFINDEX of net/flow.h: what the host itself sends */

/*
 * Is it asked for something else than a packet that came in by a device? An ICMP error about one asks
 * what kind of address it was for (device 0), and how the host would send to it.
 */
static __always_inline int asked_by_host(__u32 iif, const struct last_told *last)
{
	return !iif || (iif == LOOPBACK_IFINDEX_ && last->ifindex != iif);
}

/*
 * A routing decision. The lookup does not name the packet: it is the one last told on this CPU, if
 * that has just been received there, to the same destination, and the route is its namespace's.
 * (What a process sends is routed before it is a packet.)
 */
static __always_inline void route_hop(__u32 table, __u32 iif, const __u8 *daddr,
				      const struct fib_nh_common *nhc, int error)
{
	int slot = 0;
	struct last_told *last = last_packets.lookup(&slot);
	struct place place = {};
	struct net_device *dev;
	struct hop_event *event;

	if (!last || !last->unrouted || asked_by_host(iif, last) ||
	    !same_address(last->tuple.daddr, daddr) ||
	    bpf_ktime_get_boot_ns() - last->time_ns > ROUTE_NS)
		return;
	dev = nhc ? READ(nhc->nhc_dev) : NULL;
	if (device_place(dev, &place) && place.netns != last->netns)
		return;
	event = new_hop();
	if (!event)
		return;
	event->hop = HOP_ROUTE;
	event->packet_id = last->packet_id;
	event->skb = last->skb;
	event->head = last->head;
	event->netns = last->netns;
	event->ifindex = last->ifindex;
	event->bytes = last->bytes;
	event->signature = last->signature;
	event->tuple = last->tuple;
	event->argument = table;
	event->error = error;
	if (nhc && !error) {
		event->out_ifindex = place.ifindex;
		if (READ(nhc->nhc_gw_family) == 2) {
			__be32 gateway = READ(nhc->nhc_gw.ipv4);
			mapped_address(event->gateway, &gateway);
		} else if (READ(nhc->nhc_gw_family) == 10) {
			bpf_probe_read_kernel(event->gateway, 16, &nhc->nhc_gw.ipv6);
		}
	}
	hops.ringbuf_submit(event, 0);
}

#endif
