/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's types. Normally they come from the running kernel's BTF with bcc's header tree
 * (docs/headers.md), complete before this line; where only kernel headers are installed, from
 * these, and what BTF would have told of optional fields, from the kernel's configuration.
 */
/* For the few packets that cost more: keeps what these need out of the way of the others. */
#define RARELY(condition) __builtin_expect(!!(condition), 0)
/* Keeps the compiler from computing with a map's value before it was asked for NULL: old verifiers
 * (5.10) refuse that. */
#define KNOWN_NOT_NULL(pointer) asm volatile("" : "+r"(pointer))

/*
 * bpf_rdonly_cast (6.2: a35b9af4ec2c): a kernel address as a read-only struct, for no instruction at
 * all. bcc knows no kernel functions: the loader turns calls of this number into calls of it.
 */
#ifdef SK_BUFF_BTF_ID
static void *(*bpf_rdonly_cast_)(const void *address,
				 unsigned int btf_id) = (void *)RDONLY_CAST_CALL;
#endif

#ifdef KERNEL_HEADERS
#include <linux/skbuff.h>
#include <linux/netdevice.h>
#include <net/sock.h>
#include <linux/tcp.h>
#include <net/dst.h>
#include <net/netfilter/nf_conntrack.h>
#if IS_ENABLED(CONFIG_IPV6)
#define HAS_sock_common__skc_v6_daddr 1
#endif
#ifdef CONFIG_NF_CONNTRACK_MARK
#define HAS_nf_conn__mark 1
#endif
#ifdef CONFIG_NF_CONNTRACK_ZONES
#define HAS_nf_conn__zone 1
#endif
#endif
