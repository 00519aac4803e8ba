"""Conntrack rows → tables, deaths, records, failures, counts."""

from __future__ import annotations

import numpy as np
import pytest
from ct_rows import flow, row, rows, udp

from tracer.analysis.addresses import address_bytes
from tracer.analysis.ct_death import deaths, maybe_early_dropped, tells_timeout
from tracer.analysis.ct_failures import failure_records
from tracer.analysis.ct_filter import any_address, parse_filter
from tracer.analysis.ct_invalid import invalid_packets
from tracer.analysis.ct_records import Describer
from tracer.analysis.ct_stats import stats_records
from tracer.analysis.ct_table import Table, keys
from tracer.analysis.ct_top import Census, top_records
from tracer.ct_layout import Event, Has, Status
from tracer.errors import TracerError
from tracer.model import Device, Namespace, Node, Pod
from tracer.netfilter.ct_log import KernelLog

NODE, POD = 1, 2
NEW, DESTROY, LISTED = Event.NEW, Event.DESTROY, Event.LISTED


@pytest.fixture
def node():
    pods = {
        "c": Pod("c", "shop", "client-0", POD, addresses=("10.244.0.5",)),
        "r": Pod("r", "data", "redis-0", 3, addresses=("10.244.0.6",)),
    }
    return Node(
        name="n1",
        netns=NODE,
        pods=pods,
        namespaces={NODE: Namespace(NODE, "node"), POD: Namespace(POD, "cni-1")},
        devices={(NODE, 1): Device(NODE, 1, "eth0", addresses=("198.51.100.10",))},
        pod_by_netns={POD: "c", 3: "r"},
        pod_by_address={"10.244.0.5": "c", "10.244.0.6": "r"},
    )


# Tables


def test_a_table_follows_births_and_deaths():
    table = Table()
    born = table.follow(rows(udp(1, time_ns=5), udp(2, time_ns=6), udp(1, DESTROY, time_ns=9)))
    assert born.tolist() == [0, 0, 5]
    assert (table.births, table.deaths, len(table.born_ns)) == (2, 1, 1)
    # Another of the same addresses, and the death of one that was never seen.
    assert table.follow(rows(udp(1, time_ns=10), udp(7, DESTROY))).tolist() == [0, 0]
    assert sorted(table.born_ns.values()) == [6, 10]


def test_what_lives_at_the_beginning_is_not_lost():
    table = Table()
    queued = rows(udp(3), udp(1, DESTROY))
    table.begin([rows(udp(1, LISTED), udp(2, LISTED)), rows(udp(3, LISTED))], queued)
    table.follow(queued)
    assert (table.births, table.deaths) == (1, 1)
    assert (table.births_lost, table.deaths_lost) == (0, 0)
    assert len(table.born_ns) == 2


def test_a_dump_shows_what_was_missed():
    """1 lives, 2 died unseen, 3 was born unseen, 4's birth and 5's death are still in the queue."""
    table = Table()
    table.follow(rows(udp(1), udp(2), udp(5)))
    queued = rows(udp(4), udp(5, DESTROY))
    dump = [rows(udp(1, LISTED), udp(3, LISTED), udp(4, LISTED), udp(5, LISTED))]
    correction = table.correct(dump, queued)
    assert correction.gone == 1
    assert correction.found["id"].tolist() == [3]
    assert correction.alive == 4
    table.follow(queued)
    assert (table.births_lost, table.deaths_lost) == (1, 1)
    assert len(table.born_ns) == 3  # 1, 3, 4
    assert table.births + table.births_lost == 5
    assert table.deaths + table.deaths_lost == 2


def test_news_that_comes_after_all_is_not_lost():
    table = Table()
    table.follow(rows(udp(1)))
    table.correct([rows(udp(2, LISTED))], rows())
    assert (table.births_lost, table.deaths_lost) == (1, 1)
    table.follow(rows(udp(1, DESTROY), udp(2)))
    assert (table.births_lost, table.deaths_lost) == (0, 0)


def test_dying_entries_of_a_dump_are_dead():
    table = Table()
    table.follow(rows(udp(1), udp(1, DESTROY)))
    correction = table.correct([rows(udp(1, LISTED, status=8 | Status.DYING))], rows())
    assert (correction.alive, len(correction.found)) == (0, 0)


