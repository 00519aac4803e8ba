"""What the sinks write of the same drops and flows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hubble_schema import read

from tracer.errors import TracerError
from tracer.sinks import FORMATS, open_sink
from tracer.sinks.hubble import envelope
from tracer.sinks.output import Output
from tracer.sinks.terminal import Terminal
from tracer.sinks.text import Text, drops_summary

DROP = {
    "type": "drop",
    "time": "2026-11-22T18:43:37.123456789Z",
    "direction": "ingress",
    "verdict": "dropped",
    "k8s.node.name": "n1",
    "k8s.pod.namespace": "shop",
    "k8s.pod.name": "web-0",
    "k8s.src.namespace": "shop",
    "k8s.src.pod.name": "client-0",
    "k8s.dst.namespace": "shop",
    "k8s.dst.pod.name": "web-0",
    "network.type": "ipv4",
    "transport": "udp",
    "src.address": "10.1.0.2",
    "dst.address": "10.1.0.3",
    "src.port": 4000,
    "dst.port": 53,
    "packet": "10.1.0.2:4000 → 10.1.0.3:53 UDP",
    "packets": 1,
    "bytes": 44,
    "drop.reason": "NO_SOCKET",
    "drop.location": "__udp4_lib_rcv+0x4bc",
    "interface.name": "eth0",
    "interface.index": 2,
    "netns": 4026532001,
    "netns.name": "cni-5d4c3b2a-1111-2222",
    "explanation": "No UDP socket takes port 53 in pod shop/web-0.",
    "hint": "is the server running?",
}
FLOW = {
    "type": "flow",
    "time": "2026-11-22T18:43:37.000000001Z",
    "end_time": "2026-11-22T18:43:38.000000001Z",
    "direction": "egress",
    "verdict": "forwarded",
    "k8s.node.name": "n1",
    "network.type": "ipv6",
    "transport": "tcp",
    "src.address": "fd00::2",
    "dst.address": "fd00::3",
    "src.port": 4000,
    "dst.port": 80,
    "tcp.flags": "SYN,ACK",
    "packets": 3,
    "bytes": 180,
}
PACKET = {
    "type": "packet",
    "time": "2026-11-22T18:43:37.123456789Z",
    "duration_ns": 90369,
    "verdict": "delivered",
    "k8s.node.name": "n1",
    "k8s.src.namespace": "shop",
    "k8s.src.pod.name": "client-0",
    "network.type": "ipv4",
    "transport": "udp",
    "src.address": "10.1.0.2",
    "dst.address": "10.1.0.3",
    "src.port": 4000,
    "dst.port": 53,
    "packet": "10.1.0.2:4000 → 10.1.0.3:53 UDP",
    "packets": 1,
    "bytes": 44,
    "flow": "10.1.0.2:4000 → 10.1.0.3:53 UDP",
    "hops": [
        {"hook": "net_dev_queue", "netns.name": "node", "time": "2026-11-22T18:43:37.123456789Z"}
    ],
}
SUMMARY = {
    "type": "summary",
    "k8s.pod.namespace": "shop",
    "k8s.pod.name": "web-0",
    "drop.reason": "NO_SOCKET",
    "drop.location": "__udp4_lib_rcv+0x4bc",
    "packets": 7,
    "bytes": 308,
    "shown": 7,
}
END = {"type": "end", "packets": 7, "shown": 7, "lost": {}}


def lines(tmp_path, form, *records, lost=()):
    path = tmp_path / "out"
    sink = open_sink(form, path)
    sink.write(records)
    for source, count in lost:
        sink.lost(source, count)
    sink.close()
    return path.read_text().splitlines()


@pytest.mark.parametrize("form", ["json", "flat"])
def test_json_lines_keep_every_field_in_order(tmp_path, form):
    told = lines(tmp_path, form, DROP, SUMMARY, END, lost=[("drop_events", 12)])
    assert [json.loads(line) for line in told[:3]] == [DROP, SUMMARY, END]
    assert list(json.loads(told[0])) == list(DROP)
    assert json.loads(told[3]) == {"type": "lost", "source": "drop_events", "count": 12}


def test_hubble_drop(tmp_path):
    (line,) = lines(tmp_path, "hubble", DROP, SUMMARY, END)
    told = json.loads(line)
    extras = told["flow"].pop("extensions")
    assert told == {
        "flow": {
            "time": DROP["time"],
            "verdict": "DROPPED",
            "drop_reason": 178,
            "drop_reason_desc": "SOCKET_LOOKUP_FAILED",
            "IP": {"source": "10.1.0.2", "destination": "10.1.0.3", "ipVersion": "IPv4"},
            "l4": {"UDP": {"source_port": 4000, "destination_port": 53}},
            "source": {"namespace": "shop", "pod_name": "client-0"},
            "destination": {"namespace": "shop", "pod_name": "web-0"},
            "Type": "L3_L4",
            "node_name": "n1",
            "event_type": {"type": 1, "sub_type": 178},
            "traffic_direction": "INGRESS",
            "interface": {"index": 2, "name": "eth0"},
            "Summary": "NO_SOCKET at __udp4_lib_rcv+0x4bc:"
            " No UDP socket takes port 53 in pod shop/web-0.",
        },
        "node_name": "n1",
        "time": DROP["time"],
    }
    assert extras["@type"] == "type.googleapis.com/google.protobuf.Struct"
    assert extras["value"]["packets"] == 1
    assert extras["value"]["drop.reason"] == "NO_SOCKET"
    assert "src.address" not in extras["value"]


def test_hubble_reason_that_hubble_does_not_know():
    flow = envelope({**DROP, "drop.reason": "QDISC_DROP"})["flow"]
    assert flow["event_type"] == {"type": 1, "sub_type": 255}
    assert flow["drop_reason"] == 255
    assert "drop_reason_desc" not in flow
    assert flow["Summary"].startswith("QDISC_DROP at ")


def test_hubble_ttl():
    ttl = {**DROP, "drop.reason": "IP_INHDR", "drop.location": "ip_forward+0x2c0"}
    assert envelope(ttl)["flow"]["drop_reason_desc"] == "TTL_EXCEEDED"
    header = {**ttl, "drop.location": "ip_rcv_core+0x22c"}
    assert envelope(header)["flow"]["drop_reason_desc"] == "INVALID_PACKET_DROPPED"


def test_hubble_flow():
    flow = envelope({**FLOW, "conntrack.direction": "original"})["flow"]
    assert flow["l4"]["TCP"]["flags"] == {"SYN": True, "ACK": True}
    assert flow["event_type"] == {"type": 4, "sub_type": 5}
    assert flow["trace_observation_point"] == "FROM_ENDPOINT"
    assert flow["is_reply"] is False
    assert flow["IP"]["ipVersion"] == "IPv6"
    assert flow["Summary"] == "TCP Flags: SYN, ACK"
    assert flow["extensions"]["value"]["end_time"] == FLOW["end_time"]
    assert "source" not in flow


def test_hubble_services():
    service = {"service.namespace": "data", "service.name": "redis"}
    asked = envelope({**FLOW, **service, "service.address": FLOW["dst.address"]})["flow"]
    answers = envelope({**FLOW, **service, "service.address": FLOW["src.address"]})["flow"]
    named = {"namespace": "data", "name": "redis"}
    assert (asked["destination_service"], answers["source_service"]) == (named, named)
    assert "source_service" not in asked
    assert "destination_service" not in answers
    assert not {"source_service", "destination_service"} & envelope(FLOW)["flow"].keys()


def test_hubble_dns_names():
    line = envelope({**FLOW, "src.dns.name": "a.test", "dst.dns.name": "b.test,c.test"})
    assert line["flow"]["source_names"] == ["a.test"]
    assert line["flow"]["destination_names"] == ["b.test", "c.test"]
    assert "dst.dns.name" not in line["flow"]["extensions"]["value"]
    assert list(read(json.dumps(line)).flow.destination_names) == ["b.test", "c.test"]
    assert "source_names" not in envelope(FLOW)["flow"]


def test_hubble_tells_the_translated_source_where_the_client_sends():
    nat = {"client.address": FLOW["src.address"], "nat.src.address": "192.0.2.9"}
    asks = envelope({**FLOW, **nat})
    assert asks["flow"]["IP"]["source_xlated"] == "192.0.2.9"
    assert read(json.dumps(asks)).flow.IP.source_xlated == "192.0.2.9"
    beyond = {**FLOW, **nat, "src.address": "192.0.2.9"}
    assert "source_xlated" not in envelope(beyond)["flow"]["IP"]
    assert "source_xlated" not in envelope(FLOW)["flow"]["IP"]


def test_hubble_icmp_and_arp():
    icmp = {**DROP, "transport": "icmp", "icmp.type": 8, "icmp.code": 0}
    assert envelope(icmp)["flow"]["l4"] == {"ICMPv4": {"type": 8}}
    arp = {**DROP, "network.type": "arp"}
    del arp["transport"]
    flow = envelope(arp)["flow"]
    assert "IP" not in flow
    assert "l4" not in flow
    assert flow["extensions"]["value"]["src.address"] == arp["src.address"]
    assert "src.address" not in envelope(DROP)["flow"]["extensions"]["value"]


def test_hubble_loss(tmp_path):
    told = json.loads(lines(tmp_path, "hubble", DROP, lost=[("drop_events", 3)])[1])
    assert told["lost_events"] == {"source": "PERF_EVENT_RING_BUFFER", "num_events_lost": "3"}
    assert told["node_name"] == "n1"
    assert told["time"].endswith("Z")


def test_hubble_reads_with_protobuf():
    """protojson itself takes the extras: Any of Struct."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    any_pb2 = pytest.importorskip("google.protobuf.any_pb2")
    pytest.importorskip("google.protobuf.struct_pb2")
    extensions = envelope({**DROP, "conntrack.status": ["seen-reply"]})["flow"]["extensions"]
    message = json_format.ParseDict(extensions, any_pb2.Any())
    assert json_format.MessageToDict(message)["value"]["bytes"] == 44


