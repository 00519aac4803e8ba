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
"""IP_CT_UNTRACKED: a rule said notrack, or it is neighbour discovery. There is no entry then."""

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

SCTP_STATES = (
    "NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT",
    "SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT",
)  # fmt: skip
"""enum sctp_conntrack."""

_TCP, _SCTP = 6, 132
_STATES = {_TCP: TCP_STATES, _SCTP: SCTP_STATES}


def conntrack_fields(entry: np.void) -> Record:
    """Flat fields of a `struct conntrack` of bpf/event.h; empty when there was none."""
    info = int(entry["info"])
    if info >= len(INFO):
        return {"conntrack.state": "untracked"}
    if not entry["present"]:
        return {}
    status = int(entry["status"])
    fields: Record = {
        "conntrack.state": INFO[info],
        "conntrack.direction": "reply" if info >= IP_CT_IS_REPLY else "original",
        "conntrack.status": status_names(status),
        "conntrack.zone": int(entry["zone"]),
        "conntrack.mark": int(entry["mark"]),
    }
    fields.update(protocol_state(_TCP, int(entry["tcp_state"])))
    for name in ("orig", "reply"):
        for key, value in tuple_fields(entry[name]).items():
            if key.startswith(("src.", "dst.")):
                fields[f"conntrack.{name}.{key}"] = value
    return fields


def status_names(status: int) -> list[str]:
    """Names of the bits of enum ip_conntrack_status."""
    return [name for bit, name in enumerate(STATUS) if status >> bit & 1]


def protocol_state(protocol: int, state: int) -> Record:
    """`conntrack.tcp.state` or `conntrack.sctp.state`; empty where there is none."""
    names = _STATES.get(protocol, ())
    if not 0 < state < len(names):
        return {}
    return {f"conntrack.{transport(protocol)}.state": names[state]}


def tuple_fields(flow: np.void) -> Record:
    """Flat fields of a `struct tuple` of bpf/event.h."""
    return flow_fields(
        flow["saddr"].tobytes(),
        flow["daddr"].tobytes(),
        int(flow["sport"]),
        int(flow["dport"]),
        int(flow["protocol"]),
    )


def flow_fields(saddr: bytes, daddr: bytes, sport: int, dport: int, protocol: int) -> Record:
    """Flat fields of addresses (16 bytes each) and ports; of ICMP these are type and code."""
    fields: dict[str, Any] = {
        "src.address": address_text(saddr),
        "dst.address": address_text(daddr),
        "transport": transport(protocol),
    }
    if fields["transport"] in ("icmp", "icmpv6"):
        fields["icmp.type"], fields["icmp.code"] = sport, dport
    elif sport or dport:
        fields["src.port"], fields["dst.port"] = sport, dport
    return fields
