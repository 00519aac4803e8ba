"""Readings that follow each other, of texts that are not of one moment."""

from tracer.analysis.ruleset.evaluate import count_before, was_replaced
from tracer.analysis.ruleset.read import Reader, Texts

NFT = (
    b'{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}, '
    b'{"table": {"family": "ip", "name": "filter", "handle": 1}}, '
    b'{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, '
    b'"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}}]}'
)
SAVE = "*filter\n:FORWARD ACCEPT [0:0]\n{}COMMIT\n"


def test_a_table_that_only_one_of_both_tools_saw():
    """It was made between the calls of both: nft's listing is read as such, and later joined."""
    reader = Reader()
    for iptables in (SAVE.format(""), "", SAVE.format(""), ""):
        ruleset = reader.read(Texts(nft=NFT, iptables=iptables))
        (table,) = ruleset.tables.values()
        assert table.key == ("ip", "filter", False)
        assert table.chains["FORWARD"].base.hook == "forward"


def legacy(*lines):
    return Reader().read(Texts(iptables_legacy=SAVE.format("".join(f"{one}\n" for one in lines))))


def test_what_a_counter_stood_at_before():
    before = legacy("[4:9] -A FORWARD -s 10.0.0.1/32 -j DROP", "[2:2] -A FORWARD -j DROP")
    after = legacy("[1:1] -A FORWARD -j LOG", "[9:9] -A FORWARD -s 10.0.0.1/32 -j DROP")
    new, old = after.tables["ip", "filter", True].chains["FORWARD"].rules
    assert count_before(before, after, old) == 4
    assert count_before(before, after, new) == 0
    assert count_before(legacy(), after, old) == 0
    assert count_before(Reader().read(Texts()), after, old) == 0


NFT_RULE = (
    b', {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": %d, "expr": '
    b'[{"counter": {"packets": %d, "bytes": 9}}, {"drop": null}]}}]}'
)


def counting(handle, packets):
    return Reader().read(Texts(nft=NFT.removesuffix(b"]}") + NFT_RULE % (handle, packets)))


def test_a_rule_that_took_the_place_of_one_alike():
    """Its counter began anew: that it stands at 0 says nothing of what came before."""
    now = counting(7, 0)
    (rule,) = now.tables["ip", "filter", False].chains["FORWARD"].rules
    assert not was_replaced(counting(7, 0), now, rule)
    assert was_replaced(counting(6, 5), now, rule)
    assert was_replaced(counting(7, 5), now, rule), "set back"
    assert not was_replaced(Reader().read(Texts(nft=NFT)), now, rule), "it is new"
    old, new = legacy("[4:9] -A FORWARD -j DROP"), legacy("[0:0] -A FORWARD -j DROP")
    (rule,) = new.tables["ip", "filter", True].chains["FORWARD"].rules
    assert was_replaced(old, new, rule)
    assert not was_replaced(new, new, rule)