def test_text_is_two_lines_a_drop_and_a_hint_once(tmp_path):
    told = lines(tmp_path, "text", DROP, DROP)
    assert len(told) == 5
    assert told[0].split(maxsplit=1)[1] == told[3].split(maxsplit=1)[1]
    assert "shop/web-0" in told[0]
    assert told[0].endswith("NO_SOCKET        10.1.0.2:4000 → 10.1.0.3:53 UDP")
    assert told[1] == (
        "             eth0@cni-…-1111-2222 __udp4_lib_rcv+0x4bc 44 B:"
        " No UDP socket takes port 53 in pod shop/web-0."
    )
    assert told[2].strip() == "hint: is the server running?"
    assert "\033" not in "".join(told)


def test_text_fits_whatever_the_record_holds(tmp_path):
    wide = {
        **DROP,
        "k8s.pod.name": "a-very-long-deployment-name-7d4b9c6f5d-x2x4z",
        "packet": f"[{'fd00:' * 7}1]:40000 → [{'fd00:' * 7}2]:40001 UDP",
        "drop.reason": "TCP_INVALID_ACK_SEQUENCE",
        "drop.location": "a_rather_long_function_name_of_the_kernel+0x1234",
        "explanation": "A long sentence. " * 10,
        "conntrack.state": "new",
        "conntrack.direction": "original",
        "conntrack.orig.dst.address": "fd00:1:2:3:4:5:6:7",
        "conntrack.orig.dst.port": 443,
    }
    told = lines(tmp_path, "text", wide, {**SUMMARY, **wide, "type": "summary"}, END)
    assert max(map(len, told)) <= 120
    assert "sent to fd00:1:2:3:4:5:6:7 port 443" in " ".join(line.strip() for line in told)


