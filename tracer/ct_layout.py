"""One conntrack entry, event or expectation as a numpy record.

Numbers stay in network byte order, as ctnetlink writes them: netfilter/ct_decode makes records
by copying bytes, and numpy reads either order.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

TUPLE = np.dtype(
    [
        ("saddr", "u1", 16),
        ("daddr", "u1", 16),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("icmp_id", ">u2"),
        ("zone", ">u2"),
        ("protocol", "u1"),
        ("pad", "V7"),
    ]
)
"""Addresses as in bpf/event.h: 16 bytes, IPv4 mapped. Of ICMP, sport is the type, dport the code.

`zone` is the zone of this direction only; an entry's own is `ENTRY["zone"]`.
"""

ENTRY = np.dtype(
    [
        ("time_ns", "i8"),
        ("netns", "u4"),
        ("portid", "u4"),
        ("present", "u4"),
        ("event", "u1"),
        ("family", "u1"),
        ("proto_state", "u1"),
        ("pad", "V1"),
        ("orig", TUPLE),
        ("reply", TUPLE),
        ("master", TUPLE),
        ("id", ">u4"),
        ("status", ">u4"),
        ("timeout_s", ">u4"),
        ("mark", ">u4"),
        ("zone", ">u2"),
        ("pad2", "V6"),
        ("labels", "u8", 2),
        ("orig_packets", ">u8"),
        ("orig_bytes", ">u8"),
        ("reply_packets", ">u8"),
        ("reply_bytes", ">u8"),
        ("start_ns", ">u8"),
        ("stop_ns", ">u8"),
        ("event_ns", ">u8"),
        ("helper", "S16"),
    ]
)
"""`time_ns`: wall clock when it was read; `portid`: the netlink port that asked for the change,
0 where traffic or time did. `labels`: 128 bits. `start_ns`, `stop_ns`, `event_ns`: the kernel's
times, wall clock, with nf_conntrack_timestamp. Of an expectation `orig` is the expected tuple and
`reply` its mask, `master` the connection that expects it."""


class Event(IntEnum):
    """`ENTRY["event"]`."""

    LISTED = 0
    NEW = 1
    UPDATE = 2
    DESTROY = 3
    EXPECT_NEW = 4
    EXPECT_DESTROY = 5


class Has(IntFlag):
    """Bits of `ENTRY["present"]`: what the message told."""

    TIMEOUT = 1
    COUNTERS = 2
    TIMES = 4
    MASTER = 8
    PROTO_STATE = 16


class Status(IntFlag):
    """`ENTRY["status"]`: those bits of enum ip_conntrack_status that decide something here."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    DYING = 1 << 9
