"""Sums of drops by rule: what was shown, and what the counter says of all."""

from dataclasses import replace

import pytest

from tracer.analysis.ruleset.model import XT_LEGACY, End
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.attribution import sums
from tracer.attribution.counters import Sample
from tracer.attribution.readings import Reading
from tracer.attribution.sums import RuleSums
from tracer.model import Namespace, Node

NODE = Node("n", 4, namespaces={5: Namespace(5, "pod")})
LATE = 1 << 62


def read(packets):
    text = f"*filter\n:FORWARD ACCEPT [0:0]\n[{packets}:9] -A FORWARD -j DROP\nCOMMIT\n"
    return Reader().read(Texts(iptables_legacy=text))


def end_of(ruleset):
    chain = ruleset.tables["ip", "filter", True].chains["FORWARD"]
    return End(chain, "drop", chain.rules[0])


class Readings:
    def __init__(self, latest):
        self._latest = latest
        self.asked = []

    def latest(self, _netns):
        return self._latest

    def ask(self, netns):
        self.asked.append(netns)

    def watch(self, *_):
        return False


def summed(first, last, *, shown=3):
    made = RuleSums(lambda: NODE, Readings(last))
    for _ in range(shown):
        made.add(5, 100, end_of(first.ruleset), "inferred", first)
    return made.records()


def test_a_counter_from_before_the_first_drop_to_the_end():
    before, first, last = read(2), read(5), read(43)
    reading = Reading(first, 90, 90, 95, before, 50, legacy=True)
    (record,) = summed(reading, Reading(last, LATE, LATE))
    assert record["type"] == "rule"
    assert (record["netns"], record["netns.name"]) == (5, "pod")
    assert record["netfilter.rule"] == "-A FORWARD -j DROP"
    assert record["netfilter.backend"] == XT_LEGACY
    assert (record["shown"], record["counter.packets"]) == (3, 41)
    (record,) = summed(replace(reading, before_ns=0), Reading(last, LATE, LATE))
    assert record["counter.packets"] == 38, "the reading itself was before it"


def test_without_a_reading_before_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sums, "LAST_S", 0.05)
    reading = Reading(read(5), 190, 190, 195, legacy=True)
    (record,) = summed(reading, Reading(read(43), LATE, LATE))
    assert "counter.packets" not in record
    old = Readings(Reading(read(43), 0, 0))
    made = RuleSums(lambda: NODE, old)
    made.add(5, 300, end_of(reading.ruleset), "inferred", reading)
    (record,) = made.records()
    assert "counter.packets" not in record
    assert old.asked


@pytest.mark.parametrize(("packets", "told"), [(9, 4), (3, None)])
def test_rules_of_nf_tables_are_watched(packets, told):
    end = end_of(read(5))
    rule = replace(end.rule, backend="nft", handle=7)
    key = rule.family, rule.table, rule.chain, 7
    last = Reading(read(5), LATE, 1, counts={key: (Sample(LATE, LATE, packets),)})
    made = RuleSums(lambda: NODE, Readings(last))
    made.add(5, 100, replace(end, rule=rule), "inferred", Reading(read(5), 90, 90, 95))
    (record,) = made.records()
    assert record.get("counter.packets") == told


def test_policies_and_too_many_rules_are_left_out(monkeypatch):
    monkeypatch.setattr(sums, "MAX_RULES", 0)
    assert summed(Reading(read(5), 90, 90), None) == []
    made = RuleSums(lambda: NODE, Readings(None))
    made.add(5, 100, End(end_of(read(5)).base, "drop", None), "inferred", Reading(read(5), 9, 9))
    assert made.records() == []
