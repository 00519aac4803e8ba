"""Which names led a pod to an address: each pod its own, for their time, within bounds."""

import sys

import numpy as np
import pytest

from tracer.analysis.dns import Answer
from tracer.analysis.dns_names import FLOOR_S, NAMES_PER_ADDRESS, NS_PER_S, DnsNames
from tracer.flow_table import texts

POD, OTHER = 4026532001, 4026532002


def answer(name, *addresses, ttl_s=0):
    return Answer(name, addresses, ttl_s, whole=True)


def at(seconds):
    return seconds * NS_PER_S


def names_at(names, seconds, netns=POD, address="192.0.2.1"):
    return names.names(netns, address, at(seconds), at(seconds))


def test_each_pod_has_its_own():
    names = DnsNames()
    names.learn(POD, answer("a.test", "192.0.2.1"), at(1))
    names.learn(OTHER, answer("b.test", "192.0.2.1"), at(1))
    assert names_at(names, 2) == "a.test"
    assert names_at(names, 2, OTHER) == "b.test"
    assert names_at(names, 2, 7) is None
    assert names_at(names, 2, address="192.0.2.2") is None


def test_the_newest_first_and_each_once():
    names = DnsNames()
    for second, name in enumerate(("a.test", "b.test", "a.test")):
        names.learn(POD, answer(name, "192.0.2.1"), at(second))
    assert names_at(names, 3) == "a.test,b.test"


@pytest.mark.parametrize(("ttl_s", "lives_s"), [(5, FLOOR_S), (3600, 3600)])
def test_a_name_holds_for_its_ttl_at_least_the_floor(ttl_s, lives_s):
    names = DnsNames()
    names.learn(POD, answer("a.test", "192.0.2.1", ttl_s=ttl_s), at(100))
    assert not names_at(names, 99), "before it was told"
    assert not names_at(names, 100 + lives_s + 1)
    assert names_at(names, 100 + lives_s) == "a.test"


def test_while_it_is_used_it_holds():
    names = DnsNames()
    names.learn(POD, answer("a.test", "192.0.2.1"), at(0))
    for second in range(0, 10 * FLOOR_S, FLOOR_S // 2):
        assert names_at(names, second) == "a.test"
    assert not names_at(names, 12 * FLOOR_S)
    names.learn(POD, answer("a.test", "192.0.2.1"), at(20 * FLOOR_S))
    assert not names_at(names, 12 * FLOOR_S), "it did not hold in between"


def test_a_flow_that_began_before_and_ended_after_has_it():
    names = DnsNames()
    names.learn(POD, answer("a.test", "192.0.2.1"), at(100))
    assert names.names(POD, "192.0.2.1", at(50), at(5000)) == "a.test"


def test_the_pod_that_has_the_most_makes_room():
    names = DnsNames(most_addresses=100)
    for number in range(20):
        names.learn(OTHER, answer("quiet.test", f"198.51.100.{number}"), at(0))
    for number in range(1000):
        names.learn(POD, answer("loud.test", f"10.0.{number // 250}.{number % 250}"), at(1))
    assert [names_at(names, 2, OTHER, f"198.51.100.{n}") for n in range(20)] == ["quiet.test"] * 20
    assert names_at(names, 2, POD, "10.0.3.249") == "loud.test"
    held = [names_at(names, 2, POD, f"10.0.{n // 250}.{n % 250}") for n in range(1000)]
    assert 70 <= sum(map(bool, held)) <= 80
    assert names.evicted == 1000 - sum(map(bool, held))


def test_what_was_used_last_goes_last():
    names = DnsNames(most_addresses=32)
    for number in range(32):
        names.learn(POD, answer("a.test", f"192.0.2.{number}"), at(0))
    assert names_at(names, 1, address="192.0.2.0")
    names.learn(POD, answer("a.test", "192.0.2.99"), at(1))
    assert names_at(names, 1, address="192.0.2.0")
    assert not names_at(names, 1, address="192.0.2.1")


def test_what_is_over_goes_without_a_loss():
    names = DnsNames(most_addresses=1)
    names.learn(POD, answer("a.test", "192.0.2.1"), at(0))
    names.learn(POD, answer("b.test", "192.0.2.2"), at(FLOOR_S + 1))
    assert names.evicted == 0


def test_many_names_of_one_address():
    names = DnsNames()
    for number in range(100):
        names.learn(POD, answer(f"n{number}.test", "192.0.2.1"), at(0))
    told = names_at(names, 1)
    assert told == ",".join(f"n{number}.test" for number in range(99, 99 - NAMES_PER_ADDRESS, -1))
    assert names.evicted == 100 - NAMES_PER_ADDRESS


def size_bytes(names):
    """What Python says it takes; texts that are shared count each time."""
    total = 0
    for pod in names._pods.values():
        total += sys.getsizeof(pod)
        for address, leases in pod.items():
            total += sys.getsizeof(address) + sys.getsizeof(leases)
            for name, lease in leases.items():
                total += sys.getsizeof(name) + sys.getsizeof(lease)
                total += sys.getsizeof(lease.since_ns) + sys.getsizeof(lease.until_ns)
    return total


def test_memory_is_bounded_by_what_it_really_is():
    """Long names, many of them: the bound holds, and is not many times too careful."""
    most = 1 << 20
    names = DnsNames(most_bytes=most)
    for number in range(20_000):
        name = f"{'x' * 200}{number}.test"
        names.learn(POD, answer(name, f"10.{number >> 8 & 255}.{number & 255}.1"), at(0))
    assert most / 3 < size_bytes(names) < most


def test_columns_are_looked_up_by_pod_and_address():
    names = DnsNames()
    names.learn(POD, answer("a.test", "192.0.2.1", "192.0.2.2"), at(1))
    names.learn(OTHER, answer("b.test", "192.0.2.1"), at(1))
    netns = np.array([POD, OTHER, POD, 7, OTHER, POD], np.uint32)
    code = np.array([0, 0, 1, 0, 1, -1])
    times = np.full(6, at(2), np.uint64)
    column = names.column(netns, ["192.0.2.1", "192.0.2.2"], code, (times, times))
    assert texts(column) == ["a.test", "b.test", "a.test", None, None, None]


def test_no_names_are_no_column():
    column = DnsNames().column(np.array([POD]), ["192.0.2.1"], np.array([0]), (np.ones(1),) * 2)
    assert texts(column) == [None]
