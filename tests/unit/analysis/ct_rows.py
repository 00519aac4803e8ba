"""Conntrack rows made by hand."""

from __future__ import annotations

import numpy as np

from tracer.analysis.addresses import address_bytes
from tracer.ct_layout import ENTRY, Event, Has

DEFAULTS = {"family": 2, "netns": 1, "time_ns": 1_700_000_000 * 10**9, "status": 8}


def flow(src, dst, sport=0, dport=0, protocol=17):
    return {
        "saddr": np.frombuffer(address_bytes(src), np.uint8),
        "daddr": np.frombuffer(address_bytes(dst), np.uint8),
        "sport": sport,
        "dport": dport,
        "protocol": protocol,
    }


def row(orig, reply=None, event=Event.NEW, **fields):
    """One ENTRY; without `reply` there was no NAT."""
    reply = reply or {
        **orig,
        "saddr": orig["daddr"],
        "daddr": orig["saddr"],
        "sport": orig["dport"],
        "dport": orig["sport"],
    }
    made = np.zeros(1, ENTRY)
    for name, value in {**DEFAULTS, "event": event, **fields}.items():
        made[name] = value
    for way, values in (("orig", orig), ("reply", reply)):
        for name, value in values.items():
            made[way][name] = value
    if "timeout_s" in fields:
        made["present"] |= np.uint32(Has.TIMEOUT)
    return made


def udp(number, event=Event.NEW, **fields):
    """The flow of that number."""
    return row(flow("10.0.0.1", "10.0.0.2", 1000 + number, 53), event=event, id=number, **fields)


def rows(*made):
    return np.concatenate(made) if made else np.zeros(0, ENTRY)
