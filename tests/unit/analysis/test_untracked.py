"""Packets that conntrack gave no entry: told to leave them alone, or invalid to it."""

from hop_rows import (
    CLIENT,
    CONSUMED,
    ENTER,
    FIRST,
    GONE,
    LEAVE,
    OUT,
    POST,
    PRE,
    QUEUE,
    RX,
    SERVER,
    A,
    B,
    context,
    hop,
    no_drops,
    rows,
)  # fmt: skip

from tracer.analysis.conntrack import UNTRACKED_INFO
from tracer.analysis.paths import Assembler, path_records

ENTRY = {"orig": (A, B), "reply": (B, A)}
NEW, ESTABLISHED_REPLY = 2, 3


def prerouting(packet, at, netns=SERVER, family=2, **left):
    """Received there, and through the hook; `left` is how it comes out."""
    place = {"netns": netns, "nf": PRE, "nf_family": family}
    return (
        hop(RX, at, packet, flags=FIRST, netns=netns),
        hop(ENTER, at + 10, packet, **place),
        hop(LEAVE, at + 20, packet, **place, **left),
        hop(QUEUE, at + 30, packet, netns=netns, **left),
    )


def told(*hops, assembler=None):
    """Of each packet its records."""
    assembler = assembler or Assembler()
    assembler.add(rows(*hops), no_drops())
    return path_records(assembler.take(0, everything=True), context())


def hook(record):
    (one,) = [hop for hop in record["hops"] if hop["hook"].startswith("nf ")]
    return one.get("changes", [])


def without_tracking(packet, at, **given):
    hops = prerouting(packet, at, **given)
    for one in hops[2:]:
        one["ct"]["info"] = UNTRACKED_INFO
    return hops


def test_untracked():
    (record,) = told(*without_tracking(1, 100))
    assert hook(record) == ["conntrack untracked"]
    assert record["conntrack.state"] == "untracked"
    later = hop(QUEUE, 100, flags=FIRST)
    later["ct"]["info"] = UNTRACKED_INFO
    (record,) = told(later)
    assert record["hops"][0]["changes"] == ["conntrack untracked"]


def test_invalid_where_conntrack_is_at_work():
    tracked, bare = prerouting(1, 100, ct=ENTRY), prerouting(2, 200)
    one, other = told(*tracked, *bare)
    assert hook(one) == ["conntrack new"]
    assert hook(other) == ["conntrack invalid (inferred)"]
    assert (one["conntrack.state"], other["conntrack.state"]) == ("new", "invalid")


def test_what_was_seen_at_work_is_known_from_then_on():
    assembler = Assembler()
    (before,) = told(*prerouting(2, 50), assembler=assembler)
    told(*prerouting(1, 100, ct=ENTRY), assembler=assembler)
    (after,) = told(*prerouting(3, 200), assembler=assembler)
    assert "conntrack.state" not in before
    assert hook(after) == ["conntrack invalid (inferred)"]


def test_elsewhere_nothing_is_said():
    elsewhere = prerouting(2, 200, netns=CLIENT), prerouting(3, 200, family=10)
    later_hook = hop(ENTER, 300, 4, nf=POST, flags=FIRST), hop(LEAVE, 310, 4, nf=POST)
    earlier = prerouting(5, 60)
    one, *others = sorted(
        told(*prerouting(1, 100, ct=ENTRY), *sum(elsewhere, ()), *later_hook, *earlier),
        key=lambda record: "conntrack.state" not in record,
    )
    assert one["conntrack.state"] == "new"
    assert not any("conntrack.state" in record for record in others)
    assert not any("invalid" in text for record in others for text in hook(record))


def test_a_packet_that_its_host_sends():
    place = {"netns": SERVER, "nf": OUT}
    bare = hop(ENTER, 200, 2, flags=FIRST, **place), hop(LEAVE, 210, 2, **place)
    _, other = told(*prerouting(1, 100, ct=ENTRY), *bare)
    assert hook(other) == ["conntrack invalid (inferred)"]


def test_a_mark_is_the_entrys_until_a_rule_changes_it():
    hops = prerouting(1, 100, ct={**ENTRY, "info": ESTABLISHED_REPLY})
    for one in hops[2:]:
        one["ct"]["mark"] = 0x44
    hops[3]["ct"]["mark"] = 0x45
    (record,) = told(*hops)
    assert hook(record) == ["conntrack established reply mark 0x44"]
    assert record["hops"][-1]["changes"] == ["conntrack mark 0x44 → 0x45"]


def test_who_was_seen_first_names_the_flow_though_the_answer_is_complete_before():
    question = hop(QUEUE, 100, flags=FIRST)
    back = {"source": B, "goal": A}
    answer = hop(QUEUE, 200, 2, flags=FIRST, **back), hop(CONSUMED, 300, 2, flags=GONE, **back)
    assembler = Assembler()
    assembler.add(rows(question), no_drops())
    assembler.add(rows(*answer), no_drops())
    (record,) = path_records(assembler.take(400), context())
    assert record["packet"].startswith("10.1.0.3:53 →")
    assert record["flow"] == "10.1.0.2:4000 → 10.1.0.3:53 UDP"
