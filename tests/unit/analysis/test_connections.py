"""Flows that are one connection find each other."""

import numpy as np

from tracer.analysis.addresses import address_bytes
from tracer.analysis.connections import handshakes_ns
from tracer.layout import layout


def keys_of(*flows):
    """(netns, direction, source, destination, sport, dport) each."""
    keys = np.zeros(len(flows), layout().structs["flow_key"])
    for key, (netns, direction, source, destination, sport, dport) in zip(keys, flows, strict=True):
        key["netns"], key["direction"], key["ifindex"] = netns, direction, 2
        key["tuple"]["ethertype"], key["tuple"]["protocol"] = 0x0800, 6
        key["tuple"]["saddr"] = np.frombuffer(address_bytes(source), np.uint8)
        key["tuple"]["daddr"] = np.frombuffer(address_bytes(destination), np.uint8)
        key["tuple"]["sport"], key["tuple"]["dport"] = sport, dport
    return keys


A, B = "10.244.0.5", "10.244.0.6"


def test_syn_and_its_answer_are_a_handshake_at_each_device():
    keys = keys_of(
        (7, 1, A, B, 4000, 80),
        (7, 2, B, A, 80, 4000),
        (8, 2, A, B, 4000, 80),
        (8, 1, B, A, 80, 4000),
        (7, 1, A, B, 4001, 80),
        (7, 2, B, A, 81, 4001),
        (7, 1, A, B, 4002, 80),
        (7, 2, B, A, 80, 4002),
    )
    syn_ns = np.array([100, 150, 110, 130, 200, 210, 300, 0], np.uint64)
    assert handshakes_ns(keys, syn_ns).tolist() == [50, 50, 20, 20, 0, 0, 0, 0]


def test_many_connections_keep_theirs():
    rng = np.random.default_rng(5)
    ports = rng.permutation(60000)[:2000].tolist()
    there = keys_of(*((7, 1, A, B, port, 80) for port in ports))
    back = keys_of(*((7, 2, B, A, 80, port) for port in ports))
    keys = np.concatenate((there, back))
    begin = rng.integers(1, 10**9, 2000).astype(np.uint64)
    syn_ns = np.concatenate((begin, begin + np.arange(1, 2001, dtype=np.uint64)))
    mixed = rng.permutation(len(keys))
    found = np.empty(len(keys), np.uint64)
    found[mixed] = handshakes_ns(keys[mixed], syn_ns[mixed])
    assert found.tolist() == [*range(1, 2001)] * 2


def test_no_connection_opened_is_no_handshake():
    assert handshakes_ns(keys_of((7, 1, A, B, 1, 2)), np.zeros(1, np.uint64)).tolist() == [0]
    assert len(handshakes_ns(keys_of(), np.zeros(0, np.uint64))) == 0
