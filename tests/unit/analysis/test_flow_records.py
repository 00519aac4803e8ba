"""Flow counts of several CPUs become one record a flow, drops records of their own."""

from dataclasses import replace

import numpy as np

from tracer.analysis.addresses import address_bytes
from tracer.analysis.dns import Answer
from tracer.analysis.dns_names import DnsNames
from tracer.analysis.drops import Context
from tracer.analysis.flow_columns import drop_table, flow_table, other_table
from tracer.analysis.flows import sum_flows
from tracer.flow_table import records
from tracer.layout import layout
from tracer.model import Node, Pod

NODE_NETNS, POD_NETNS = 4026531833, 4026532001
WEB = Pod("u1", "shop", "web-1", POD_NETNS, addresses=("10.244.0.5",))
NODE = Node(
    "n1",
    NODE_NETNS,
    pods={"u1": WEB},
    pod_by_netns={POD_NETNS: "u1"},
    pod_by_device={(NODE_NETNS, 7): "u1"},
    pod_by_address={"10.244.0.5": "u1"},
)
CONTEXT = Context(NODE, {12: "NETFILTER_DROP"}, lambda address: f"f+{address:#x}", 0)
STRUCTS = layout().structs


def _flow(key, source, destination, protocol=6, ports=(4000, 80), ethertype=0x0800):
    key["tuple"]["ethertype"], key["tuple"]["protocol"] = ethertype, protocol
    key["tuple"]["saddr"] = np.frombuffer(address_bytes(source), np.uint8)
    key["tuple"]["daddr"] = np.frombuffer(address_bytes(destination), np.uint8)
    key["tuple"]["sport"], key["tuple"]["dport"] = ports


def _counts(*rows):
    counts = np.zeros(len(rows), STRUCTS["flow_count"])
    for name, values in zip(
        ("packets", "bytes", "first_ns", "last_ns", "tcp_flags"),
        zip(*rows, strict=True),
        strict=True,
    ):
        counts[name] = values
    return counts


def test_rows_of_one_flow_are_summed():
    keys = np.zeros(4, STRUCTS["flow_key"])
    keys["ifindex"] = (2, 3, 2, 2)
    counts = _counts(
        (3, 300, 50, 90, 0x02), (1, 10, 70, 70, 0x10), (2, 20, 60, 95, 0x01), (4, 4, 55, 56, 0x08)
    )
    flows, sums = sum_flows(keys, counts)
    order = np.argsort(flows["ifindex"])
    assert flows["ifindex"][order].tolist() == [2, 3]
    for name, values in (
        ("packets", [9, 1]), ("bytes", [324, 10]), ("first_ns", [50, 70]), ("last_ns", [95, 70]),
        ("tcp_flags", [0x0B, 0x10]),
    ):  # fmt: skip
        assert sums[name][order].tolist() == values, name


def test_flows_whose_hashes_are_the_same_stay_apart(monkeypatch):
    class Nothing:
        def integers(self, *_, size, dtype):
            return np.zeros(size, dtype)

    monkeypatch.setattr(np.random, "default_rng", lambda _seed: Nothing())
    keys = np.zeros(5, STRUCTS["flow_key"])
    keys["tuple"]["sport"] = (7, 8, 7, 9, 8)
    flows, sums = sum_flows(keys, _counts(*((2**at, 1, 1, 1, 0) for at in range(5))))
    told = dict(zip(flows["tuple"]["sport"].tolist(), sums["packets"].tolist(), strict=True))
    assert told == {7: 5, 8: 18, 9: 8}


def test_what_was_known_last_stays_and_what_was_counted_is_summed():
    keys = np.zeros(3, STRUCTS["flow_key"])
    counts = _counts((1, 1, 10, 30, 0), (1, 1, 10, 50, 0), (1, 1, 10, 40, 0))
    counts["dscp"], counts["rtt_us"] = (46, 0, 8), (70, 0, 90)
    counts["syn_ns"] = (0, 25, 20)
    counts["resets"], counts["zero_windows"], counts["retransmits"] = (
        (1, 0, 2),
        (0, 0, 5),
        (0, 4, 0),
    )
    _, sums = sum_flows(keys, counts)
    for name, value in (
        ("dscp", 8), ("rtt_us", 90), ("syn_ns", 20), ("resets", 3), ("zero_windows", 5),
        ("retransmits", 4),
    ):  # fmt: skip
        assert sums[name].tolist() == [value], name


def test_details_are_told_where_there_are_any():
    keys = np.zeros(3, STRUCTS["flow_key"])
    keys["netns"], keys["ifindex"], keys["direction"] = POD_NETNS, 2, (1, 2, 1)
    _flow(keys[0], "10.244.0.5", "10.244.1.9")
    _flow(keys[1], "10.244.1.9", "10.244.0.5", ports=(80, 4000))
    _flow(keys[2], "10.244.0.5", "10.244.1.9", protocol=17)
    counts = _counts((3, 300, 50, 90, 0x02), (2, 200, 60, 95, 0x12), (1, 10, 70, 70, 0))
    counts["dscp"], counts["rtt_us"], counts["syn_ns"] = (46, 0, 0), (250, 0, 0), (50, 60, 0)
    counts["resets"], counts["retransmits"] = (0, 1, 0), (2, 0, 0)
    sent, got, datagram = records(flow_table(keys, counts, CONTEXT))
    assert (sent["dscp"], sent["tcp.rtt_ns"], sent["tcp.retransmits"]) == (46, 250_000, 2)
    assert got["tcp.resets"] == 1
    assert sent["tcp.handshake_ns"] == got["tcp.handshake_ns"] == 10
    quiet = {name for name in ("dscp", *sent) if name.startswith(("tcp.", "dscp"))}
    assert not quiet & datagram.keys()
    assert not {"dscp", "tcp.rtt_ns", "tcp.retransmits", "tcp.zero_windows"} & got.keys()


