"""What a ruleset says to one packet: each rule of netfilter's that is easy to get wrong."""

import json
from dataclasses import replace

import pytest

from tracer.analysis.ruleset.evaluate import MAX_CANDIDATES, evaluate, moved
from tracer.analysis.ruleset.model import Conntrack, Host, Packet, Tuple
from tracer.analysis.ruleset.read import Reader, Texts

NEW = Conntrack("new", frozenset(), "original", 0)
PACKET = Packet(
    "ip", "10.1.0.2", "10.96.0.10", 6, 40000, 80, tcp_flags=2, iif="eth0", oif="", mark=0, ct=NEW
)
HOST = Host(frozenset({"10.1.0.1"}))


def xt(*lines, table="filter", backend="iptables", **more):
    """A ruleset of iptables: chains of `lines` that are not builtin are declared."""
    builtin = {"INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"}
    chains = sorted({line.split()[1] for line in lines})
    head = [f":{name} {'ACCEPT' if name in builtin else '-'} [0:0]" for name in chains]
    text = "\n".join([f"*{table}", *head, *(f"[0:0] {line}" for line in lines), "COMMIT", ""])
    return Reader().read(Texts(**{backend: text}, **more))


def nft(*objects, family="ip", name="t", handle=1, flags=None):
    """A ruleset of nft; objects are chains (name, base, rules), sets or maps as JSON."""
    head = {"family": family, "name": name, "handle": handle}
    listed = [{"table": {**head, **({"flags": flags} if flags else {})}}]
    number = 10
    for thing in objects:
        if isinstance(thing, dict):
            ((kind, body),) = thing.items()
            listed.append({kind: {"family": family, "table": name, **body}})
            continue
        chain, base, rules = thing
        number += 1
        place = {"family": family, "table": name, "handle": number}
        listed.append({"chain": {**place, "name": chain, **(base or {})}})
        for expressions in rules:
            number += 1
            rule = {**place, "handle": number, "chain": chain, "expr": expressions}
            listed.append({"rule": rule})
    return listed


def read_nft(*tables):
    whole = {"nftables": [{"metainfo": {"version": "1.0.6"}}, *(o for t in tables for o in t)]}
    return Reader().read(Texts(nft=json.dumps(whole).encode()))


def base(hook="forward", priority=0, policy="accept", kind="filter"):
    return {"type": kind, "hook": hook, "prio": priority, "policy": policy}


def match(left, right, operator="=="):
    protocol, _, field = left.partition(" ")
    key = {protocol: {"key": field}} if protocol in {"meta", "ct"} else None
    key = key or {"payload": {"protocol": protocol, "field": field}}
    return {"match": {"op": operator, "left": key, "right": right}}


DROP, ACCEPT = {"drop": None}, {"accept": None}


def said(ruleset, hook="forward", packet=PACKET, host=HOST):
    answer = evaluate(ruleset, hook, packet, host)
    assert answer.certain
    return answer.verdict.verdict


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("-s 10.1.0.0/16 -j DROP", "drop"),
        ("! -s 10.1.0.0/16 -j DROP", "accept"),
        ("-s 10.0.0.2/255.0.0.255 -j DROP", "drop"),
        ("-p tcp -m tcp --dport 80:90 -j REJECT --reject-with tcp-reset", "reject"),
        ("-p tcp -m tcp ! --dport 80 -j DROP", "accept"),
        ("-p udp -m udp ! --dport 80 -j DROP", "accept"),
        ("-p tcp -m multiport --dports 22,80 -j DROP", "drop"),
        ("-p tcp -m multiport --ports 40000 -j DROP", "drop"),
        ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", "drop"),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j DROP", "accept"),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP", "drop"),
        ("-m conntrack ! --ctstate SNAT -j DROP", "drop"),
        ("-m state --state NEW -j NFQUEUE --queue-num 1", "queue"),
        ("-m mark --mark 0x4000/0x4000 -j DROP", "accept"),
        ("-m mark ! --mark 0x4000/0x4000 -j DROP", "drop"),
        ("-m iprange --src-range 10.1.0.1-10.1.0.9 -j DROP", "drop"),
        ("-m addrtype --src-type LOCAL -j DROP", "accept"),
        ("-i eth+ -j DROP", "drop"),
        ("! -i eth0 -j DROP", "accept"),
        ('-m comment --comment "-j ACCEPT, he said" -j DROP', "drop"),
        ("-m recent --set --name x --rsource -j DROP", "drop"),
        ("-j LOG", "accept"),
        ("-j RETURN", "accept"),
    ],
)
def test_a_rule_of_iptables(rule, verdict):
    assert said(xt(f"-A FORWARD {rule}")) == verdict


