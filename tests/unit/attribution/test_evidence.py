"""Counters before and after a drop: when they prove something, and what they say then."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tracer.analysis.rule_evidence import UNMOVED, weigh
from tracer.analysis.ruleset.model import XT_LEGACY, Body, Chain, End, Rule, Ruleset, Verdict
from tracer.attribution import counters, readings
from tracer.attribution.counters import APART_NS, Counters, Sample
from tracer.attribution.evidence import WAIT, Evidence
from tracer.attribution.readings import CHEAP_S, Reading
from tracer.netfilter import nft_table

S = 1_000_000_000
KEY = ("inet", "t", "c", 5)
RULE = Rule("inet", "t", "c", 0, 5, Body("x"), packets=10)
CHAIN = Chain("inet", "t", "c")


class Readings:
    """What the reader is asked for."""

    renew = readings.Readings.renew

    def __init__(self):
        self.watched, self.asked = [], []

    def watch(self, netns, key):
        self.watched.append((netns, key))
        return len(self.watched) < 3

    def ask(self, netns):
        self.asked.append(netns)


def reading(samples=None, **more):
    counts = {} if samples is None else {KEY: tuple(Sample(*one) for one in samples)}
    return Reading(**{"ruleset": Ruleset(), "checked_ns": 9 * S, "read_ns": 2 * S, "done_ns": 2 * S,
                      "counts": counts, **more})  # fmt: skip


def growth(at_ns, rule=RULE, **given):
    return Evidence(Readings()).growth(1, at_ns, rule, reading(**given))


def test_a_rule_is_watched_until_it_was_read_after_the_drop():
    reader = Readings()
    evidence = Evidence(reader)
    assert evidence.growth(1, 5 * S, RULE, reading()) == WAIT
    assert evidence.growth(1, 5 * S, RULE, reading([(4 * S, 4 * S, 12)])) == WAIT
    assert reader.watched == [(1, KEY)] * 2
    assert evidence.growth(1, 5 * S, RULE, reading()) is None, "too many are watched"


def test_growth_is_from_the_last_reading_well_before():
    after = (6 * S, 6 * S, 17)
    assert growth(5 * S, samples=[after]) == 7, "since the rules were read"
    assert growth(5 * S, samples=[(3 * S, 3 * S, 12), after]) == 5
    close = 5 * S - APART_NS // 2
    assert growth(5 * S, samples=[(3 * S, 3 * S, 12), (close, close, 17), after]) == 5
    assert growth(5 * S, samples=[(6 * S, 6 * S, 10)]) == 0
    assert growth(5 * S, samples=[(6 * S, 6 * S, 3)]) == 3, "it was set back"


def test_without_a_reading_before_only_a_zero_tells():
    late = {"done_ns": 5 * S}
    assert growth(5 * S, samples=[(6 * S, 6 * S, 17)], **late) is None
    assert growth(5 * S, samples=[(6 * S, 6 * S, 0)], **late) == 0


def test_what_does_not_count_or_has_gone():
    assert growth(5 * S, rule=None) is None
    assert growth(5 * S, rule=replace(RULE, packets=None)) is None
    assert growth(5 * S, rule=replace(RULE, handle=0)) is None
    assert growth(5 * S, samples=[]) is None


def test_xtables_rules_are_read_whole():
    rule = replace(RULE, backend=XT_LEGACY)
    assert growth(5 * S, rule, read_ns=6 * S, done_ns=6 * S) is None
    assert growth(5 * S, replace(rule, packets=0), read_ns=6 * S, done_ns=6 * S) == 0
    assert growth(5 * S, rule, read_ns=4 * S) == WAIT
    assert growth(5 * S, rule, read_ns=4 * S, cost_s=2 * CHEAP_S) is None


@pytest.mark.parametrize(
    ("growths", "kept", "words"),
    [
        ([3], [0], "counter moved by 3"),
        ([None], [0], ""),
        ([0], [0], UNMOVED),
        ([0, 0], [0, 1], UNMOVED),
        ([0, 3], [1], "counter moved by 3; that of 1 other candidate did not move"),
        ([0, None, 0], [1], "that of 2 other candidates did not move"),
        ([2, 3], [0, 1], ""),
        ([2, 3, 0], [0, 1], "that of 1 other candidate did not move"),
        ([], [], ""),
    ],
)
def test_what_counters_say_of_candidates(growths, kept, words):
    verdicts = [
        Verdict("drop", (End(CHAIN, "drop", replace(RULE, index=at)),), None)
        for at in range(len(growths))
    ]
    assert weigh(verdicts, growths) == (tuple(verdicts[at] for at in kept), words)


def test_readings_of_a_counter_are_kept_apart(monkeypatch):
    clock = iter(range(0, 10**12, APART_NS // 10))
    monkeypatch.setattr(counters, "_now_ns", lambda: next(clock))
    monkeypatch.setattr(nft_table, "rule_packets", lambda *_: 7)
    watched = Counters()
    assert watched.want(KEY, 0)
    for _ in range(60):
        samples = watched.read(None, 1)[KEY]
    assert len(samples) == counters.KEPT
    gaps = [b.began_ns - a.done_ns for a, b in pairwise(samples)]
    assert all(gap >= APART_NS for gap in gaps[:-1]), gaps
    assert len(watched.read(None, 2)[KEY]) == 1, "other rules, perhaps"
    monkeypatch.setattr(nft_table, "rule_packets", lambda *_: None)
    assert watched.read(None, 2)[KEY] == ()


def test_nobody_watches_for_ever_or_everything(monkeypatch):
    monkeypatch.setattr(nft_table, "rule_packets", lambda *_: 7)
    watched = Counters()
    watched.want(KEY, -counters.WATCHED_NS)
    assert watched.read(None, 1) == {}
    wanted = [watched.want((*KEY[:3], number), 1) for number in range(counters.MAX_WATCHED + 1)]
    assert wanted == [True] * counters.MAX_WATCHED + [False]
