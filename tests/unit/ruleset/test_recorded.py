"""Rulesets of real nodes: every rule is understood, and shown as the tools show it."""

import re
from dataclasses import replace

import pytest

from tracer.analysis.ruleset.compile import steps
from tracer.analysis.ruleset.model import XT_LEGACY, XT_NFT
from tracer.analysis.ruleset.read import Reader
from tracer.analysis.ruleset.steps import Take, Unknowable

FOLDERS = (
    "iptables-mode-1.36.2-legacy-backend",
    "iptables-mode-1.36.2-nft-backend",
    "netpol-kube-router-2.11-nftables",
    "nftables-mode-1.36.2",
)
NOBODY_CAN_REPEAT = ("-m statistic", "-m recent --rcheck", "limit rate")


def rules(ruleset):
    return [
        rule
        for table in ruleset.tables.values()
        for chain in table.chains.values()
        for rule in chain.rules
    ]


def told_by_nft(text):
    """(family, table, handle) → rule, of `nft -a list ruleset`, without counts."""
    found = {}
    for line in text.splitlines():
        if table := re.match(r"table (\S+) (\S+) \{", line):
            place = table.groups()
        elif rule := re.match(r"\t\t(?!type )(.*) # handle (\d+)$", line):
            found[(*place, int(rule[2]))] = re.sub(r" packets \d+ bytes \d+", "", rule[1])
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_rule_is_understood(recorded, folder):
    every = rules(recorded(folder))
    assert len(every) > 60
    for rule in every:
        for step in steps(rule):
            assert not (isinstance(step, Take) and step.verdict == "unknown"), rule.text
            if isinstance(step, Unknowable):
                assert step.text.startswith(NOBODY_CAN_REPEAT), rule.text


@pytest.mark.parametrize("folder", FOLDERS)
def test_rules_read_as_nft_shows_them(recorded, recorded_folder, folder):
    told = told_by_nft((recorded_folder(folder) / "nft-a-ruleset.txt").read_text())
    ours = [rule for rule in rules(recorded(folder)) if rule.backend == "nft"]
    for rule in ours:
        assert rule.text == told[rule.family, rule.table, rule.handle]
    native = {place for place in told if place[1].startswith("kube-")}
    assert len(ours) == len(native)


@pytest.mark.parametrize("folder", FOLDERS)
def test_iptables_nft_rules_have_the_handles_of_nft(recorded, recorded_folder, folder):
    """Joined by their place in the chain: what both tools show must then agree."""
    told = told_by_nft((recorded_folder(folder) / "nft-a-ruleset.txt").read_text())
    ours = [rule for rule in rules(recorded(folder)) if rule.backend == XT_NFT]
    assert len(ours) > 60
    for rule in ours:
        shown = told[rule.family, rule.table, rule.handle]
        target = re.search(r"-j (\S+)", rule.text)
        if target and target[1] in {"ACCEPT", "DROP", "RETURN"}:
            assert shown.split()[-1] == target[1].lower()
        elif target and target[1] not in {"MARK", "MASQUERADE", "DNAT", "REJECT"}:
            assert shown.endswith(f"jump {target[1]}")
        for address in re.findall(r"-[sd] (\S+?)(?:/32|/128)? ", rule.text):
            assert address in shown


def test_both_backends_of_one_node_are_read(recorded):
    tables = recorded("iptables-mode-1.36.2-legacy-backend").tables
    legacy, nft = tables["ip", "nat", True], tables["ip", "nat", False]
    assert (legacy.backend, nft.backend) == (XT_LEGACY, XT_NFT)
    assert "KUBE-SERVICES" in legacy.chains
    assert "KUBE-SERVICES" not in nft.chains
    assert legacy.chains["POSTROUTING"].base.priority == 100
    assert all(rule.handle == 0 for rule in legacy.chains["KUBE-SERVICES"].rules)


def test_counters_and_comments_are_read(recorded):
    table = recorded("iptables-mode-1.36.2-nft-backend").tables["ip", "filter", False]
    rule = table.chains["KUBE-SERVICES"].rules[1]
    assert (rule.packets, rule.bytes, rule.index) == (1, 60, 1)
    assert rule.comment == "shop/no-endpoints has no endpoints"
    assert rule.text.startswith("-A KUBE-SERVICES -d 10.96.10.5/32 -p tcp -m comment")
    nat = recorded("iptables-mode-1.36.2-nft-backend").tables["ip", "nat", False]
    assert nat.chains["CNI-HOSTPORT-DNAT"].rules[0].comment.startswith('dnat name: "knet" id: "')


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_did_not_change_is_not_read_again(recorded_texts, folder):
    reader, texts = Reader(), recorded_texts(folder)
    first, again = reader.read(texts), reader.read(texts)
    assert again.tables.keys() == first.tables.keys()
    assert all(again.tables[key] is first.tables[key] for key in first.tables)


def test_a_rule_that_only_counted_is_not_read_again(recorded_texts):
    folder = "iptables-mode-1.36.2-nft-backend"
    texts = recorded_texts(folder)
    reader = Reader()
    first = reader.read(texts)
    counted = texts.iptables.replace("[1:60] -A KUBE-SERVICES", "[2:120] -A KUBE-SERVICES", 1)
    assert counted != texts.iptables
    again = reader.read(replace(texts, iptables=counted))
    key = "ip", "filter", False
    assert again.tables[key] is not first.tables[key]
    assert again.tables["ip", "nat", False] is first.tables["ip", "nat", False]
    old, new = (ruleset.tables[key].chains["KUBE-SERVICES"].rules[1] for ruleset in (first, again))
    assert (old.packets, new.packets) == (1, 2)
    assert new.body is old.body