def test_the_path_and_what_ended_it():
    ruleset = xt(
        "-A FORWARD -j other", "-A FORWARD -j first", "-A first -g second", "-A first -j DROP",
        "-A second -p tcp -m mark --mark 0x1 -j DROP", "-A second -d 10.96.0.10/32 -j DROP",
        "-A other -m mark --mark 0x1 -j DROP",
    )  # fmt: skip
    answer = evaluate(ruleset, "forward", PACKET, HOST)
    assert answer.certain
    assert (answer.verdict.verdict, answer.verdict.rule.text) == (
        "drop",
        "-A second -d 10.96.0.10/32 -j DROP",
    )
    assert [rule.text for rule in answer.verdict.path] == [
        "-A FORWARD -j first",
        "-A first -g second",
    ]
    walked = [passed.verdict for passed in answer.verdict.ends[0].walk]
    assert walked == ["jump other", "jump first", "goto second", "drop"]


def test_a_goto_does_not_come_back_and_a_jump_does():
    lines = "-A a -s 192.0.2.1/32 -j ACCEPT", "-A FORWARD -j DROP"
    assert said(xt("-A FORWARD -g a", *lines)) == "accept"
    assert said(xt("-A FORWARD -j a", *lines)) == "drop"


def test_chance_makes_candidates_with_what_each_assumes():
    ruleset = xt(
        "-A FORWARD -m statistic --mode random --probability 0.5 -j one",
        "-A FORWARD -m statistic --mode random --probability 0.5 -j two",
        "-A one -j DROP", "-A two -j REJECT --reject-with icmp-port-unreachable",
    )  # fmt: skip
    answer = evaluate(ruleset, "forward", PACKET, HOST)
    assert not answer.certain
    assert [one.verdict for one in answer.candidates] == ["drop", "reject", "accept"]
    chance = "-m statistic --mode random --probability 0.5"
    assert answer.unknown == (chance,)
    assert answer.candidates[0].assumed == (f"yes: {chance}",)
    assert answer.candidates[2].assumed == (f"no: {chance}", f"no: {chance}")


def test_what_is_unknown_but_changes_nothing_makes_no_candidate():
    limit = "-m limit --limit 5/min"
    ruleset = xt(
        f"-A FORWARD {limit} -j LOG", f"-A FORWARD {limit} -j ACCEPT", "-A FORWARD -j DROP"
    )
    answer = evaluate(ruleset, "forward", PACKET, HOST)
    assert [one.verdict for one in answer.candidates] == ["accept", "drop"]


def test_what_is_not_known_of_a_packet_is_asked_once():
    """Two questions about one mark are not two unknowns."""
    mark = "-m mark --mark 0x4000/0x4000"
    ruleset = xt(f"-A FORWARD {mark} -j one", f"-A FORWARD {mark} -j DROP", "-A one -j RETURN")
    answer = evaluate(ruleset, "forward", replace(PACKET, mark=None), HOST)
    assert [one.verdict for one in answer.candidates] == ["drop", "accept"]
    assert said(ruleset, packet=replace(PACKET, mark=0x4000)) == "drop"


def test_too_many_ways_are_cut_and_say_so():
    lines = [
        f"-A FORWARD -m statistic --mode random --probability 0.5 -p tcp -m tcp --dport 80:{port} "
        "-j DROP"
        for port in range(80, 80 + 2 * MAX_CANDIDATES)
    ]
    answer = evaluate(xt(*lines), "forward", PACKET, HOST)
    assert answer.cut
    assert not answer.certain
    assert len(answer.candidates) == MAX_CANDIDATES


