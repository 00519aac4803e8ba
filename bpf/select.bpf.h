/* SPDX-License-Identifier: GPL-2.0-only */
/* Which packets the user asked for. What was not asked for is compiled out. */
#ifndef TRACER_SELECT_H
#define TRACER_SELECT_H

#define POD_SELECTED 2

static __always_inline __u32 pod_address(const __u8 *address)
{
	__u32 *state = pod_addresses.lookup((struct address *)address);
	return state ? *state : 0;
}

/* Does a pod own the namespace or the device: 0 no, 1 yes, POD_SELECTED yes and selected. */
static __always_inline __u32 pod_place(__u32 netns, __u32 ifindex)
{
	/* A whole namespace stands in the map with ifindex 0. */
	struct place place = {.netns = netns};
	__u32 *state = pod_places.lookup(&place);
	if (!state) {
		place.ifindex = ifindex;
		state = pod_places.lookup(&place);
	}
	return state ? *state : 0;
}

static __always_inline int place_selected(__u32 netns, __u32 ifindex)
{
	return pod_place(netns, ifindex) == POD_SELECTED;
}

static __always_inline int name_is(const char *ifname, __u64 first, __u64 second)
{
	return *(__u64 *)ifname == first && *(__u64 *)(ifname + 8) == second;
}

#endif
