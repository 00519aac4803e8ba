"""Allow and deny lists, as Hubble's exporter understands them."""

import pytest
from flow_tables import table_of

from tracer.analysis.flow_filter import parse_lists
from tracer.errors import TracerError
from tracer.flow_table import lost_table
from tracer.model import Node, Pod

NODE = Node(
    "n1",
    1,
    pods={
        "u1": Pod("u1", "shop", "web-0", labels={"app": "web"}),
        "u2": Pod("u2", "data", "web-0", labels={"app": "db"}),
    },
)
ROWS = [
    {"type": "flow", "verdict": "forwarded", "direction": "egress", "transport": "tcp",
     "network.type": "ipv4", "src.address": "10.1.0.2", "dst.address": "10.2.0.3",
     "src.port": 4000, "dst.port": 80, "k8s.src.namespace": "shop", "k8s.src.pod.name": "web-0",
     "service.namespace": "shop", "service.name": "web", "dst.dns.name": "web.test,www.shop.test",
     "k8s.src.owner.kind": "StatefulSet", "k8s.src.owner.name": "web", "tcp.flags": "SYN,ACK"},
    {"type": "flow", "verdict": "dropped", "direction": "ingress", "transport": "udp",
     "network.type": "ipv6", "src.address": "fd00::2", "dst.address": "fd00::3",
     "src.port": 4000, "dst.port": 53, "k8s.dst.namespace": "data", "k8s.dst.pod.name": "web-0",
     "drop.reason": "NO_SOCKET"},
    {"type": "flow", "verdict": "forwarded", "network.type": "arp", "k8s.node.name": "n1",
     "interface.name": "eth0"},
]  # fmt: skip


def kept(*, allow=(), deny=()):
    mask = parse_lists(allow, deny).keep(table_of(*ROWS), NODE)
    return {row for row, there in enumerate(mask.tolist()) if there}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"verdict":["DROPPED"]}', {1}),
        ('{"verdict":"DROPPED"}', {1}),
        ('{"verdict":["DROPPED","FORWARDED"]}', {0, 1, 2}),
        ('{"traffic_direction":["EGRESS"]}', {0}),
        ('{"source_pod":["shop/"]}', {0}),
        ('{"source_pod":["shop/we"]}', {0}),
        ('{"source_pod":["web-0"]}', {0}),
        ('{"source_pod":["data/web-0"]}', set()),
        ('{"destination_pod":["web"]}', {1}),
        ('{"source_label":["app=web"]}', {0}),
        ('{"source_label":["k8s:app in (web,x)"]}', {0}),
        ('{"destination_label":["app=web"]}', set()),
        ('{"destination_label":["app!=web"]}', {1}),
        ('{"source_workload":[{"name":"web"}]}', {0}),
        ('{"source_workload":[{"name":"web","kind":"Deployment"}]}', set()),
        ('{"service":["shop/web"]}', {0}),
        ('{"service":["data/web","shop/web"]}', {0}),
        ('{"service":["data/web"]}', set()),
        ('{"destination_fqdn":["*.Shop.test."]}', {0}),
        ('{"destination_fqdn":["web.test"]}', {0}),
        ('{"destination_fqdn":["shop.test","web"]}', set()),
        ('{"source_fqdn":["*"]}', set()),
        ('{"source_ip":["10.0.0.0/8"]}', {0}),
        ('{"destination_ip":["fd00::3","192.0.2.1"]}', {1}),
        ('{"destination_port":["80","81"]}', {0}),
        ('{"source_port":[4000],"protocol":["udp"]}', {1}),
        ('{"protocol":["TCP"]}', {0}),
        ('{"protocol":["ICMPv4","253"]}', set()),
        ('{"ip_version":["IPv6"]}', {1}),
        ('{"tcp_flags":[{"SYN":true}]}', {0}),
        ('{"tcp_flags":[{"SYN":true,"FIN":true}]}', set()),
        ('{"drop_reason":["NO_*"]}', {1}),
        ('{"node_name":["default/n*"]}', {2}),
        ('{"interface":["eth0"]}', {2}),
    ],
)
def test_one_filter_allows_and_denies(text, rows):
    assert kept(allow=[text]) == rows
    assert kept(deny=[text]) == {0, 1, 2} - rows


def test_filters_of_a_list_add_up_and_deny_wins():
    allow = ['{"verdict":["DROPPED"]}', '{"source_pod":["shop/"]}']
    assert kept(allow=allow) == {0, 1}
    assert kept(allow=allow, deny=['{"destination_port":["53"]}']) == {0}


def test_losses_are_always_kept():
    table = lost_table("drop_events", 3, "n1", 0)
    lists = parse_lists(['{"verdict":["DROPPED"]}'], ['{"node_name":["n1"]}'])
    assert lists.keep(table, NODE).all()


@pytest.mark.parametrize(
    "text",
    [
        "verdict=DROPPED", "[]", "{}", '{"verdicts":["DROPPED"]}', '{"verdict":["LOST"]}',
        '{"source_ip":["10.0.0"]}', '{"source_port":["http"]}', '{"source_label":["a b c"]}',
        '{"tcp_flags":["SYN"]}', '{"source_workload":["web"]}', '{"source_pod":[3]}',
        '{"service":["web"]}', '{"source_pod":[]}', '{"source_port":["80-90"]}',
        '{"destination_port":[65536]}', '{"destination_port":[true]}', '{"protocol":["tpc"]}',
        '{"tcp_flags":[{"SIN":true}]}', '{"source_workload":[{"nam":"web"}]}',
        '{"source_workload":[{}]}', '{"verdict":[["DROPPED"]]}',
    ],
)  # fmt: skip
def test_what_is_no_filter_is_told(text):
    with pytest.raises(TracerError) as caught:
        parse_lists([text], [])
    assert caught.value.hint
    assert "object has no attribute" not in caught.value.message


def test_a_field_that_is_almost_right_is_guessed():
    with pytest.raises(TracerError) as caught:
        parse_lists([], ['{"source_pods":["shop/"]}'])
    assert caught.value.hint == "did you mean source_pod?"