def test_a_rule_ends_where_the_packet_has_not_what_it_asks():
    """No ports, no mark of a connection: whether asked for or against, it does not match."""
    icmp = replace(PACKET, protocol=1, sport=None, dport=None, tcp_flags=None, icmp_type=8)
    for rule in (
        [match("tcp dport", 80, "!="), DROP],
        [match("ip6 saddr", "fd00::1", "!="), DROP],
        [match("ct mark", 1, "!="), DROP],
        [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}}, DROP],
    ):
        ruleset = read_nft(nft(("c", base(), [rule])))
        packet = replace(icmp, ct=Conntrack("invalid"))
        assert said(ruleset, packet=packet) == "accept"


def test_marks_that_rules_set_are_seen_by_later_rules_and_chains():
    ruleset = xt(
        "-A PREROUTING -j MARK --set-xmark 0x4000/0x4000",
        "-A PREROUTING -j CONNMARK --save-mark --nfmask 0xffff --ctmask 0xffff",
        "-A PREROUTING -m connmark --mark 0x4000 -j MARK --set-xmark 0x1/0xffffffff",
        "-A PREROUTING -m mark --mark 0x1 -j DROP",
        table="mangle",
    )
    answer = evaluate(ruleset, "prerouting", PACKET, HOST)
    assert answer.verdict.verdict == "drop"
    assert (answer.verdict.packet.mark, answer.verdict.packet.ct.mark) == (1, 0x4000)


def test_accept_ends_one_base_chain_and_drop_the_hook():
    tables = [
        nft(("early", base(priority=-10), [[ACCEPT]]), family="inet", name="a", handle=1),
        nft(("late", base(priority=10), [[DROP]]), name="b", handle=2),
    ]
    answer = evaluate(read_nft(*tables), "forward", PACKET, HOST)
    assert [(end.base.name, end.verdict) for end in answer.verdict.ends] == [
        ("early", "accept"),
        ("late", "drop"),
    ]
    assert answer.verdict.chain.name == "late"


def test_of_one_priority_the_kernel_calls_first_what_came_last():
    tables = [nft(("c", base(), []), name=f"t{n}", handle=n) for n in (1, 2)]
    ends = evaluate(read_nft(*tables), "forward", PACKET, HOST).verdict.ends
    assert [end.base.table for end in ends] == ["t2", "t1"]


def test_what_comes_first_of_both_backends_is_not_told():
    """Where it matters there are two candidates; where one rule decides anyway, one."""
    drop, reject = "-A FORWARD -j DROP", "-A FORWARD -j REJECT --reject-with tcp-reset"

    def text(rule):
        return f"*filter\n:FORWARD ACCEPT [0:0]\n{rule}\nCOMMIT\n"

    both = Reader().read(Texts(iptables=text(drop), iptables_legacy=text(reject)))
    answer = evaluate(both, "forward", PACKET, HOST)
    assert [one.verdict for one in answer.candidates] == ["drop", "reject"]
    assert "comes first" in answer.unknown[0]
    for rule, verdict in ((drop, "drop"), ("-A FORWARD -j ACCEPT", "accept")):
        one = Reader().read(Texts(iptables=text("-A FORWARD"), iptables_legacy=text(rule)))
        assert said(one) == verdict


def test_nothing_hooked_in_is_accepted():
    answer = evaluate(read_nft(nft(("c", None, [[DROP]]))), "forward", PACKET, HOST)
    assert answer.certain
    assert (answer.verdict.verdict, answer.verdict.rule, answer.verdict.chain) == (
        "accept",
        None,
        None,
    )


def test_a_dormant_table_is_not_asked_and_broken_flags_are_told():
    chain = "c", base(), [[DROP]]
    assert said(read_nft(nft(chain, flags=["dormant"]))) == "accept"
    # nft 1.0.6 prints other memory, as the table's own name.
    broken = read_nft(nft(chain, flags="t"))
    assert said(broken) == "drop"
    assert "dormant" in broken.warnings[0]
    harmless = read_nft(nft(("c", base(), [[{"counter": {"packets": 1, "bytes": 2}}]]), flags="t"))
    assert harmless.warnings == ()