def test_entries_with_one_id_are_told_apart():
    one, other = udp(1), udp(2)
    other["id"] = one["id"]
    assert len(set(keys(rows(one, other, udp(1, DESTROY))).tolist())) == 2


# Why they end


@pytest.mark.parametrize(
    ("fields", "told", "early", "wanted"),
    [
        ({}, True, False, ("timeout", False)),
        ({}, False, False, ("timeout", True)),
        ({"timeout_s": 20, "portid": 7}, True, True, ("deleted", False)),
        ({"timeout_s": 20}, True, True, ("early-drop", True)),
        ({"timeout_s": 20}, True, False, ("removed", False)),
        ({"timeout_s": 20, "status": 8 | Status.ASSURED}, True, True, ("removed", False)),
        ({"timeout_s": 9, "proto_state": 8, "protocol": 6}, True, False, ("reset", True)),
        (
            {"timeout_s": 9, "proto_state": 7, "protocol": 6, "status": 14},
            True,
            False,
            ("reopened", True),
        ),
    ],
)
def test_why_an_entry_ended(fields, told, early, wanted):
    protocol = fields.pop("protocol", 17)
    made = row(flow("10.0.0.1", "10.0.0.2", 1, 2, protocol), event=DESTROY, **fields)
    (death,) = deaths(made, told=told, early_dropped=early).values()
    assert (death.reason, death.inferred) == wanted


def test_what_proves_that_the_kernel_tells_timeouts():
    assert not tells_timeout(rows(udp(1), udp(1, DESTROY)))
    assert not tells_timeout(udp(1, timeout_s=30))
    assert tells_timeout(rows(udp(1), udp(1, DESTROY, timeout_s=30)))
    assert tells_timeout(udp(1, DESTROY, present=Has.PROTO_STATE))


def test_candidates_of_early_drop():
    some = rows(udp(1, DESTROY, timeout_s=3), udp(2, DESTROY), udp(3, timeout_s=3))
    assert maybe_early_dropped(some).tolist() == [True, False, False]


# Records


def test_dnat_to_a_pod(node):
    orig = flow("10.244.0.5", "10.96.0.7", 4000, 6379, 6)
    reply = flow("10.244.0.6", "10.244.0.5", 6379, 4000, 6)
    fields = {"proto_state": 1, "mark": 0x4000, "zone": 3, "netns": NODE, "timeout_s": 120}
    (record,) = Describer(node).records(row(orig, reply, **fields))
    assert record["time"] == "2023-11-14T22:13:20.000000000Z"
    wanted = {
        "type": "conntrack",
        "event": "new",
        "netns.name": "node",
        "k8s.src.pod.name": "client-0",
        "k8s.dst.pod.name": "redis-0",
        "src.address": "10.244.0.5",
        "dst.address": "10.96.0.7",
        "service.address": "10.96.0.7",
        "service.port": 6379,
        "nat": "dnat",
        "nat.dst.address": "10.244.0.6",
        "conntrack.tcp.state": "SYN_SENT",
        "conntrack.status": ["confirmed"],
        "conntrack.mark": 0x4000,
        "conntrack.zone": 3,
        "conntrack.timeout_s": 120,
        "conntrack.reply.src.port": 6379,
    }
    assert {name: record.get(name) for name in wanted} == wanted
    assert "nat.src.address" not in record
    assert "conntrack.orig.packets" not in record


def test_masquerade_and_hairpin(node):
    orig = flow("10.244.0.5", "10.96.0.7", 4000, 80)
    reply = flow("10.244.0.5", "198.51.100.10", 8080, 61000)
    (record,) = Describer(node).records(row(orig, reply))
    assert record["nat"] == "dnat+snat"
    assert record["nat.hairpin"] is True
    assert record["nat.masquerade"] == "inferred"
    assert (record["nat.src.address"], record["nat.src.port"]) == ("198.51.100.10", 61000)


def test_a_port_alone_that_changed_is_snat(node):
    orig = flow("10.244.0.5", "10.244.0.6", 4000, 80)
    (record,) = Describer(node).records(row(orig, flow("10.244.0.6", "10.244.0.5", 80, 61000)))
    assert record["nat"] == "snat"
    assert "nat.masquerade" not in record


