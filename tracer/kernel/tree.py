"""The content of the header tree that bcc compiles against, from BTF. Pure: BTF in, text out.

bcc includes, in this order: linux/kconfig.h, its own copy of uapi/linux/bpf.h (kept out by
its include guards: the kernel's own types are better), then the other names in `_EMPTY`,
linux/version.h, linux/log2.h and asm/page.h. Everything is in the first of them, and in
vmlinux.h beside it: a quoted include looks beside the includer before bcc's first -I, which
is the directory that the process was started in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.kernel.btf import ENUMS, RECORDS, Kind
from tracer.kernel.cdump import CDump
from tracer.kernel.helper_ids import HELPERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.kernel.btf import Btf, Type

STRUCTS = """
    sk_buff skb_shared_info sk_buff_head net_device net sock sock_common inet_sock tcp_sock
    dst_entry rtable rt6_info neighbour net_bridge_port nf_bridge_info
    nf_hook_state nf_hook_entries nf_hook_entry nf_conn nf_conntrack_tuple
    nf_conntrack_tuple_hash nf_conntrack_zone nf_ct_ext nf_conn_acct nf_conn_counter
    nf_conn_tstamp nf_conn_labels nf_conn_nat bpf_nf_ctx
    flowi4 flowi6 fib_nh_common fib6_result fib6_info fib6_nh fib6_table rtnl_link_ops
    Qdisc Qdisc_ops ethhdr vlan_hdr arphdr iphdr ipv6hdr tcphdr udphdr icmphdr icmp6hdr sctphdr
    sock_cgroup_data cgroup kernfs_node ns_common task_struct
    bpf_raw_tracepoint_args pt_regs __sk_buff xdp_md bpf_sock bpf_sock_tuple bpf_sock_ops
    bpf_perf_event_data bpf_perf_event_value bpf_pidns_info bpf_tunnel_key bpf_fib_lookup
    bpf_redir_neigh bpf_spin_lock bpf_stack_build_id bpf_cgroup_storage_key btf_ptr
""".split()  # noqa: SIM905 - names read best as running text
"""Structs to write completely; `HAS_STRUCT_<name>` says which of them this kernel has."""

ENUM_NAMES = """
    skb_drop_reason skb_drop_reason_subsys nf_inet_hooks ip_conntrack_info ip_conntrack_dir
    ip_conntrack_status nf_ct_ext_id tcp_conntrack nf_dev_hooks bpf_func_id bpf_map_type
""".split()  # noqa: SIM905 - names read best as running text
"""Enums to write; `HAS_ENUM_<name>` says which of them this kernel has."""

CONSTANTS = """
    BPF_ANY BPF_F_CURRENT_CPU BPF_F_NO_PREALLOC BPF_F_USER_STACK BPF_F_STACK_BUILD_ID
    BPF_RB_NO_WAKEUP BPF_RB_AVAIL_DATA NFPROTO_IPV4 IPPROTO_TCP TCP_ESTABLISHED
""".split()  # noqa: SIM905 - names read best as running text
"""One constant of each anonymous enum to write."""

TYPEDEFS = """
    __u8 __u16 __u32 __u64 __s8 __s16 __s32 __s64 u8 u16 u32 u64 s8 s16 s32 s64 __be16 __be32
    __be64 __le16 __le32 __le64 __sum16 __wsum bool size_t ssize_t uintptr_t pid_t uid_t gid_t
    dev_t gfp_t possible_net_t ktime_t netdev_features_t
""".split()  # noqa: SIM905 - names read best as running text

OPTIONAL_FIELDS = {
    "sk_buff": (
        *("vlan_present", "vlan_all", "vlan_tci", "mono_delivery_time", "tstamp_type"),
        *("redirected", "from_ingress"),
    ),
    "nf_conn": ("zone", "mark", "labels"),
    "net_device": ("nd_net",),
    "sock_common": ("skc_net", "skc_v6_daddr"),
    "sock_cgroup_data": ("cgroup", "val"),
    "nf_conntrack_zone": ("id",),
}
"""Fields that kernels differ in: those present get `HAS_<struct>__<field>`; a single bit, which has
no address in C, its `BYTE_…` in the struct and `MASK_…` in that byte, too."""

ASSERTED = ("sk_buff", "net_device", "net", "sock", "sock_common", "nf_conn", "nf_hook_state")
"""Structs whose every offset the compiler proves, each time it compiles."""

_EMPTY = ("linux/types.h", "linux/bpf_common.h", "uapi/linux/bpf.h", "uapi/linux/if_packet.h")

_KCONFIG = """\
#ifndef __TRACER_KCONFIG_H
#define __TRACER_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#define {config_arch} 1
#define __LINUX_BPF_H__
#define _UAPI__LINUX_BPF_H__
#ifndef NULL
#define NULL ((void *)0)
#endif
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#include "vmlinux.h"
#endif
"""
_VERSION = """\
#define LINUX_VERSION_CODE {code}
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
"""
_LOG2 = """\
#define roundup_pow_of_two(n) ((n) < 2 ? 1 : 1UL << (64 - __builtin_clzl((n) - 1)))
"""
# Records that bcc's helpers.h names in prototypes only: a name at file scope is enough.
_FORWARD = """
    bpf_dynptr bpf_flow_keys bpf_map bpf_sk_lookup bpf_sysctl bpf_tcp_sock bpf_timer cgroup
    file inode linux_binprm mptcp_sock path seq_file sk_msg_md sk_reuseport_md sockaddr socket
    task_struct tcp6_sock tcp_request_sock tcp_sock tcp_timewait_sock udp6_sock unix_sock