def test_a_listing_that_breaks_off_makes_nothing_certain():
    """nft 1.0.6 stops where the flags of a table are not text."""
    whole = {"nftables": [{"metainfo": {}}, *nft(("c", base(), [])), *nft(name="u", handle=2)]}
    text = json.dumps(whole)
    broken = text[: text.index('"name": "u"')] + '"name": "u", "handle": 2, "flags": '
    ruleset = Reader().read(Texts(nft=broken.encode()))
    assert [key[1] for key in ruleset.tables] == ["t"]
    assert "breaks off" in ruleset.warnings[0]
    assert not evaluate(ruleset, "forward", PACKET, HOST).certain
    assert Reader().read(Texts(nft=text.encode())).warnings == ()


def test_conntrack_has_not_seen_what_raw_sees():
    ruleset = xt("-A PREROUTING -m conntrack --ctstate INVALID -j DROP", table="raw")
    assert said(ruleset, "prerouting") == "drop"
    assert said(ruleset, "prerouting", replace(PACKET, iif="lo")) == "accept"


# NAT


DNAT = (
    "-A PREROUTING -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.0.9:81"
)


def test_a_first_packet_meets_nat_and_goes_on_with_another_address():
    verdict = evaluate(xt(DNAT, table="nat"), "prerouting", PACKET, HOST).verdict
    assert (verdict.packet.daddr, verdict.packet.dport) == ("10.1.0.9", 81)
    assert verdict.packet.ct.status == {"dnat"}
    assert verdict.rule.text == DNAT


def test_later_packets_meet_no_nat_chain_and_are_translated_all_the_same():
    ct = Conntrack(
        "established", frozenset({"confirmed", "seen-reply", "dnat"}), "original", 0,
        original=Tuple("10.1.0.2", "10.96.0.10", 40000, 80),
        reply=Tuple("10.1.0.9", "10.1.0.2", 81, 40000),
    )  # fmt: skip
    ruleset = xt(DNAT, table="nat")
    verdict = evaluate(ruleset, "prerouting", replace(PACKET, ct=ct), HOST).verdict
    assert verdict.ends == ()
    assert (verdict.packet.daddr, verdict.packet.dport) == ("10.1.0.9", 81)
    back = replace(PACKET, saddr="10.1.0.9", daddr="10.1.0.2", sport=81, dport=40000)
    answer = replace(back, ct=replace(ct, direction="reply"))
    verdict = evaluate(ruleset, "postrouting", answer, HOST).verdict
    assert (verdict.packet.saddr, verdict.packet.sport) == ("10.96.0.10", 80)


def test_whether_a_packet_is_the_first_may_be_unknown():
    unsure = replace(PACKET, ct=replace(NEW, status=None))
    answer = evaluate(xt(DNAT, table="nat"), "prerouting", unsure, HOST)
    assert answer.unknown == ("first packet of its connection",)
    assert len(answer.candidates) == 2


def test_dnat_to_where_it_goes_already_is_no_dnat():
    rule = "-A PREROUTING -j DNAT --to-destination 10.96.0.10"
    verdict = evaluate(xt(rule, table="nat"), "prerouting", PACKET, HOST).verdict
    assert verdict.packet.ct.status == frozenset()


# Sets and maps


def vmap(data, *fields):
    keys = [match(field, 0)["match"]["left"] for field in fields]
    key = {"concat": keys} if len(keys) > 1 else keys[0]
    return {"vmap": {"key": key, "data": data}}


def test_a_verdict_map_with_intervals_and_a_catch_all():
    elements = [
        [{"concat": ["10.96.0.10", {"range": [1, 1024]}]}, {"jump": {"target": "low"}}],
        [{"elem": {"val": {"concat": ["10.96.0.10", 8080]}, "comment": "x"}}, {"accept": None}],
        ["*", {"drop": None}],
    ]
    kind = {"type": ["ipv4_addr", "inet_service"], "map": "verdict", "handle": 9}
    rule = [vmap("@m", "ip daddr", "tcp dport")]
    ruleset = read_nft(
        nft(
            {"map": {**kind, "name": "m", "flags": ["interval"], "elem": elements}},
            ("c", base(), [rule]), ("low", None, [[{"reject": None}]]),
        )
    )  # fmt: skip
    assert said(ruleset) == "reject"
    assert said(ruleset, packet=replace(PACKET, dport=8080)) == "accept"
    assert said(ruleset, packet=replace(PACKET, dport=9999)) == "drop"


