"""Every name that we write is documented, and every documented name is written by some code."""

import re
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hop_rows import recording

from tracer import flow_table
from tracer.analysis.conntrack import conntrack_fields
from tracer.analysis.drop_totals import DropTotals
from tracer.analysis.drops import Context, drop_record
from tracer.analysis.latency import Latency
from tracer.analysis.netfilter import netfilter_place
from tracer.analysis.packet import parse
from tracer.analysis.paths import Assembler, path_records
from tracer.flow_table import COLUMNS, FIELDS
from tracer.layout import layout
from tracer.model import Namespace, Node, Pod

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "formats.md").read_text()
FLAT = TEXT.partition("## Hubble")[0]
ROWS = [line.split("|")[1] for line in FLAT.splitlines() if line.startswith("| `")]
DOCUMENTED = {name for row in ROWS for name in re.findall(r"`([a-z0-9_][a-z0-9_.]*)`", row)}


def ipv4(protocol, payload, fragment=0):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0)
    return head + bytes([10, 1, 0, 2, 10, 1, 0, 3]) + payload


ICMP_ERROR = struct.pack("!BBHI", 3, 3, 0, 0) + ipv4(17, bytes(8))
PACKETS = [
    (0x0800, ipv4(6, bytes(20))),
    (0x0800, ipv4(132, bytes(16), fragment=0x2000)),
    (0x0800, ipv4(1, ICMP_ERROR)),
    (0x8100, struct.pack("!HH", 5, 0x0806) + bytes.fromhex("0001080006040001") + bytes(20)),
]


def event_and_context():
    event = np.zeros(1, layout().structs["drop_event"])[0]
    event["tuple"]["ethertype"], event["netns"], event["ifindex"], event["mark"] = 0x0800, 5, 2, 1
    event["ifname"], event["stack"][0] = b"eth0", 1
    event["ct"]["present"], event["ct"]["tcp_state"] = 1, 3
    for name in ("orig", "reply"):
        entry = event["ct"][name]
        entry["protocol"], entry["sport"], entry["dport"], entry["ethertype"] = 6, 1, 2, 0x0800
    raw = bytes(14) + ipv4(6, bytes(20))
    event["packet"][: len(raw)] = np.frombuffer(raw, np.uint8)
    event["captured_bytes"] = len(raw)
    pods = {"u": Pod("u", "shop", "web", 5, addresses=("10.1.0.3",))}
    node = Node(
        "n", 4, pods, {5: Namespace(5, "cni-1")}, pod_by_netns={5: "u"},
        pod_by_address={"10.1.0.3": "u", "10.1.0.2": "u"},
    )  # fmt: skip
    return event, Context(node, {}, lambda _: "nft_do_chain+0x1", 0)


@cache
def emitted():
    event, context = event_and_context()
    keys = np.zeros(1, layout().structs["drop_key"])
    counts = np.zeros((1, 2), layout().structs["drop_count"])
    keys["netns"] = 5
    totals = DropTotals()
    totals.add(keys, counts, context)
    stack = ["nft_do_chain+0x1", "nft_do_chain_ipv4+0x1", "nf_hook_slow+0x1", "ip_forward+0x1"]
    records = [
        drop_record(event, context, with_stack=True),
        *totals.records(context),
        *(parse(*packet) for packet in PACKETS),
        netfilter_place(stack[0], stack),
        conntrack_fields(event["ct"]),
    ]
    records += [part for packet in followed() for part in (packet, *packet.get("hops", ()))]
    return {name for record in records for name in record}


def followed():
    """Packets of all recordings of real runs, and their latencies."""
    packets, latency = [], Latency()
    for name in ("service", "forward_drop", "flood", "retransmit"):
        hops, drops, context = recording(name)
        assembler = Assembler()
        assembler.add(hops, drops)
        packets += path_records(assembler.take(0, everything=True), context)
    latency.add(packets)
    return [*packets, *latency.records()]


def test_every_name_of_sample_records_is_documented():
    names = emitted()
    assert len(names) > 50
    assert names <= DOCUMENTED, names - DOCUMENTED


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_documented_name_is_known_to_the_code(name):
    """Names that a sample cannot show are at least spelled out, or put together, in the code."""
    if name in emitted() or name in FIELDS:
        return
    assert f'"{name}"' in code() or is_put_together(name), name


@cache
def code():
    return "\n".join(path.read_text() for path in sorted(ROOT.glob("tracer/**/*.py")))


def is_put_together(name):
    """Whether some code has its begin, up to a dot, and some has the rest."""
    parts = name.split(".")
    ways = ((".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts)))
    return any(
        re.search(rf'"{re.escape(begin)}\.[{{"]', code())
        and re.search(rf'[".]{re.escape(rest)}"', code())
        for begin, rest in ways
    )


def test_the_columns_of_flows_are_documented_as_they_are():
    types = {flow_table.TEXT: "text", flow_table.TIME: "time", flow_table.BOOL: "boolean"}
    types |= {f"u{size}": f"{8 * size} bits" for size in (1, 2, 4, 8)}
    rows = [f"| `{field.name}` | {types[field.kind]} | {field.meaning} |" for field in COLUMNS]
    assert "\n".join(rows) in TEXT
