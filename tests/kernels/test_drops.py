"""Every cause of a drop that can be provoked here: counted exactly, located, explained."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from cases import CASES, COUNT
from lab import runner
from lab.expect import say
from lab.traffic import new_port
from ways import WAIT_S, attached, forced, kinds_of

FUNCTION = re.compile(r"\w+")
"""What the compiler appends (`.constprop.0`, `.part.0`) left out."""
PASSING = {
    *("time", "src.port", "dst.port", "ip.id", "ip.flow_label", "tcp.seq", "tcp.ack"),
    *("packet", "explanation", "conntrack.orig.src.port", "conntrack.orig.dst.port"),
    *("conntrack.reply.src.port", "conntrack.reply.dst.port"),
}
"""What differs between two packets of one kind: their moment, and ports in words or numbers."""
SEEN: dict[str, dict[str, list]] = {case.name: {} for case in CASES}
"""Case → way → what its records told, without what passes."""


@pytest.fixture(scope="module", params=kinds_of("drops"))
def drops(request, routed):
    """One `tracer drops` for all cases, attached in one way, of packets of our namespaces."""
    kind = request.param
    # When a rule is read differs between two runs; test_rules is about rules.
    with runner.running("drops", "-o", "json", "--rules=off", *forced("drops", kind)) as live:
        attached(live, "drops", kind)
        yield SimpleNamespace(live=live, kind=kind, routed=routed)
        done = live.stop()
    assert done.code == 0, done.err
    assert done.records[-1]["lost"] == {}
    assert "Traceback" not in done.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_drop(drops, case, release, record_property):
    watch = runner.watch(drops.live)
    with case.provoke(drops.routed, new_port()) as addresses:
        found = watch.expect(COUNT, addresses, WAIT_S)
    SEEN[case.name][drops.kind] = [
        {name: record[name] for name in record.keys() - PASSING} for record in found
    ]
    record_property("case", case.name)
    record_property("way", drops.kind)
    for name in ("drop.reason", "drop.location", "netfilter.mechanism"):
        record_property(name, found[0].get(name, ""))
    family, hook = case.netfilter
    wanted = {
        "drop.reason": case.reason if release >= case.since else "NOT_SPECIFIED",
        "drop.location": lambda text: FUNCTION.match(text)[0] in case.functions,
        "netfilter.hook": hook or None,
        "netfilter.family": (lambda told: told in (family, "ip", "ip6")) if family else None,
    }
    say(found, wanted, *case.words)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_way_tells_the_same(case):
    """What the test above saw by each way, compared."""
    told = SEEN[case.name]
    assert told.keys() == set(kinds_of("drops"))
    first, *others = told.values()
    assert all(other == first for other in others), told