def test_an_end_with_counters_and_times(node):
    first, last = 1_700_000_000 * 10**9, 1_700_000_004 * 10**9
    fields = {"present": Has.COUNTERS | Has.TIMES, "orig_packets": 2, "reply_bytes": 90}
    made = udp(1, DESTROY, start_ns=first, stop_ns=last, **fields)
    (death,) = deaths(made, told=True, early_dropped=False).values()
    (record,) = Describer(node).records(made, np.zeros(1, np.int64), {0: death})
    assert record["duration_ns"] == 4 * 10**9
    assert record["time"] == "2023-11-14T22:13:24.000000000Z"
    assert (record["conntrack.orig.packets"], record["conntrack.reply.bytes"]) == (2, 90)
    assert (record["conntrack.destroy.reason"], record["inferred"]) == ("timeout", False)


def test_how_long_it_lived_by_our_own_watch(node):
    made = udp(1, DESTROY, time_ns=9 * 10**9)
    (record,) = Describer(node).records(made, np.array([4 * 10**9]))
    assert record["duration_ns"] == 5 * 10**9
    (record,) = Describer(node).records(made, np.array([9 * 10**9]))
    assert "duration_ns" not in record  # born and ended between two reads


def test_names_change_with_the_node(node):
    describer = Describer(Node("n1", NODE))
    made = row(flow("10.244.0.5", "10.244.0.6", 1, 2))
    assert "k8s.src.pod.name" not in describer.records(made)[0]
    describer.update(node)
    assert describer.records(made)[0]["k8s.src.pod.name"] == "client-0"


def test_an_expectation(node):
    made = row(
        flow("10.0.0.1", "10.0.0.2", 0, 40001, 6), event=Event.EXPECT_NEW, present=Has.MASTER
    )
    for name, value in flow("10.0.0.1", "10.0.0.2", 4000, 21, 6).items():
        made["master"][name] = value
    (record,) = Describer(node).records(made)
    assert record["event"] == "expect"
    assert record["conntrack.master.dst.port"] == 21
    assert "nat" not in record
    assert "conntrack.status" not in record


# Filters


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", [1, 1, 1]),
        ("tcp", [1, 0, 0]),
        ("udp", [0, 1, 0]),
        ("ip6", [0, 0, 1]),
        ("not tcp", [0, 1, 1]),
        ("port 80", [1, 0, 0]),
        ("port 8080", [1, 0, 0]),
        ("dport 53 and udp", [0, 1, 0]),
        ("sport 53", [0, 0, 0]),
        ("host 10.96.0.1", [1, 0, 0]),
        ("dst 10.0.0.9", [1, 0, 0]),
        ("src 10.0.0.9", [0, 0, 0]),
        ("net 10.0.0.0/8", [1, 1, 0]),
        ("net fd00::/16 icmpv6", [0, 0, 1]),
        ("zone 7", [0, 1, 0]),
        ("mark 0x4000", [1, 0, 0]),
        ("state ESTABLISHED", [1, 0, 0]),
        ("status assured", [1, 0, 0]),
        ("status unreplied", [0, 1, 1]),
        ("port 128", [0, 0, 0]),
    ],
)
def test_filters(text, wanted):
    tcp = row(
        flow("10.0.0.1", "10.96.0.1", 4000, 80, 6),
        flow("10.0.0.9", "10.0.0.1", 8080, 4000, 6),
        proto_state=3,
        status=14,
        mark=0x4000,
    )
    dns = row(flow("10.0.0.1", "10.1.0.1", 4000, 53), zone=7)
    ping = row(flow("fd00::1", "fd00::2", 128, 0, 58), family=10)
    assert parse_filter(text)(rows(tcp, dns, ping)).tolist() == [bool(one) for one in wanted]


@pytest.mark.parametrize(
    "text", ["prot 80", "port", "port x", "host 10.0.0", "not", "state WRONG", "status no", "or"]
)
def test_a_filter_that_is_none(text):
    with pytest.raises(TracerError, match="not understood") as raised:
        parse_filter(text)
    assert "terms" in raised.value.hint


def test_addresses_on_both_sides_of_nat():
    some = rows(
        row(flow("10.0.0.1", "10.96.0.1"), flow("10.0.0.9", "10.0.0.1")),
        row(flow("10.0.0.2", "10.0.0.3")),
    )
    assert any_address(some, frozenset([address_bytes("10.0.0.9")])).tolist() == [True, False]


# Failures, counts