def test_a_random_choice_makes_a_candidate_of_each_goal_and_no_other():
    numgen = {"numgen": {"mode": "random", "mod": 2, "offset": 0}}
    goals = {"set": [[n, {"goto": {"target": f"e{n}"}}] for n in (0, 1)]}
    chains = [(f"e{n}", None, [[DROP]]) for n in (0, 1)]
    ruleset = read_nft(nft(("c", base(), [[{"vmap": {"key": numgen, "data": goals}}]]), *chains))
    answer = evaluate(ruleset, "forward", PACKET, HOST)
    assert [one.rule.chain for one in answer.candidates] == ["e0", "e1"]


def test_a_set_that_packets_change_is_but_a_moment():
    kind = {"type": "ipv4_addr", "flags": ["timeout"], "timeout": 60, "elem": ["10.1.0.2"]}
    rule = [match("ip saddr", "@s"), DROP]
    ruleset = read_nft(nft({"set": {**kind, "name": "s", "handle": 9}}, ("c", base(), [rule])))
    answer = evaluate(ruleset, "forward", PACKET, HOST)
    assert not answer.certain
    assert answer.unknown == ("ip saddr @s",)


def test_two_unequals_of_neighbours_that_nft_may_have_made_one():
    rule = [match("tcp sport", 40000, "!="), match("tcp dport", 443, "!="), DROP]
    ruleset = read_nft(nft(("c", base(), [rule])))
    both = replace(PACKET, sport=1, dport=2)
    neither = replace(PACKET, dport=443)
    assert said(ruleset, packet=both) == "drop"
    assert said(ruleset, packet=neither) == "accept"
    assert not evaluate(ruleset, "forward", PACKET, HOST).certain


IPSETS = """create nets hash:net family inet hashsize 64 maxelem 65536
add nets 10.1.0.0/16
add nets 10.1.0.0/24 nomatch
create services hash:ip,port family inet hashsize 64 maxelem 65536 timeout 0 comment
add services 10.96.0.10,tcp:80 timeout 0 comment "a b"
create all list:set size 8
add all nets
add all services
create gone hash:ip family inet timeout 60
"""


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("-m set --match-set nets src", "accept"),
        ("-m set ! --match-set nets src", "drop"),
        ("-m set --match-set services dst,dst", "drop"),
        ("-m set --match-set services src,dst", "accept"),
        ("-m set --match-set all dst,dst", "drop"),
    ],
)
def test_ipsets(rule, verdict):
    assert said(xt(f"-A FORWARD {rule} -j DROP", ipset=IPSETS)) == verdict


@pytest.mark.parametrize("name", ["gone", "not-read"])
def test_an_ipset_that_expires_or_was_not_read_is_unknown(name):
    ruleset = xt(f"-A FORWARD -m set --match-set {name} src -j DROP", ipset=IPSETS)
    assert not evaluate(ruleset, "forward", PACKET, HOST).certain


def test_an_extension_that_is_not_modelled_is_never_a_yes_or_a_no():
    ruleset = xt("-A FORWARD -m u32 --u32 0x0=0x1 -j DROP", "-A FORWARD -j TARPIT")
    answer = evaluate(ruleset, "forward", PACKET, HOST)
    assert [one.verdict for one in answer.candidates] == ["drop", "unknown"]
    assert answer.unknown == ("-m u32 --u32 0x0=0x1",)


# Counters


def test_rules_that_counted():
    lines = "-A FORWARD -s 10.1.0.2/32 -j LOG", "-A FORWARD -s 10.1.0.2/32 -j LOG"
    before = xt(*lines)
    text = (
        "*filter\n:FORWARD ACCEPT [9:9]\n[3:120] -A FORWARD -j DROP\n"
        "[0:0] -A FORWARD -s 10.1.0.2/32 -j LOG\n[5:200] -A FORWARD -s 10.1.0.2/32 -j LOG\nCOMMIT\n"
    )
    after = Reader().read(Texts(iptables=text))
    found = [(one.rule.index, one.packets, one.bytes) for one in moved(before, after)]
    assert found == [(0, 3, 120), (2, 5, 200)]
    assert moved(after, after) == ()
    back = [(one.rule.index, one.packets) for one in moved(after, before)]
    assert back == []
