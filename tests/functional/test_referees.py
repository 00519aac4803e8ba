"""tracer against others who see the same packets: the kernel's own trace, its other readers."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from lab import namespaces, runner
from lab.expect import udp
from lab.rules import nft
from lab.shell import run
from lab.traffic import new_port, send_udp

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 31
LINE = re.compile(r"kfree_skb: .*protocol=(\d+) location=([^+ ]+\+0x[0-9a-f]+)\S* reason: (\w+)")


@contextmanager
def kernels_own_trace(directory: Path):
    """Counter of (location, reason), filled when the block ends, from an instance of tracefs."""
    run("mount", "-t", "tracefs", "tracer-tests", str(directory))
    seen: Counter[tuple[str, str]] = Counter()
    instance = directory / "instances" / "tracer-tests"
    try:
        instance.mkdir(exist_ok=True)
        switch = instance / "events" / "skb" / "kfree_skb" / "enable"
        switch.write_text("1")
        yield seen
        switch.write_text("0")
        for protocol, location, reason in LINE.findall((instance / "trace").read_text()):
            if protocol != "0":  # netlink messages and the like are no packets
                seen[location, reason] += 1
    finally:
        instance.rmdir()
        run("umount", str(directory))


def assorted_losses(cluster, routed):
    """Losses of several kinds in several places."""
    client, web, port = cluster.client, cluster.web, new_port()
    with nft(namespaces.node(), "inet", "forward", f"udp dport {port} drop"):
        send_udp(client.where, (cluster.outside_ip4, port), COUNT)
    send_udp(client.where, (web.ip4, port), COUNT)
    send_udp(client.where, (web.ip6, port), COUNT)
    send_udp(routed.left.where, ("10.247.1.1", port), COUNT)
    send_udp(routed.left.where, ("fd00:99::1", port), COUNT)
    return port


def test_all_that_the_kernel_traces_is_told(cluster, routed, cri_env, tmp_path):
    options = ("drops", "-o", "json", "--rate-limit", "0")
    with runner.running(*options, env=cri_env) as live:
        with kernels_own_trace(tmp_path) as kernel:
            port = assorted_losses(cluster, routed)
            runner.watch(live).expect(0, {"dst.port": 0}, timeout_s=0)
        done = live.stop()
    drops = [record for record in done.records if record["type"] == "drop"]
    told = Counter((r["drop.location"].partition("/")[0], r["drop.reason"]) for r in drops)
    assert sum(kernel.values()) >= 5 * COUNT
    missing = {key: (n, told[key]) for key, n in kernel.items() if told[key] < n}
    assert not missing, f"(kernel, tracer): {missing}"
    assert len([r for r in drops if r.get("dst.port") == port]) == 5 * COUNT


def alike(records, port):
    """What two tracers must agree on: all but the times, and the order on different CPUs."""
    about = [r for r in records if r["type"] == "drop" and r.get("dst.port") == port]
    return sorted(json.dumps({k: v for k, v in r.items() if k != "time"}) for r in about)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("--reader", "mmap"), ("--reader", "callback")),
        (("--attach", "skb-drop=tp_btf"), ("--attach", "skb-drop=raw_tp")),
    ],
)
def test_both_ways_tell_the_same(cluster, routed, cri_env, one, other):
    """The mapped ring and bcc's callback; typed and raw tracepoints.

    Rules stay unread: the rule here is gone at once, and each tracer reads in its own time.
    """
    options = ("drops", "-o", "json", "--rate-limit", "0", "--rules=off", "udp")
    with (
        runner.running(*options, *one, env=cri_env) as first,
        runner.running(*options, *other, env=cri_env) as second,
    ):
        port = assorted_losses(cluster, routed)
        for live in (first, second):
            runner.until(lambda live=live: len(alike(live.records(), port)) >= 5 * COUNT, "all")
        left, right = alike(first.stop().records, port), alike(second.stop().records, port)
    assert len(left) == 5 * COUNT
    assert left == right


def test_the_order_is_that_of_the_drops(cluster, drops):
    watch, ports = runner.watch(drops), [new_port() for _ in range(7)]
    for port in ports:
        send_udp(cluster.client.where, (cluster.web.ip4, port), 1)
    about = udp(cluster.client.ip4, cluster.web.ip4, 0) | {"dst.port": lambda p: p in ports}
    found = watch.expect(len(ports), about)
    assert [record["dst.port"] for record in found] == ports
    assert [record["time"] for record in found] == sorted(record["time"] for record in found)
