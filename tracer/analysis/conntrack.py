"""The conntrack entry a packet carried, in the kernel's and conntrack-tools' words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracer.analysis.addresses import address_text
from tracer.analysis.packet import transport

if TYPE_CHECKING:
    import numpy as np

    from tracer.model import Record

INFO = (
    "established", "related", "new", "established", "related",
)  # fmt: skip
"""enum ip_conntrack_info (include/uapi/linux/netfilter/nf_conntrack_common.h)."""
IP_CT_IS_REPLY = 3
UNTRACKED_INFO = 7

STATUS = (
    "expected", "seen-reply", "assured", "confirmed", "src-nat", "dst-nat", "seq-adjust",
    "src-nat-done", "dst-nat-done", "dying", "fixed-timeout", "template", "untracked", "helper",
    "offload", "hw-offload",
)  # fmt: skip
"""Bits of enum ip_conntrack_status, from bit 0."""

TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK",
    "TIME_WAIT", "CLOSE", "SYN_SENT2",
)  # fmt: skip
"""enum tcp_conntrack."""


def conntrack_fields(entry: np.void) -> Record:
    """Flat fields of a `struct conntrack` of bpf/event.h; empty when there was none."""
    if not entry["present"]:
        return {}
    status = int(entry["status"])
    info = int(entry["info"])
    fields: Record = {
        "conntrack.state": INFO[info] if info < len(INFO) else "untracked",
        "conntrack.direction": "reply" if info >= IP_CT_IS_REPLY else "original",
        "conntrack.status": [name for bit, name in enumerate(STATUS) if status >> bit & 1],
        "conntrack.zone": int(entry["zone"]),
        "conntrack.mark": int(entry["mark"]),
    }
    state = int(entry["tcp_state"])
    if 0 < state < len(TCP_STATES):
        fields["conntrack.tcp.state"] = TCP_STATES[state]
    for name in ("orig", "reply"):
        for key, value in tuple_fields(entry[name]).items():
            if key.startswith(("src.", "dst.")):
                fields[f"conntrack.{name}.{key}"] = value
    return fields


def tuple_fields(flow: np.void) -> Record:
    """Flat fields of a `struct tuple` of bpf/event.h."""
    protocol = int(flow["protocol"])
    fields: dict[str, Any] = {
        "src.address": address_text(flow["saddr"].tobytes()),
        "dst.address": address_text(flow["daddr"].tobytes()),
        "transport": transport(protocol),
    }
    if fields["transport"] in ("icmp", "icmpv6"):
        fields["icmp.type"], fields["icmp.code"] = int(flow["sport"]), int(flow["dport"])
    elif flow["sport"] or flow["dport"]:
        fields["src.port"], fields["dst.port"] = int(flow["sport"]), int(flow["dport"])
    return fields
