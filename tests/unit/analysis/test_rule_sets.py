"""What sets answered to the rules of an end."""

import pytest

from tracer.analysis.rule_sets import set_lookups
from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.model import Conntrack, Packet
from tracer.analysis.ruleset.read import Reader, Texts

SAVE = """*filter
:FORWARD ACCEPT [0:0]
:A - [0:0]
-A FORWARD -m set --match-set friends src -j A
-A A -m set ! --match-set ports src,dst -j DROP
COMMIT
"""
IPSETS = """create friends hash:ip family inet
add friends 10.0.0.1
create ports hash:ip,port family inet
add ports 10.0.0.1,tcp:80
"""
PACKET = Packet("ip", "10.0.0.1", "10.0.0.2", 17, 4000, 53, iif="a", oif="b", ct=Conntrack("new"))


def drop_of(ruleset):
    (end,) = evaluate(ruleset, "forward", PACKET).verdict.ends
    assert end.verdict == "drop"
    return end


def test_ipsets_of_the_rule_and_of_those_that_jumped_to_it():
    ruleset = Reader().read(Texts(iptables_legacy=SAVE, ipset=IPSETS))
    told = ["10.0.0.1 in friends", "10.0.0.1 . udp . 53 not in ports"]
    assert set_lookups(ruleset, drop_of(ruleset), PACKET) == told


@pytest.mark.parametrize("missing", ["saddr", "set"])
def test_what_is_not_known_is_left_out(missing):
    ruleset = Reader().read(Texts(iptables_legacy=SAVE, ipset=IPSETS))
    end = drop_of(ruleset)
    if missing == "set":
        ruleset = Reader().read(Texts(iptables_legacy=SAVE))
        assert set_lookups(ruleset, end, PACKET) == []
    else:
        assert set_lookups(ruleset, end, Packet("ip")) == []


def test_a_map_of_verdicts():
    nft = (
        b'{"nftables":[{"table":{"family":"ip","name":"t","handle":1}},'
        b'{"map":{"family":"ip","table":"t","name":"ends","type":["ipv4_addr","inet_proto",'
        b'"inet_service"],"map":"verdict","handle":2,"elem":[[{"concat":["10.0.0.2","udp",53]},'
        b'{"drop":null}]]}},'
        b'{"chain":{"family":"ip","table":"t","name":"c","handle":3,"type":"filter",'
        b'"hook":"forward","prio":0,"policy":"accept"}},'
        b'{"rule":{"family":"ip","table":"t","chain":"c","handle":4,"expr":[{"vmap":{"key":'
        b'{"concat":[{"payload":{"protocol":"ip","field":"daddr"}},{"meta":{"key":"l4proto"}},'
        b'{"payload":{"protocol":"th","field":"dport"}}]},"data":"@ends"}}]}}]}'
    )
    ruleset = Reader().read(Texts(nft=nft))
    assert set_lookups(ruleset, drop_of(ruleset), PACKET) == ["10.0.0.2 . udp . 53 in ends"]
