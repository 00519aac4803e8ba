/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nf-watch: on standby, in the place of all others: a netfilter program at the end of INPUT and of
 * POSTROUTING. A packet passes one of the two in a namespace, once, with NAT behind it. It always
 * accepts.
 */

#define IPS_NAT_MASK_ 0x30 /* of enum ip_conntrack_status: SRC_NAT, DST_NAT */

/* Would the filter accept it as its sender wrote it? Before NAT nobody has asked. */
static __always_inline int accepted_as_sent(const struct sight *sight)
{
#ifdef SELECT_PCAP
	__u64 nfct = sight->skb->_nfct;
	const struct nf_conn *ct = (void *)(nfct & NFCT_PTRMASK);
	struct tuple sent = {};
	__u64 status = 0;

	/* Read as words are: nothing else is asked of nearly every packet. */
	return ct && !read_words(1, &status, 1, &ct->status) && (status & IPS_NAT_MASK_) &&
	       read_sender_tuple(nfct, &sent) && accepted_as(1, sight, &sent);
#else
	return 0;
#endif
}

int nf_watch(struct bpf_nf_ctx *ctx)
{
	const int typed = 1;
	const struct nf_hook_state *state = ctx->state;
	struct sk_buff *skb = ctx->skb;
	struct net_device *dev = state->out ?: state->in;
	void *l3 = skb->head + skb->network_header;
	/* What the filter has to know, in registers: it is asked of every packet. */
	struct sight asked = {
		.skb = skb,
		.head = skb->head,
		.l3 = l3,
		.linear_bytes = skb->tail - skb->network_header,
		.bytes = skb->len, /* here data begins with the network header */
	};

	if (!dev || (!filter_accepts(typed, &asked) && !accepted_as_sent(&asked)))
		return NF_ACCEPT_;
	struct sight sight = {.hop = HOP_NF_LEAVE, .may_begin = MAY_BEGIN, .may_choose = ACCEPTED};

	see(typed, skb, dev, l3, &sight);
	sight.nf_hook = state->hook;
	sight.nf_family = state->pf;
	sight.out_ifindex = state->out ? state->out->ifindex : 0;
#ifdef SELECT_PODS
	if (known_not(typed, &sight, IS_SELECTED, NULL))
		return NF_ACCEPT_;
#endif
	tell(typed, &sight);
	return NF_ACCEPT_;
}
