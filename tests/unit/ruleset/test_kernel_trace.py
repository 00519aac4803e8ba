"""The kernel's own rule-by-rule traces of real packets, walked again through the ruleset.

The traces and the ruleset are of one cluster but of two starts of it: pods have other
addresses, and two rules of POSTROUTING stand the other way round. Both are brought
together here (`PODS`, `of_the_traces`); chains that are named after pods are compared by kind.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.model import Conntrack, Host, Packet
from tracer.analysis.ruleset.read import Reader

FOLDER = "iptables-mode-1.36.2-nft-backend"
TRACES = Path(__file__).parents[2] / "data" / "rulesets" / FOLDER / "nftrace"
CASES = sorted(path.name.partition(".")[0] for path in TRACES.iterdir())
PODS = {
    # in the traces: in the ruleset
    "10.244.0.2": "10.244.0.9",  # client
    "10.244.0.3": "10.244.0.11",  # the first, second and third endpoint of shop/web
    "10.244.0.4": "10.244.0.12",
    "10.244.0.6": "10.244.0.8",
    "10.244.0.5": "10.244.0.10",  # single
    "10.244.0.9": "10.244.0.13",  # client2
    "10.244.0.7": "10.244.0.15",  # hostport
}
HOST = Host(frozenset({"198.51.100.10", "10.244.0.1", "203.0.113.50"}))
PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class Traced:
    """What the kernel told of one base chain."""

    packet: Packet
    table: str
    base: str
    walk: tuple[tuple[str, str, str], ...]
    """(chain, rule, verdict) of each rule that matched."""
    policy: str


def of_the_traces(texts):
    """The ruleset with the two rules of POSTROUTING as they stood when the traces were made."""
    lines = texts.iptables.splitlines(keepends=True)
    services, portfwd = (
        next(i for i, line in enumerate(lines) if "-A POSTROUTING" in line and word in line)
        for word in ("-j KUBE-POSTROUTING", "-j CNI-HOSTPORT-MASQ")
    )
    lines[services], lines[portfwd] = lines[portfwd], lines[services]
    return replace(texts, iptables="".join(lines))


def anonymous(text):
    """A rule or chain without what every start of the cluster names anew."""
    text = re.sub(r"\b(CNI-DN|CNI|KUBE-SEP)-[0-9A-Za-z]{16,}", r"\1-", text)
    return re.sub(r'id: \\?"[0-9a-f]{64}', "id", text)


def as_in_the_ruleset(text):
    """A rule or chain of the traces, with the addresses that pods have in the ruleset."""
    return anonymous(re.sub(r"\b10\.244\.0\.\d+", lambda m: PODS.get(m[0], m[0]), text))


def packet_of(words):
    """The packet of a PACKET line, at the address that its pod has in the ruleset."""
    found = dict(word.partition("=")[::2] for word in words.split())
    flags = {name for name in ("SYN", "ACK", "FIN", "RST", "PSH") if name in words.split()}
    bits = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16}
    return Packet(
        family="ip",
        saddr=PODS.get(found["SRC"], found["SRC"]),
        daddr=PODS.get(found["DST"], found["DST"]),
        protocol=6 if flags else 17,
        sport=int(found["SPORT"]),
        dport=int(found["DPORT"]),
        tcp_flags=sum(bits[name] for name in flags) if flags else None,
        iif=found.get("IN", ""),
        oif=found.get("OUT", ""),
        mark=int(found.get("MARK", "0"), 16),
        ct=Conntrack(
            "new" if flags in ({"SYN"}, set()) else "established",
            frozenset() if flags in ({"SYN"}, set()) else frozenset({"confirmed", "dnat"}),
            "original",
        ),
        length_bytes=int(found["LEN"]),
        ttl=int(found["TTL"]),
    )


def traced(text):
    """Every base chain that the kernel walked a packet through, in order."""
    packet, table, base, walk = None, "", "", []
    for line in text.splitlines():
        if line.startswith("PACKET: 2"):
            if walk:
                yield Traced(packet, table, base, tuple(walk), "")
            packet, base, walk = packet_of(line), "", []
        elif rule := re.match(r" TRACE: 2 \w+ (\w+):(\S+):rule:0x\w+:(\S+) +-4 -t \w+ (.*)", line):
            table = rule[1]
            base = base or rule[2]
            walk.append((rule[2], rule[4].strip(), rule[3]))
        elif policy := re.match(r" TRACE: 2 \w+ (\w+):(\S+):policy:(\w+)", line):
            yield Traced(packet, policy[1], policy[2], tuple(walk), policy[3].lower())
            walk = []
    if walk:
        yield Traced(packet, table, base, tuple(walk), "")


def told(passed):
    """A rule that matched, as the traces tell it."""
    verdict = {"reject": "DROP", "return": "0xfffffffb"}.get(passed.verdict)
    verdict = verdict or ":".join(word for word in passed.verdict.split())
    verdict = re.sub(r"^(\w+)", lambda m: m[1].upper(), verdict) if "0x" not in verdict else verdict
    rule = passed.rule
    return anonymous(rule.chain), anonymous(rule.text), anonymous(verdict)


@pytest.fixture(scope="module")
def ruleset(recorded_texts):
    return Reader().read(of_the_traces(recorded_texts(FOLDER)))


@pytest.mark.parametrize("case", CASES)
def test_the_walk_is_the_kernels(ruleset, case):
    every = list(traced((TRACES / f"{case}.xtables-monitor.txt").read_text()))
    assert every
    for trace in every:
        wanted = tuple(tuple(map(as_in_the_ruleset, step)) for step in trace.walk)
        chain = ruleset.tables["ip", trace.table, False].chains[trace.base]
        answer = evaluate(ruleset, chain.base.hook, trace.packet, HOST, [chain])
        assert not answer.cut
        ends = [verdict.ends[0] for verdict in answer.candidates]
        walks = [tuple(map(told, end.walk)) for end in ends]
        assert wanted in walks
        # More than one way there is only where chance decides.
        assert len(walks) == 1 or "statistic" in str(wanted) + str(walks) or case == "sticky"
        end = ends[walks.index(wanted)]
        assert (end.rule is None) == bool(trace.policy)
        assert not trace.policy or trace.policy == end.verdict


def test_all_cases_were_walked():
    assert len(CASES) == 14


@pytest.mark.parametrize(
    ("case", "verdict", "comment"),
    [
        ("pod-svc-noendpoints", "reject", "shop/no-endpoints has no endpoints"),
        ("pod-svc-remote-only", "drop", "shop/remote-only has no local endpoints"),
        ("ext-lb-denied-source", "drop", "shop/lb traffic not accepted by KUBE-FW-"),
    ],
)
def test_a_drop_is_certain_and_says_which_rule(ruleset, case, verdict, comment):
    text = (TRACES / f"{case}.xtables-monitor.txt").read_text()
    dropped = [trace for trace in traced(text) if trace.base == "FORWARD"]
    for trace in dropped:
        answer = evaluate(ruleset, "forward", trace.packet, HOST)
        assert answer.certain
        assert answer.verdict.verdict == verdict
        assert answer.verdict.rule.comment.startswith(comment)
        assert answer.verdict.rule.handle
        assert [rule.chain for rule in answer.verdict.path] == ["FORWARD"]
