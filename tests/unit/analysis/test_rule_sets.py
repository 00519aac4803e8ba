"""What sets answered to the rules of an end."""

import pytest

from tracer.analysis.rule_sets import set_lookups, set_misses
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


POLICY = """*filter
:FORWARD ACCEPT [0:0]
:POD - [0:0]
:ALLOW - [0:0]
:INNER - [0:0]
:OTHER - [0:0]
-A FORWARD -j POD
-A POD -j ALLOW
-A POD -m mark ! --mark 0x1/0x1 -j DROP
-A ALLOW -p udp -m set --match-set friends src -m udp --dport {port} -j MARK --set-xmark 0x1/0x1
-A ALLOW -p udp -m set --match-set friends src -j DROP
-A ALLOW -p udp -m set --match-set friends src -j RETURN
-A ALLOW -p udp -m set ! --match-set strangers src -j ACCEPT
-A ALLOW -j INNER
-A INNER -p udp -m set --match-set ports src,dst -j ACCEPT
-A OTHER -p udp -m set --match-set friends src -j ACCEPT
COMMIT
"""
STRANGERS = "create strangers hash:ip family inet\nadd strangers 10.0.0.3\n"
STRANGER = Packet(
    "ip", "10.0.0.3", "10.0.0.2", 17, 4000, 53, iif="a", oif="b", mark=0, ct=Conntrack("new")
)


@pytest.mark.parametrize(("port", "sources"), [(53, True), (80, False)])
def test_the_set_that_alone_kept_a_rule_from_allowing(port, sources):
    """Not that of a rule which does not allow, which asks for another port, or was not met."""
    save = POLICY.format(port=port)
    ruleset = Reader().read(Texts(iptables_legacy=save, ipset=IPSETS + STRANGERS))
    (end,) = evaluate(ruleset, "forward", STRANGER).verdict.ends
    assert (end.verdict, end.rule.chain) == ("drop", "POD")
    told = [(miss.value, miss.name, miss.side) for miss in set_misses(ruleset, end, STRANGER)]
    wanted = [("10.0.0.3", "friends", "sources")] if sources else []
    assert told == [*wanted, ("10.0.0.3 . udp . 53", "ports", "sources")]
    # What is not known of the packet is not said to be missing.
    assert not list(set_misses(ruleset, end, Packet("ip", protocol=17, mark=0)))
