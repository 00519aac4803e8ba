"""Namespaces that track connections, tracer on one of them, and flows of counted entries."""

from __future__ import annotations

import itertools
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lab import namespaces, runner
from lab.shell import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace
    from lab.runner import Live, Record

_sources = itertools.count(1024)


@contextmanager
def ruleset(where: Namespace, rules: str) -> Iterator[None]:
    """One nft table of family ip for the block; `rules` begins with `table ip NAME`."""
    where.run("nft", "-f", "-", stdin=rules)
    try:
        yield
    finally:
        where.run("nft", "delete", "table", "ip", rules.split()[2])


@contextmanager
def tracking(where: Namespace, hook: str = "forward") -> Iterator[None]:
    """IPv4 alone is tracked for the block: a rule that asks for its state is all it takes."""
    chain = f"chain c {{ type filter hook {hook} priority 0; ct state new accept; }}"
    with ruleset(where, f"table ip tracking {{ {chain}; }}"):
        where.run("conntrack", "-F", check=False)
        yield
        where.run("conntrack", "-F", check=False)


@contextmanager
def node_sysctls(**values: int) -> Iterator[None]:
    """Settings nf_conntrack_* that only the node has, for all namespaces; put back afterwards."""
    node = namespaces.node()
    keys = {f"netfilter/nf_conntrack_{name}": value for name, value in values.items()}
    before = {key: node.sysctl(key, value) for key, value in keys.items()}
    try:
        yield
    finally:
        for key, value in before.items():
            node.sysctl(key, value)


@contextmanager
def following(where: Namespace, *options: str) -> Iterator[Live]:
    """Tracer on one namespace."""
    with runner.running("conntrack", "--netns", where.name, "-o", "json", *options) as live:
        yield live


def send_flows(where: Namespace, to: tuple[str, int], count: int) -> list[int]:
    """One datagram from each of `count` ports that no flow has had before; the ports."""
    ports = [1024 + next(_sources) % 60000 for _ in range(count)]
    for port in ports:
        with where.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("", port))
            sender.sendto(b"x" * 32, to)
    return ports


def events(live: Live, **wanted: object) -> list[Record]:
    """The conntrack records that match; `dst_port` stands for `dst.port`."""
    named = {name.replace("_", "."): value for name, value in wanted.items()}
    return [r for r in live.records() if runner.matches(r, {"type": "conntrack", **named})]


def until_events(live: Live, count: int, **wanted: object) -> list[Record]:
    """Wait for exactly `count` such records."""
    until(lambda: len(events(live, **wanted)) >= count, f"{count} of {wanted}")
    found = events(live, **wanted)
    assert len(found) == count, found
    return found


def failures(records: list[Record]) -> dict[str, int]:
    """Kind → how often, over all records of it; each with a sentence and a hint."""
    counts: dict[str, int] = {}
    for record in records:
        if record["type"] == "failure":
            counts[record["failure"]] = counts.get(record["failure"], 0) + record["count"]
            assert record["explanation"]
            assert record["hint"]
    return counts
