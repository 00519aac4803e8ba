/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nf-hook: netfilter programs at the first and the last priority of every hook. What a packet
 * looks like between them tells NAT, marks and conntrack; a packet that enters and does not leave
 * died there, was queued or stolen. They always accept.
 */

#define NF_ACCEPT_ 1

static __always_inline int netfilter_hop(struct bpf_nf_ctx *ctx, __u16 hop, int may_begin)
{
	const int typed = 1;
	const struct nf_hook_state *state = ctx->state;
	struct sk_buff *skb = ctx->skb;
	struct net_device *dev = state->out ?: state->in;
	struct sight sight = {.hop = hop, .may_begin = may_begin};

	if (!dev || (!may_begin && !anything_followed()))
		return NF_ACCEPT_;
	see(typed, skb, dev, skb->head + skb->network_header, &sight);
	sight.nf_hook = state->hook;
	sight.nf_family = state->pf;
	sight.out_ifindex = state->out ? state->out->ifindex : 0;
	if (may_begin ? concerns(typed, &sight) : may_be_followed(&sight))
		tell(typed, &sight);
	return NF_ACCEPT_;
}

int nf_enter(struct bpf_nf_ctx *ctx)
{
	__u32 hook = ctx->state->hook;
	/* What passes the other hooks has just been asked about at a device. */
	int may_begin = hook == NF_INET_LOCAL_IN ? MAY_BEGIN : MAY_NOT_BEGIN;

	/* IPVS sends what it has received through OUTPUT: that came by a device. */
	if (hook == NF_INET_LOCAL_OUT)
		may_begin = ctx->skb->skb_iif ? MAY_BEGIN : MUST_BEGIN;
	return netfilter_hop(ctx, HOP_NF_ENTER, may_begin);
}

int nf_leave(struct bpf_nf_ctx *ctx)
{
	return netfilter_hop(ctx, HOP_NF_LEAVE, MAY_NOT_BEGIN);
}
