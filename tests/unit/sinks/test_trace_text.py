"""Trees, one-line packets, tables and Hubble flows of packets that were really followed."""

import json

import pytest
from hop_rows import recording

from tracer.analysis.latency import Latency
from tracer.analysis.paths import Assembler, path_records
from tracer.sinks import open_sink
from tracer.sinks.hubble import envelope
from tracer.sinks.output import Output
from tracer.sinks.terminal import Terminal, span
from tracer.sinks.trace_text import Tree, bars, hop_notes

NAMES = ("bridge", "flood", "forward_drop", "retransmit", "service")
END = {"type": "end", "packets": 3, "shown": 2, "lost": {"hops": 4}}


def packets(name):
    hops, drops, context = recording(name)
    assembler = Assembler()
    assembler.add(hops, drops)
    return path_records(assembler.take(0, everything=True), context)


def written(tmp_path, form, records):
    sink = open_sink(form, tmp_path / "out")
    sink.write(records)
    sink.lost("hops", 4)
    sink.close()
    return (tmp_path / "out").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_trees_tell_every_hop_in_no_more_than_120_columns(tmp_path, name):
    some = packets(name)
    latency = Latency()
    latency.add(some)
    lines = written(tmp_path, "tree", [*some, *latency.records(), END])
    assert max(map(len, lines)) <= 120
    assert not any("\033" in line or line != line.rstrip() for line in lines)
    hops = [hop for packet in some for hop in packet["hops"]]
    hooks = {f"  {hop['hook']} " for hop in hops}
    shown = [line for line in lines if "│" in line and any(hook in line for hook in hooks)]
    assert len(shown) == len(hops)
    assert lines[-2:] == ["3 packets followed, 2 shown; lost: 4 of hops", "lost: 4 of hops"]


def test_a_tree(tmp_path):
    (first, *_) = packets("service")
    lines = written(tmp_path, "tree", [first])
    assert lines[0].endswith("→ 10.96.0.10:80 TCP SYN 60 B: delivered after 160 µs")
    port = first["src.port"]
    assert lines[1] == (f"  shop/client-0 → shop/web-0, as 10.244.2.1:{port} → 10.244.2.2:8080")
    assert [line for line in lines if "│" not in line][2:5] == [
        " pod shop/client-0", " node", " pod shop/web-0",
    ]  # fmt: skip
    assert " │  +5.87 µs  net_dev_queue           eth0" in lines


def test_a_flood_is_a_tree_with_branches(tmp_path):
    lines = written(tmp_path, "tree", packets("flood")[:1])
    assert sum(line.endswith("├─ clone") for line in lines) == 3
    assert sum(" │  │" in line and "kfree_skb" in line for line in lines) == 3


def test_a_hint_is_given_once(tmp_path):
    lines = written(tmp_path, "tree", packets("forward_drop"))
    assert sum(line.startswith("  NETFILTER_DROP: ") for line in lines) == 3
    assert sum("hint: " in line for line in lines) == 1


@pytest.mark.parametrize("name", NAMES)
def test_brief_is_one_line_a_packet(tmp_path, name):
    some = packets(name)
    lines = written(tmp_path, "brief", some)
    assert len(lines) == len(some) + 1
    for line, packet in zip(lines, some, strict=False):
        assert line.split()[1] == packet["verdict"]
        assert packet["packet"] in line
        assert ("inferred" in line) is ("inferred" in packet)


def test_colours_only_where_there_is_a_terminal(tmp_path):
    output = Output(tmp_path / "out")
    Tree(output, Terminal(80, coloured=True)).write(packets("forward_drop"))
    assert "\033[31m" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_hubble_flows(tmp_path, name):
    some = packets(name)
    lines = [json.loads(line) for line in written(tmp_path, "hubble", some)]
    assert "lost_events" in lines.pop()
    assert len(lines) == len(some)
    for line, packet in zip(lines, some, strict=True):
        flow = line["flow"]
        assert flow["verdict"] == ("DROPPED" if packet["verdict"] == "dropped" else "FORWARDED")
        assert flow["event_type"]["type"] == (1 if packet["verdict"] == "dropped" else 4)
        assert flow["extensions"]["value"]["hops"] == packet["hops"]


def test_hubble_observation_points():
    packet = packets("bridge")[0]
    assert envelope(packet)["flow"]["trace_observation_point"] == "TO_ENDPOINT"
    gone = envelope({**packet, "verdict": "forwarded"})["flow"]
    assert (gone["trace_observation_point"], gone["event_type"]["sub_type"]) == ("TO_NETWORK", 11)
    unknown = envelope({**packet, "verdict": "unknown"})["flow"]
    assert unknown["verdict"] == "TRACED"
    assert "trace_observation_point" not in unknown


def test_what_tc_does():
    came = {"hook": "netif_receive_skb", "tc.filters": ["tcx a id 3", "u32: mirred"]}
    assert hop_notes(came) == ["tc ingress: tcx a id 3, u32: mirred"]
    place = {"tc.redirect.hook": "ingress", "tc.redirect.interface.name": "lxc1"}
    left = {"hook": "net_dev_queue", "tc.redirect.action": "redirected", **place}
    by = {"tc.redirect.filters": ["tcx a id 3"], "tc.filters": ["bpf b id 4"]}
    assert hop_notes(left | by) == [
        "redirected by tc at lxc1 ingress (tcx a id 3)",
        "tc egress: bpf b id 4",
    ]
    peer = {"tc.redirect.peer": "lxc2", "tc.redirect.inferred": True}
    assert hop_notes(left | peer) == [
        "redirected to the peer of lxc2 by tc at lxc1 ingress, inferred"
    ]
    nowhere = {"tc.redirect.action": "redirected", "tc.redirect.hook": "egress"}
    assert hop_notes({"hook": "net_dev_queue", **nowhere}) == ["redirected by tc at egress"]


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.00 µs"), (14_723, "14.7 µs"), (107_147, "107 µs"),
     (3_204_000, "3.20 ms"), (12_000_000_000, "12.0 s"), (7_200_000_000_000, "7200 s")],
)  # fmt: skip
def test_spans(duration_ns, text):
    assert span(duration_ns) == text


def test_bars():
    assert bars({"512": 1, "1024": 8, "4096": 4}) == "512 ▁█ ▄ 4096"
    assert bars({"0": 3}) == "1 █ 1"