""".split()  # noqa: SIM905 - names read best as running text
_ARCHITECTURES = {"x86_64": ("x86", "CONFIG_X86_64"), "aarch64": ("arm64", "CONFIG_ARM64")}


def architectures() -> tuple[str, ...]:
    """Machines (as `uname -m` names them) that a tree can be written for."""
    return tuple(_ARCHITECTURES)


def files(btf: Btf, machine: str, release: str, page_bytes: int) -> dict[str, str]:
    """Path below the tree's root → content; a path that ends in `/` is a directory.

    `machine` and `release` are uname's; `machine` must be one of `architectures()`.
    """
    arch_dir, config_arch = _ARCHITECTURES[machine]
    code = _version_code(release)
    return {
        f"arch/{arch_dir}/include/": "",
        "include/linux/vmlinux.h": vmlinux(btf),
        "include/linux/kconfig.h": _KCONFIG.format(config_arch=config_arch),
        "include/linux/version.h": _VERSION.format(code=code),
        "include/linux/log2.h": _LOG2,
        "include/asm/page.h": f"#define PAGE_SIZE {page_bytes}\n",
        **{f"include/{path}": "" for path in _EMPTY},
    }


def missing(btf: Btf) -> tuple[str, ...]:
    """Name the wanted structs that no BTF of this kernel defines."""
    return tuple(name for name in STRUCTS if btf.find(name, RECORDS) is None)


def vmlinux(btf: Btf) -> str:
    """Write the header with every wanted type, `HAS_…` macros and layout proofs."""
    dump = CDump(btf)
    for name in TYPEDEFS:
        _add(dump, btf.find(name, {Kind.TYPEDEF}))
    for name in ENUM_NAMES:
        _add(dump, btf.find(name, ENUMS))
    dump.lines += _anonymous_enums(btf, dump)
    for name in STRUCTS:
        _add(dump, btf.find(name, RECORDS))
    asserted = [record for name in ASSERTED if (record := btf.find(name, RECORDS))]
    lines = [
        *(f"struct {name};" for name in _FORWARD),
        *dump.lines,
        *_missing_helpers(dump),
        *(f"#define {macro} {value}" for macro, value in _presence(btf)),
        *dump.asserts(asserted),
    ]
    return "\n".join(lines) + "\n"


def _add(dump: CDump, wanted: Type | None) -> None:
    if wanted is not None:
        dump.add(wanted)


def _anonymous_enums(btf: Btf, dump: CDump) -> Iterator[str]:
    wanted = set(CONSTANTS)
    for enum in btf.anonymous_enums():
        if wanted.intersection(name for name, _ in enum.values):
            yield dump.declare(enum.id, "").rstrip() + ";"


def _missing_helpers(dump: CDump) -> Iterator[str]:
    """Ids that bcc's helpers.h needs to compile, though this kernel lacks the helpers."""
    for number, name in enumerate(HELPERS):
        if not dump.has_constant(f"BPF_FUNC_{name}"):
            yield f"#define BPF_FUNC_{name} {number}"


def _presence(btf: Btf) -> Iterator[tuple[str, int]]:
    """Macros that tell C what this kernel has, with their values."""
    helpers = btf.find("bpf_func_id", ENUMS)
    for name, _ in helpers.values if helpers else ():
        yield name.replace("BPF_FUNC_", "HAS_FUNC_"), 1
    for name in ENUM_NAMES:
        if btf.find(name, ENUMS):
            yield f"HAS_ENUM_{name}", 1
    for name in STRUCTS:
        if btf.find(name, RECORDS):
            yield f"HAS_STRUCT_{name}", 1
    for name, fields in OPTIONAL_FIELDS.items():
        record = btf.find(name, RECORDS)
        for field in fields:
            member = btf.member(record, field) if record else None
            if member:
                yield f"HAS_{name}__{field}", 1
            if member and member.bit_size == 1:
                yield f"BYTE_{name}__{field}", member.bit_offset // 8
                yield f"MASK_{name}__{field}", 1 << member.bit_offset % 8


def _version_code(release: str) -> int:
    """LINUX_VERSION_CODE of `6.1.0-18-amd64`, `5.10.223+`, `7.2-rc1`, ….

    bcc and we test presence, not versions; this is for bcc's own headers only.
    """
    numbers = release.partition("-")[0].partition("+")[0].split(".")
    major, minor, patch = (*(int(n) if n.isdigit() else 0 for n in numbers), 0, 0, 0)[:3]
    return major << 16 | minor << 8 | min(patch, 255)
