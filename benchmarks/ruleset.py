"""What reading and asking the rules of a very large cluster costs, on one core.

    python benchmarks/ruleset.py [--services 10000] [--endpoints 5] [--nft]

Makes the rules that kube-proxy writes in iptables mode for so many Services (17 a Service with
5 endpoints), as iptables-save and, with --nft, as nft show them, and times: the first reading,
the reading of the same text again, one where every counter moved, one packet's walk, and the
rules that counted. Prints JSON.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import resource
import time
from typing import TYPE_CHECKING, TypeVar

from tracer.analysis.ruleset.compile import steps
from tracer.analysis.ruleset.evaluate import evaluate, moved
from tracer.analysis.ruleset.model import Conntrack, Host, Packet
from tracer.analysis.ruleset.read import Reader, Texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Made = TypeVar("_Made")
COUNTED = 2
"""What each counter shows; at the later reading another number."""


def chain(kind: str, name: str) -> str:
    """`KUBE-SVC-…` as kube-proxy names it."""
    digest = hashlib.sha256(name.encode()).digest()
    return f"KUBE-{kind}-{base64.b32encode(digest).decode()[:16]}"


def address(number: int) -> str:
    """A Service's cluster IP."""
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def service(number: int, endpoints: int) -> tuple[list[str], list[str]]:
    """(chains, rules) of one Service with its endpoints."""
    name, ip = f"team-{number % 97}/service-{number}:http", address(number)
    svc = chain("SVC", name + "tcp")
    to = f'-d {ip}/32 -p tcp -m comment --comment "{name} cluster IP" -m tcp --dport 80'
    chains = [svc]
    rules = [
        f"-A KUBE-SERVICES {to} -j {svc}",
        f"-A {svc} ! -s 10.244.0.0/16 {to} -j KUBE-MARK-MASQ",
    ]
    for index in range(endpoints):
        pod = f"10.{100 + (number * endpoints + index >> 16)}.{number >> 4 & 255}.{index + 1}"
        sep = chain("SEP", f"{name}tcp{pod}:8080")
        chance = f" -m statistic --mode random --probability {1 / (endpoints - index):.11f}"
        last = index == endpoints - 1
        chains.append(sep)
        rules.append(
            f'-A {svc} -m comment --comment "{name} -> {pod}:8080"{"" if last else chance} -j {sep}'
        )
        rules.append(f'-A {sep} -s {pod}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ')
        rules.append(
            f'-A {sep} -p tcp -m comment --comment "{name}" -m tcp '
            f"-j DNAT --to-destination {pod}:8080"
        )
    return chains, rules


def iptables_save(services: int, endpoints: int, counted: int) -> str:
    """The whole nat table, as `iptables-save -c` prints it."""
    made = [service(number, endpoints) for number in range(services)]
    chains = ["KUBE-SERVICES", "KUBE-MARK-MASQ", *(name for names, _ in made for name in names)]
    head = ["*nat", *(f":{hook} ACCEPT [0:0]" for hook in ("PREROUTING", "OUTPUT"))]
    head += [f":{name} - [0:0]" for name in chains]
    rules = ["-A PREROUTING -j KUBE-SERVICES", "-A OUTPUT -j KUBE-SERVICES"]
    rules += [rule for _, listed in made for rule in listed]
    rules.append("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000")
    lines = [f"[{counted}:{counted * 60}] {rule}" for rule in rules]
    return "\n".join([*head, *lines, "COMMIT", ""])


def nft_json(text: str) -> bytes:
    """The same table as nft lists it, handles and all; what iptables-save tells better is short."""
    handle = 10
    objects: list[dict[str, object]] = [
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
    ]
    for line in text.splitlines():
        handle += 1
        where = {"family": "ip", "table": "nat", "handle": handle}
        if line.startswith(":"):
            name = line[1:].split()[0]
            base = {"type": "nat", "hook": name.lower(), "prio": -100, "policy": "accept"}
            hooked = base if name in {"PREROUTING", "OUTPUT"} else {}
            objects.append({"chain": {**where, "name": name, **hooked}})
        elif line.startswith("["):
            expressions = [
                {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}},
                {"xt": {"type": "match", "name": "comment"}},
                {"counter": {"packets": 2, "bytes": 120}},
                {"jump": {"target": line.split()[-1]}},
            ]
            objects.append({"rule": {**where, "chain": line.split()[2], "expr": expressions}})
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *objects]}).encode()


def timed(figures: dict[str, float], name: str, work: Callable[[], _Made]) -> _Made:
    """What `work` gives; the CPU seconds it took are noted."""
    start = time.process_time()
    made = work()
    figures[name] = round(time.process_time() - start, 3)
    return made


def measure(services: int, endpoints: int, *, nft: bool) -> Iterator[tuple[str, object]]:
    """Every figure, by name."""
    first = iptables_save(services, endpoints, COUNTED)
    later = iptables_save(services, endpoints, COUNTED + 1)
    texts = [Texts(nft=nft_json(text) if nft else b"", iptables=text) for text in (first, later)]
    yield "text_mb", round(sum(map(len, (texts[0].nft, first))) / 1e6, 1)
    figures: dict[str, float] = {}
    reader = Reader()
    ruleset = timed(figures, "read_s", lambda: reader.read(texts[0]))
    table = ruleset.tables["ip", "nat", False]
    rules = [rule for one in table.chains.values() for rule in one.rules]
    yield "rules", len(rules)
    timed(figures, "read_again_s", lambda: reader.read(texts[0]))
    packet = Packet(
        "ip", "10.244.0.9", address(services - 1), 6, 40000, 80, tcp_flags=2, iif="cni0", oif="",
        mark=0, ct=Conntrack("new", frozenset(), "original"),
    )  # fmt: skip
    host = Host(frozenset({"198.51.100.10"}))
    answer = timed(figures, "first_walk_s", lambda: evaluate(ruleset, "prerouting", packet, host))
    yield "candidates", len(answer.candidates)
    timed(figures, "walk_s", lambda: evaluate(ruleset, "prerouting", packet, host))
    after = timed(figures, "read_when_all_counted_s", lambda: reader.read(texts[1]))
    counted = timed(figures, "moved_s", lambda: moved(ruleset, after))
    yield "moved", len(counted)
    timed(figures, "every_rule_into_steps_s", lambda: [steps(rule) for rule in rules])
    yield from figures.items()
    yield "peak_mb", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What large rulesets cost.")
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--nft", action="store_true", help="with nft's listing, for the handles")
    options = parser.parse_args()
    print(json.dumps(dict(measure(options.services, options.endpoints, nft=options.nft)), indent=1))


if __name__ == "__main__":
    main()