def test_no_flows_are_no_records():
    none = np.zeros(0, STRUCTS["flow_key"])
    assert records(flow_table(none, np.zeros(0, STRUCTS["flow_count"]), CONTEXT)) == []


def test_a_flow_names_its_pod_and_direction():
    keys = np.zeros(1, STRUCTS["flow_key"])
    keys["netns"], keys["ifindex"], keys["direction"] = POD_NETNS, 2, 1
    _flow(keys[0], "10.244.0.5", "192.0.2.1")
    (record,) = records(flow_table(keys, _counts((7, 700, 1, 2, 0x12)), CONTEXT))
    assert (record["k8s.pod.name"], record["direction"]) == ("web-1", "egress")
    assert (record["packets"], record["bytes"], record["verdict"]) == (7, 700, "forwarded")
    assert record["tcp.flags"] == "SYN,ACK"
    assert (record["src.address"], record["dst.port"]) == ("10.244.0.5", 80)
    assert record["k8s.src.pod.name"] == "web-1"
    assert record["time"] < record["end_time"]


def test_what_is_not_ip_is_a_flow_without_addresses():
    keys = np.zeros(1, STRUCTS["flow_key"])
    keys["netns"], keys["direction"] = POD_NETNS, 2
    keys["tuple"]["ethertype"] = 0x0806
    (record,) = records(flow_table(keys, _counts((3, 84, 1, 2, 0)), CONTEXT))
    assert record["network.type"] == "arp"
    assert "src.address" not in record


def test_a_drop_on_the_node_is_the_pods_and_a_strangers_is_left_out():
    keys = np.zeros(3, STRUCTS["flow_drop_key"])
    keys["reason"], keys["location"] = 12, 0x10
    keys["flow"]["netns"] = NODE_NETNS
    keys["flow"]["ifindex"], keys["flow"]["direction"] = (7, 1, 1), (1, 2, 0)
    _flow(keys[0]["flow"], "10.244.0.5", "192.0.2.1", 17)
    _flow(keys[1]["flow"], "192.0.2.1", "10.244.0.5", 17)
    _flow(keys[2]["flow"], "192.0.2.1", "192.0.2.2", 17)
    counts = np.zeros((3, 2), STRUCTS["drop_count"])
    counts["packets"] = ((1, 2), (5, 0), (9, 9))
    told = records(drop_table(keys, counts, CONTEXT, (1, 2)))
    assert [(r["k8s.pod.name"], r["direction"], r["packets"]) for r in told] == [
        ("web-1", "egress", 3),
        ("web-1", "ingress", 5),
    ]
    assert {r["verdict"] for r in told} == {"dropped"}
    assert told[0]["drop.reason"] == "NETFILTER_DROP"


def test_the_rest_is_summed_by_pod():
    keys = np.zeros(1, STRUCTS["flow_other_key"])
    keys["netns"], keys["ifindex"], keys["direction"] = POD_NETNS, 2, 1
    counts = np.zeros((1, 2), STRUCTS["drop_count"])
    counts["packets"], counts["bytes"] = (4, 7), (400, 700)
    (record,) = records(other_table(keys, counts, CONTEXT, 5))
    assert record["flow.other"] is True
    told = record["k8s.pod.name"], record["packets"], record["bytes"]
    assert told == ("web-1", 11, 1100)


def test_a_drop_in_the_receivers_namespace_is_the_receivers_whatever_the_kernel_knew_first():
    keys = np.zeros(1, STRUCTS["flow_drop_key"])
    keys["flow"]["netns"], keys["flow"]["ifindex"], keys["flow"]["direction"] = POD_NETNS, 2, 1
    _flow(keys[0]["flow"], "10.244.0.9", "10.244.0.5", 17)
    counts = np.ones((1, 2), STRUCTS["drop_count"])
    (record,) = records(drop_table(keys, counts, CONTEXT, (1, 2)))
    assert (record["direction"], record["k8s.dst.pod.name"]) == ("ingress", "web-1")
    assert "k8s.src.pod.name" not in record


def test_names_are_those_that_led_the_pod_there():
    """In both directions, for what crossed and for what died on the node; another pod's are not."""
    names = DnsNames()
    names.learn(POD_NETNS, Answer("a.test", ("192.0.2.1",), 5, whole=True), 1)
    names.learn(POD_NETNS + 1, Answer("b.test", ("192.0.2.1",), 5, whole=True), 1)
    context = replace(CONTEXT, dns=names, wall_offset_ns=1 << 60)
    keys = np.zeros(2, STRUCTS["flow_key"])
    keys["netns"], keys["direction"] = POD_NETNS, (1, 2)
    _flow(keys[0], "10.244.0.5", "192.0.2.1")
    _flow(keys[1], "192.0.2.1", "10.244.0.5")
    crossed = records(flow_table(keys, _counts((1, 1, 2, 3, 0), (1, 1, 3, 3, 0)), context))
    died = np.zeros(1, STRUCTS["flow_drop_key"])
    died["flow"]["netns"], died["flow"]["ifindex"] = NODE_NETNS, 7
    _flow(died[0]["flow"], "10.244.0.5", "192.0.2.1")
    now_ns = context.wall_ns(5)
    dropped = records(
        drop_table(died, np.ones((1, 1), STRUCTS["drop_count"]), context, (0, now_ns))
    )
    ends = [(one.get("src.dns.name"), one.get("dst.dns.name")) for one in (*crossed, *dropped)]
    assert ends == [(None, "a.test"), ("a.test", None), (None, "a.test")]
