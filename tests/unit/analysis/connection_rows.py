"""Flow keys and what the kernel tells of their connections, as rows, for tests."""

import numpy as np

from tracer.analysis.addresses import address_bytes
from tracer.analysis.connections import Details, no_details
from tracer.layout import layout

STRUCTS = layout().structs
A, B, VIP, NODE_ADDRESS = "10.244.0.5", "10.244.0.6", "10.96.0.10", "10.244.0.1"
OUT, IN = 1, 2
TCP, ICMP = 6, 1


def fill(flow, source, destination, sport, dport, protocol=TCP):
    flow["ethertype"], flow["protocol"] = 0x0800, protocol
    flow["saddr"] = np.frombuffer(address_bytes(source), np.uint8)
    flow["daddr"] = np.frombuffer(address_bytes(destination), np.uint8)
    flow["sport"], flow["dport"] = sport, dport


def keys_of(*flows):
    """(netns, direction, source, destination, sport, dport[, protocol]) each."""
    keys = np.zeros(len(flows), STRUCTS["flow_key"])
    for key, (netns, direction, *flow) in zip(keys, flows, strict=True):
        key["netns"], key["direction"], key["ifindex"] = netns, direction, 2
        fill(key["tuple"], *flow)
    return keys


def entry_of(orig, reply, **fields):
    """A conntrack entry, as a row."""
    entry = np.zeros(1, STRUCTS["conntrack"])
    fill(entry["orig"][0], *orig)
    fill(entry["reply"][0], *reply)
    for name, value in {"present": 1, **fields}.items():
        entry[name] = value
    return entry


def details_of(*entries):
    nothing = no_details()
    return Details(np.concatenate(entries), nothing.transit_keys, nothing.transits)


def transit_of(keys, *rows):
    """(sum, maximum, {bucket: count}) each."""
    transits = np.zeros(len(rows), STRUCTS["flow_transit"])
    for transit, (sum_ns, max_ns, buckets) in zip(transits, rows, strict=True):
        transit["sum_ns"], transit["max_ns"] = sum_ns, max_ns
        for bucket, count in buckets.items():
            transit["buckets"][bucket] = count
    return Details(np.zeros(0, STRUCTS["conntrack"]), keys, transits)
