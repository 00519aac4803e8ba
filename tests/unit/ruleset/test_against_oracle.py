"""Random rules and values, judged twice: by tracer, and by the plainest code there is."""

from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.analysis.ruleset.evaluate import evaluate
from tracer.analysis.ruleset.model import Conntrack, Host, Packet
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.analysis.ruleset.sets import find, members, possible
from tracer.analysis.ruleset.steps import Interval

REPEATABLE = settings(deadline=None, derandomize=True)
small = st.integers(0, 12)
intervals = st.builds(lambda low, size: Interval(low, low + size), small, st.integers(0, 3))


@st.composite
def many_elements(draw):
    """Elements of one or two values each, and what to look for."""
    width = draw(st.integers(1, 2))
    parts = st.tuples(*[intervals] * width)
    keys = draw(st.lists(parts, max_size=8))
    return [(key, number) for number, key in enumerate(keys)], draw(st.tuples(*[small] * width))


@REPEATABLE
@given(many_elements())
def test_an_element_is_found_where_there_is_one(case):
    elements, looked = case
    holding = [
        number
        for key, number in elements
        if all(part.low <= value <= part.high for part, value in zip(key, looked, strict=True))
    ]
    found = find(members(elements), looked)
    assert (found is not None) == bool(holding)
    assert found is None or any(key == found[0] for key, number in elements if number in holding)


@REPEATABLE
@given(many_elements())
def test_without_a_value_every_element_that_fits_the_others_is_possible(case):
    elements, looked = case
    unknown = (None, *looked[1:])
    fitting = {
        key
        for key, _ in elements
        if all(part.low <= v <= part.high for part, v in zip(key[1:], looked[1:], strict=True))
    }
    assert {element[0] for element in possible(members(elements), unknown)} == fitting


NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "0.0.0.0/0")
ADDRESSES = ("10.1.2.3", "10.1.9.9", "192.0.2.7", "203.0.113.1")
CHAINS = ("FORWARD", "a", "b", "c")
NO_TARGET = ""


@st.composite
def rules(draw):
    """Chains of rules, each (negated, network, ports, target); a chain jumps to later ones only."""
    made = {}
    for number, chain in enumerate(CHAINS):
        later = CHAINS[number + 1 :]
        targets = ["ACCEPT", "DROP", "RETURN", NO_TARGET, *later, *(f"-g {c}" for c in later)]
        rule = st.tuples(
            st.booleans(),
            st.sampled_from(NETWORKS),
            st.tuples(small, st.integers(0, 6)),
            st.sampled_from(targets),
        )
        made[chain] = draw(st.lists(rule, max_size=4))
    return made


def saved(made):
    """As iptables-save prints it."""
    lines = ["*filter", *(f":{c} {'ACCEPT' if c == 'FORWARD' else '-'} [0:0]" for c in made)]
    for chain, listed in made.items():
        for negated, network, (low, size), target in listed:
            jump = target if target.startswith("-g") else f"-j {target}"
            source = f"{'! ' * negated}-s {network}"
            ports = f"-p tcp -m tcp --dport {low}:{low + size}"
            lines.append(f"-A {chain} {source} {ports} {jump if target else ''}".rstrip())
    return "\n".join([*lines, "COMMIT", ""])


def judge(made, chain, source, port):
    """The verdict and the rules that matched, by recursion; None: the chain's end."""
    passed = []
    for number, (negated, network, (low, size), target) in enumerate(made[chain]):
        inside = ip_address(source) in ip_network(network)
        if inside is negated or not low <= port <= low + size:
            continue
        passed.append((chain, number))
        if target in {"ACCEPT", "DROP"}:
            return target.lower(), passed
        if target == "RETURN":
            return None, passed
        if target:
            verdict, inner = judge(made, target.removeprefix("-g "), source, port)
            passed += inner
            if verdict or target.startswith("-g"):
                return verdict, passed
    return None, passed


@REPEATABLE
@given(rules(), st.sampled_from(ADDRESSES), st.integers(0, 20))
def test_the_walk_is_the_oracles(made, source, port):
    ruleset = Reader().read(Texts(iptables=saved(made)))
    packet = Packet(
        "ip", source, "198.51.100.1", 6, 40000, port, tcp_flags=2, ct=Conntrack("invalid")
    )
    answer = evaluate(ruleset, "forward", packet, Host())
    verdict, passed = judge(made, "FORWARD", source, port)
    assert answer.certain
    assert answer.verdict.verdict == (verdict or "accept")
    walk = [(one.rule.chain, one.rule.index) for one in answer.verdict.ends[0].walk]
    assert walk == passed
    assert (answer.verdict.rule is None) == (verdict is None)
