/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nf-hook: what a packet looks like before and after all else in a netfilter hook tells NAT, marks and
 * conntrack; a packet that enters and does not leave died there, was queued or stolen. Either netfilter
 * programs at the first and the last priority, which always accept, or, around nf_hook_slow, what runs
 * a hook in which something is registered.
 */

#define ACCEPTED_ 1 /* nf_hook_slow's word for: go on with it */

/* Tells whether the packet is followed. */
static __always_inline int netfilter_hop(int typed, struct sk_buff *skb,
					 const struct nf_hook_state *state, __u16 hop,
					 int may_begin)
{
	struct net_device *out = LOAD(state->out), *dev = out ?: LOAD(state->in);
	struct sight sight = {.hop = hop, .may_begin = may_begin};

	if (!dev || (!may_begin && !anything_followed()))
		return 0;
	see(typed, skb, dev, LOAD(skb->head) + LOAD(skb->network_header), &sight);
	sight.nf_hook = LOAD(state->hook);
	sight.nf_family = LOAD(state->pf);
	sight.out_ifindex = out ? LOAD(out->ifindex) : 0;
	if (may_begin ? concerns(typed, &sight) : may_be_followed(&sight))
		tell(typed, &sight);
	return sight.packet_id != 0;
}

static __always_inline int enter_hook(int typed, struct sk_buff *skb,
				      const struct nf_hook_state *state)
{
	__u32 hook = LOAD(state->hook);
	/* What passes the other hooks has just been asked about at a device. */
	int may_begin = hook == NF_INET_LOCAL_IN ? MAY_BEGIN : MAY_NOT_BEGIN;

	/* IPVS sends what it has received through OUTPUT: that came by a device. */
	if (hook == NF_INET_LOCAL_OUT)
		may_begin = LOAD(skb->skb_iif) ? MAY_BEGIN : MUST_BEGIN;
	return netfilter_hop(typed, skb, state, HOP_NF_ENTER, may_begin);
}

static __always_inline void leave_hook(int typed, struct sk_buff *skb,
				       const struct nf_hook_state *state)
{
	netfilter_hop(typed, skb, state, HOP_NF_LEAVE, MAY_NOT_BEGIN);
}

/* Netfilter programs are of these families only; br_netfilter's hooks come in them, too. */
static __always_inline int is_ip(int typed, const struct nf_hook_state *state)
{
	__u8 family = LOAD(state->pf);

	return family == NFPROTO_IPV4 || family == NFPROTO_IPV6;
}

#if defined(WAY_fexit)
int nf_enter(unsigned long long *ctx)
{
	const struct nf_hook_state *state = (void *)ctx[1];

	if (is_ip(1, state))
		enter_hook(1, (void *)ctx[0], state);
	return 0;
}

/* Of an skb that was not accepted nothing may be left. */
int nf_leave(unsigned long long *ctx)
{
	const struct nf_hook_state *state = (void *)ctx[1];

	if ((int)ctx[4] == ACCEPTED_ && is_ip(1, state))
		leave_hook(1, (void *)ctx[0], state);
	return 0;
}
#elif defined(WAY_kretprobe)
#ifdef __x86_64__
#define RETURN_ADDRESS_BYTES 8 /* on the stack when the function begins, off it when it returns */
#else
#define RETURN_ADDRESS_BYTES 0
#endif

static __always_inline __u64 frame_of(struct pt_regs *ctx)
{
	return PT_REGS_SP(ctx) + RETURN_ADDRESS_BYTES;
}

/* What ran here before has not been seen to return: the kernel watches only so many at once. */
static __always_inline void forget_missed(struct pt_regs *ctx)
{
	__u64 frame = frame_of(ctx);

	if (anything_followed() && !running_hooks.delete(&frame))
		lose(LOSS_HOPS);
}

/* Behind everything else: a program's stack is short. */
static __always_inline void keep_running(struct pt_regs *ctx)
{
	struct running_hook running = {
		.skb = (void *)PT_REGS_PARM1(ctx),
		.state = (void *)PT_REGS_PARM2(ctx),
	};
	__u64 frame = frame_of(ctx);

	running_hooks.update(&frame, &running);
}

int nf_enter(struct pt_regs *ctx)
{
	const struct nf_hook_state *state = (void *)PT_REGS_PARM2(ctx);

	forget_missed(ctx);
	if (is_ip(0, state) && enter_hook(0, (void *)PT_REGS_PARM1(ctx), state))
		keep_running(ctx);
	return 0;
}

int nf_leave(struct pt_regs *ctx)
{
	__u64 frame = PT_REGS_SP(ctx);
	struct running_hook *found = anything_followed() ? running_hooks.lookup(&frame) : NULL;
	struct running_hook running;

	if (!found)
		return 0;
	running = *found;
	running_hooks.delete(&frame);
	/* Of an skb that was not accepted nothing may be left. */
	if ((int)PT_REGS_RC(ctx) == ACCEPTED_)
		leave_hook(0, running.skb, running.state);
	return 0;
}
#else
int nf_enter(struct bpf_nf_ctx *ctx)
{
	enter_hook(1, ctx->skb, ctx->state);
	return NF_ACCEPT_;
}

int nf_leave(struct bpf_nf_ctx *ctx)
{
	leave_hook(1, ctx->skb, ctx->state);
	return NF_ACCEPT_;
}
#endif