def test_failures_are_told_apart(node):
    grown = {"drop": 12, "insert_failed": 3, "chaintoolong": 1, "early_drop": 3, "found": 99}
    records = failure_records(node, POD, grown, (262144, 262144), 0)
    told = {record["failure"]: record["count"] for record in records}
    assert told == {"insert-failed": 2, "chain-too-long": 1, "early-drop": 3, "table-full": 10}
    full = next(record for record in records if record["failure"] == "table-full")
    assert "in pod shop/client-0" in full["explanation"]
    assert "262144 of 262144" in full["explanation"]
    assert full["k8s.pod.name"] == "client-0"
    assert all(record["hint"] for record in records)


def test_nothing_failed(node):
    assert failure_records(node, NODE, {"found": 5, "search_restart": 1}, (0, 0), 0) == []


def test_who_fills_the_table(node):
    census = Census(NODE)
    census.count(
        rows(
            row(flow("10.244.0.5", "10.96.0.1", 1, 80, 6), proto_state=3, status=14),
            row(flow("10.244.0.5", "10.96.0.1", 2, 80, 6), proto_state=7, status=14),
            row(flow("10.244.0.5", "10.96.0.1", 3, 80, 6), proto_state=7, status=14),
            row(flow("203.0.113.9", "198.51.100.10", 9, 53)),
        )
    )
    table, *top = top_records(node, [census], {NODE: (4, 8)}, most=1)
    assert (table["entries"], table["used"]) == (4, 0.5)
    assert table["states"] == {"tcp TIME_WAIT": 2, "tcp ESTABLISHED": 1, "udp unreplied": 1}
    opener, goal = top
    assert (opener["k8s.src.pod.name"], opener["entries"], opener["share"]) == ("client-0", 3, 0.75)
    assert (goal["dst.address"], goal["dst.port"], goal["entries"]) == ("10.96.0.1", 80, 3)


def test_statistics(node):
    cpus = [{"cpu": 0, "drop": 1}, {"cpu": 1, "drop": 2}]
    settings = {"net.netfilter.nf_conntrack_max": "100"}
    whole, *each = stats_records(node, NODE, cpus, settings)
    assert (whole["stats.drop"], whole["conntrack.max"]) == (3, 100)
    assert [(one["cpu"], one["stats.drop"]) for one in each] == [(0, 1), (1, 2)]


# The kernel's log

LOGGED = (
    (
        "nf_ct_proto_6: SEQ is over upper bound 2 (over the window of the receiver) IN=v0 OUT=v1"
        " MAC=5a:60 SRC=10.244.0.5 DST=10.0.0.2 LEN=40 TOS=0x00 PREC=0x00 TTL=64 ID=2 PROTO=TCP"
        " SPT=5 DPT=6 SEQ=1 ACK=1 WINDOW=8192 RES=0x00 ACK PSH URGP=0 "
    ),
    "nf_ct_proto_17: bad checksum IN= OUT=v0 SRC=fd00::1 DST=fd00::2 LEN=40 PROTO=UDP SPT=7 DPT=8",
    "nf_ct_proto_1: something new IN=v0 OUT= SRC=10.0.0.1 DST=10.0.0.2 LEN=4 PROTO=ICMP TYPE=3",
    "nf_ct_ftp: dropping packet",
)


def test_what_the_log_says(node):
    invalid = invalid_packets(LOGGED, node, 0)
    window, checksum, other = invalid.records
    assert window["why"] == "SEQ is over upper bound 2 (over the window of the receiver)"
    assert "beyond the window" in window["explanation"]
    assert (window["src.port"], window["dst.port"], window["tcp.flags"]) == (5, 6, "PSH,ACK")
    assert window["k8s.src.pod.name"] == "client-0"
    assert window["interface.name"] == "v0"
    assert (checksum["transport"], checksum["src.address"]) == ("udp", "fd00::1")
    assert "checksum" in checksum["explanation"]
    assert other["explanation"].endswith("something new.")
    assert parse_filter("udp ip6 port 8")(invalid.rows).tolist() == [False, True, False]


def test_the_log_file(tmp_path):
    path = tmp_path / "kmsg"
    path.write_text("5,1,2,-;nf_ct_old: before\n")
    log = KernelLog(str(path))
    with path.open("a") as file:
        file.write("5,3,4,-;nf_ct_proto_6: now\n")
    assert log.read() == ["nf_ct_proto_6: now"]
    assert log.read() == []
    log.close()
    assert KernelLog(str(tmp_path / "none")).read() == []