def test_text_shows_the_stack_the_table_and_the_end(tmp_path):
    stacked = {**DROP, "drop.stack": ["__udp4_lib_rcv+0x4bc", "ip_rcv+0x1"]}
    end = {**END, "lost": {"drop_events": 2}}
    told = lines(tmp_path, "text", stacked, SUMMARY, end, lost=[("drop_events", 2)])
    assert "               ip_rcv+0x1" in told
    row = next(line for line in told if line.lstrip().startswith("shop/web-0"))
    assert row.split() == ["shop/web-0", "NO_SOCKET", "__udp4_lib_rcv+0x4bc", "7", "308", "7"]
    assert told[-2:] == [
        "7 packets dropped, 7 shown; lost: 2 of drop_events",
        "lost: 2 of drop_events",
    ]


def test_a_sparse_record_is_shown_too(tmp_path):
    told = lines(tmp_path, "text", {"type": "drop", "time": DROP["time"], "netns": 5})
    assert told[0].split()[1] == "5"


def test_colours_only_when_asked(tmp_path):
    output = Output(tmp_path / "out")
    Text(output, Terminal(120, coloured=True)).write([DROP])
    assert "\033[31m" in (tmp_path / "out").read_text()
    assert "\033" not in drops_summary([SUMMARY], Terminal(120, coloured=False))


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_a_terminal_has_colours_unless_no_color(no_color, coloured):
    master, slave = os.openpty()
    code = f"from tracer.sinks import open_sink\nopen_sink('text', None).write([{DROP!r}])"
    environment = {**os.environ, "NO_COLOR": no_color}
    subprocess.run([sys.executable, "-c", code], stdout=slave, env=environment, check=True)
    os.close(slave)
    told = os.read(master, 4096)
    os.close(master)
    assert (b"\033[31m" in told) is coloured


@pytest.mark.parametrize("form", FORMATS)
def test_a_reader_that_left_is_a_broken_pipe(form):
    record = PACKET if form in ("tree", "brief") else DROP
    code = (
        "import os, sys\nfrom tracer.sinks import open_sink\n"
        f"sink = open_sink({form!r}, None)\n"
        "try:\n"
        f"    while True:\n        sink.write([{record!r}])\n        sink.lost('events', 1)\n"
        "except BrokenPipeError:\n    os._exit(7)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        writer.stdout.close()
        assert writer.wait(20) == 7


def test_a_fifo_can_be_written(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    open_sink("json", Path(path)).write([DROP])
    assert json.loads(os.read(reader, 4096)) == DROP
    os.close(reader)


def test_formats_are_checked_before_the_path(tmp_path):
    with pytest.raises(TracerError):
        open_sink("none", tmp_path / "x")
    assert not (tmp_path / "x").exists()
