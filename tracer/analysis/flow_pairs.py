"""Which two flows are one connection, and at which of its ends it is counted.

A packet from one pod of the node to another is counted at both. A connection takes the counts of
the client's end, if that is counted here, else the server's, so that sums have each packet once.
Who is the client conntrack's entry tells; without one, of ICMP the type, else the higher port:
whatever both ends see alike, in each interval anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.addresses import MAPPED, address_bytes
from tracer.analysis.connections import hashed_end, hashed_ends, hashed_way, last_of, mixed
from tracer.analysis.flow_key import REQUEST_OF
from tracer.analysis.flows import place_codes
from tracer.analysis.packet import ETH_P_IP, ETH_P_IPV6

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracer.analysis.connections import Hashes, Linked, Rows
    from tracer.analysis.selection import PodSelection
    from tracer.model import Node

_EGRESS, _INGRESS = 1, 2
_KIND_BITS = np.uint64(16)
_MULTICAST4, _MULTICAST6 = 224, 0xFF


@dataclass(frozen=True, slots=True)
class Pairs:
    """n connections, by the rows of their flows."""

    keys: np.ndarray
    """(n,) flow_key: what the client sends, as it looks where the connection is counted."""
    there: Rows
    """(n,): what the client sent; -1: nothing of it was seen. `back`: what it was answered."""
    back: Rows
    far_there: Rows
    """(n,): the same packets at the other end, if that is counted here too, or -1."""
    far_back: Rows
    both_here: NDArray[np.bool_]
    """(n,): counted at the client's end, though the server's packets are counted here too."""
    untold: Rows
    """Flows that only say that something was sent again: no end counts their packets."""


def here(node: Node, selection: PodSelection, waiting: np.ndarray) -> Hashes:
    """(k,) hashes of the addresses whose packets are counted at their own end, on this node.

    `waiting` is (w,) flow_key of flows at places that nobody has named yet.
    """
    texts = {
        address
        for pod in node.pods.values()
        if not pod.host_network and (selection.everything or selection.matches(pod))
        for address in pod.addresses
    }
    if selection.everything:
        texts |= {
            address
            for device in node.devices.values()
            if device.netns != node.netns
            for address in device.addresses
        }
    raw = np.frombuffer(b"".join(map(address_bytes, texts)), np.uint8).reshape(-1, 16)
    sends = waiting["direction"] == _EGRESS
    flow = waiting["tuple"]
    own = np.where(sends[:, np.newaxis], flow["saddr"], flow["daddr"])
    both = np.concatenate((raw, own))
    return hashed_end(both, np.zeros(len(both), np.uint16))


def pair(
    keys: np.ndarray, retransmits: np.ndarray, linked: Linked, entries: np.ndarray, own: Hashes
) -> Pairs:
    """(m,) flow_key, each once, as connections; `own` as `here` has it.

    `retransmits` (m,) are those that each flow knows of, `entries` those that `linked` is about.
    """
    forward = _from_client(keys["tuple"], linked)
    code = _codes(keys, forward)
    connection = np.where(
        (linked.flow_id > 0) & (_request(keys["tuple"]) < 0), linked.flow_id, code
    )
    at_client = (keys["direction"] == _EGRESS) == forward
    client, server = _hosts(keys["tuple"], forward, linked, entries)
    near = at_client | ~np.isin(client, own)
    untold = ~near & (retransmits > 0) & ~np.isin(connection, connection[near])
    rows = np.flatnonzero(near | untold)
    group = mixed(mixed(code) + place_codes(keys)) ^ at_client.astype(np.uint64)
    distinct, number = np.unique(group[rows], return_inverse=True)
    there, back = (
        _slots(rows, number.ravel(), len(distinct), forward[rows] == way) for way in (True, False)
    )
    far = np.flatnonzero(~near & ~untold)
    counted = np.where(there >= 0, there, back)
    number = last_of(connection[counted], connection[far])
    far_there, far_back = (
        _slots(far, number, len(distinct), (number >= 0) & (forward[far] == way))
        for way in (True, False)
    )
    told = keys[counted]
    told[there < 0] = _turned(told[there < 0])
    both_here = (at_client & np.isin(server, own))[counted]
    return Pairs(told, there, back, far_there, far_back, both_here, np.flatnonzero(untold))


def _slots(rows: Rows, number: Rows, count: int, where: NDArray[np.bool_]) -> Rows:
    """(count,): which of the `rows` has each number, of those `where`; -1: none."""
    slots = np.full(count, -1)
    slots[number[where]] = rows[where]
    return slots


def _from_client(flow: np.ndarray, linked: Linked) -> NDArray[np.bool_]:
    """(m,): whether who opened the connection sends."""
    source, goal = hashed_ends(flow)
    # Of equal ports any order will do that does not change.
    by_port = (flow["sport"] > flow["dport"]) | (flow["sport"] == flow["dport"]) & (source < goal)
    forward = np.where(linked.entry >= 0, ~linked.reply, by_port | _to_many(flow["daddr"]))
    request = _request(flow)
    asks = (request == flow["sport"]) | _to_many(flow["daddr"])
    return np.where(request >= 0, asks, forward | ~_has_addresses(flow))


def _request(flow: np.ndarray) -> NDArray[np.int64]:
    """(m,): of ICMP the type, of an answer that of what it answers; else -1."""
    found = np.full(len(flow), -1)
    for protocol, requests in REQUEST_OF.items():
        rows = np.flatnonzero((flow["protocol"] == protocol) & _has_addresses(flow))
        types = np.arange(1 << 8)
        types[list(requests)] = list(requests.values())
        found[rows] = types[flow["sport"][rows] & 0xFF]
    return found


def _has_addresses(flow: np.ndarray) -> NDArray[np.bool_]:
    return np.isin(flow["ethertype"], (ETH_P_IP, ETH_P_IPV6))


def _to_many(address: np.ndarray) -> NDArray[np.bool_]:
    """(m,): which of (m, 16) addresses are multicast, or the broadcast to all."""
    v4 = (address[:, :12] == np.frombuffer(MAPPED, np.uint8)).all(axis=1)
    return np.where(v4, address[:, 12] >= _MULTICAST4, address[:, 0] == _MULTICAST6)


def _codes(keys: np.ndarray, forward: NDArray[np.bool_]) -> Hashes:
    """(m,): the same for both directions at a place; without addresses none has another one."""
    flow = keys["tuple"]
    source, goal = hashed_ends(flow)
    kind = flow["ethertype"].astype(np.uint64) << _KIND_BITS | flow["protocol"]
    request = _request(flow)
    # An answer to all answers nobody.
    asked = np.where(forward, flow["sport"], request)
    icmp = np.where(request >= 0, asked << 8 | flow["dport"] & 0xFF, 0).astype(np.uint64)
    kind = (kind << _KIND_BITS | icmp) << _KIND_BITS
    kind |= np.where(_has_addresses(flow), 0, keys["direction"]).astype(np.uint64)
    return hashed_way(np.where(forward, source, goal), np.where(forward, goal, source), kind)


def _hosts(
    flow: np.ndarray, forward: NDArray[np.bool_], linked: Linked, entries: np.ndarray
) -> tuple[Hashes, Hashes]:
    """(m,) hashes of who opened and who answers, beyond NAT where it is known; 0: no address."""
    known = np.flatnonzero((linked.entry >= 0) & (_request(flow) < 0))
    no_port = np.zeros(len(flow), np.uint16)
    hosts = []
    for own, other, tuple_name in (("saddr", "daddr", "orig"), ("daddr", "saddr", "reply")):
        address = np.where(forward[:, np.newaxis], flow[own], flow[other])
        address[known] = entries[tuple_name]["saddr"][linked.entry[known]]
        hosts.append(np.where(_has_addresses(flow), hashed_end(address, no_port), np.uint64(0)))
    return hosts[0], hosts[1]


def _turned(keys: np.ndarray) -> np.ndarray:
    """What would be answered: ends and directions exchanged."""
    turned: np.ndarray = keys.copy()
    flow, before = turned["tuple"], keys["tuple"]
    request = _request(before)
    ports = request < 0
    flow["saddr"], flow["daddr"] = before["daddr"], before["saddr"]
    flow["sport"] = np.where(ports, before["dport"], request)
    flow["dport"] = np.where(ports, before["sport"], before["dport"])
    other = np.array([0, _INGRESS, _EGRESS], keys["direction"].dtype)
    turned["direction"] = other[keys["direction"]]
    return turned
