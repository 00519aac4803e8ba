"""Devices of base chains, which come from another listing than the rules."""

from dataclasses import replace

import pytest

from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.hooks import base_chains
from tracer.analysis.ruleset.model import Conntrack, Packet
from tracer.analysis.ruleset.read import Reader, Texts

# nft 1.0.6 lists no device here
NFT = b"""{"nftables": [{"metainfo": {"json_schema_version": 1}},
{"table": {"family": "netdev", "name": "t", "handle": 1}},
{"chain": {"family": "netdev", "table": "t", "name": "c", "handle": 1, "type": "filter",
 "hook": "ingress", "prio": 0, "policy": "accept"}},
{"rule": {"family": "netdev", "table": "t", "chain": "c", "handle": 2, "expr": [{"match": {"op":
 "==", "left": {"payload": {"protocol": "arp", "field": "operation"}}, "right": "request"}},
 {"drop": null}]}},
{"table": {"family": "inet", "name": "u", "handle": 2}},
{"chain": {"family": "inet", "table": "u", "name": "c", "handle": 1, "type": "filter",
 "hook": "ingress", "prio": 0, "policy": "drop"}}]}"""
CHAINS = """table netdev t {
\tchain c {
\t\ttype filter hook ingress devices = { "eth0", "eth1" } priority filter; policy accept;
\t}
}
table inet u {
\tchain c {
\t\ttype filter hook ingress device "eth1" priority filter; policy drop;
\t}
}
"""
ARP = Packet("arp", "10.0.0.1", "10.0.0.2", iif="eth0", arp_operation=1, ct=Conntrack("invalid"))


@pytest.mark.parametrize(
    ("device", "family", "tables"),
    [("eth0", "ip", ["t"]), ("eth1", "ip", ["u", "t"]), ("eth1", "arp", ["t"]), ("eth2", "ip", [])],
)
def test_chains_of_a_device(device, family, tables):
    """A chain of inet is not for ARP."""
    ruleset = Reader().read(Texts(nft=NFT, chains=CHAINS))
    assert [chain.table for chain in base_chains(ruleset, "ingress", family, device)] == tables


def test_without_that_listing_it_may_be_any_device():
    ruleset = Reader().read(Texts(nft=NFT))
    assert len(base_chains(ruleset, "ingress", "ip", "eth2")) == 2


@pytest.mark.parametrize(("operation", "verdict"), [(1, "drop"), (2, "accept")])
def test_fields_of_arp(operation, verdict):
    ruleset = Reader().read(Texts(nft=NFT, chains=CHAINS))
    answer = evaluate(ruleset, "ingress", replace(ARP, arp_operation=operation))
    assert answer.certain
    assert answer.verdict.verdict == verdict
