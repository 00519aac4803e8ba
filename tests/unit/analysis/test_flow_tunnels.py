"""Which tunnel lies between a flow's ends: longest prefixes, and the backend behind a Service."""

from ipaddress import ip_network

import pytest
from flow_tables import table_of
from hypothesis import given
from hypothesis import strategies as st

from tracer.analysis.flow_tunnels import Ways, tunnel_columns
from tracer.flow_table import FlowTable, records
from tracer.model import Device, Node, Route

NODE = Node(
    "n1",
    1,
    devices={
        (1, 2): Device(1, 2, "eth0"),
        (1, 3): Device(1, 3, "cni0", kind="bridge"),
        (1, 4): Device(1, 4, "flannel.1", kind="vxlan"),
        (1, 5): Device(1, 5, "tunl0", kind="ipip"),
        (9, 4): Device(9, 4, "eth0", kind="veth"),
    },
)


def route(text, ifindex):
    network = ip_network(text)
    return Route(network.network_address.packed, network.prefixlen, ifindex)


ROUTES = (
    route("0.0.0.0/0", 2),
    route("10.244.0.0/16", 4),
    route("10.244.0.0/24", 3),
    route("10.244.7.64/26", 5),
    route("10.244.7.66/32", 0),
    route("10.244.7.0/24", 99),
    route("fd00:7::/32", 4),
)


@pytest.mark.parametrize(
    ("address", "ifindex"),
    [
        ("192.0.2.1", 2),
        ("10.244.9.1", 4),
        ("10.244.0.1", 3),
        ("10.244.7.65", 5),
        ("10.244.7.66", 0),
        ("10.244.7.1", 99),
        ("fd00:7::1", 4),
        ("fd00:8::1", 0),
    ],
)
def test_the_longest_prefix_decides(address, ifindex):
    assert Ways(ROUTES).device(address) == ifindex


@given(st.data())
def test_any_table_is_read_as_the_library_would(data):
    networks = data.draw(
        st.lists(
            st.builds(
                lambda number, size: ip_network((number, size), strict=False),
                st.integers(0, 2**32 - 1),
                st.integers(0, 32),
            ),
            max_size=12,
        )
    )
    table = [
        Route(one.network_address.packed, one.prefixlen, at + 1) for at, one in enumerate(networks)
    ]
    for one in [*networks, ip_network("192.0.2.1")]:
        address = one.broadcast_address
        holding = [(-net.prefixlen, at + 1) for at, net in enumerate(networks) if address in net]
        assert Ways(table).device(str(address)) == (min(holding)[1] if holding else 0)


def told(*rows):
    """(tunnel.interface.name, tunnel.type) of each record."""
    columns = tunnel_columns(table_of(*rows).columns, NODE, Ways(ROUTES))
    found = records(FlowTable(len(rows), columns)) if columns else [{}] * len(rows)
    return [(one.get("tunnel.interface.name"), one.get("tunnel.type")) for one in found]


def flow(direction, source, goal, **more):
    return {"direction": direction, "src.address": source, "dst.address": goal, **more}


def test_the_far_end_is_who_is_not_the_pod():
    there = flow("egress", "10.244.0.5", "10.244.9.1")
    back = flow("ingress", "10.244.9.1", "10.244.0.5")
    home = flow("egress", "10.244.0.5", "10.244.0.6")
    away = flow("egress", "10.244.0.5", "192.0.2.1")
    vxlan = "flannel.1", "vxlan"
    assert told(there, back, home, away) == [vxlan, vxlan, (None, None), (None, None)]


def test_of_a_service_the_backend_tells():
    nat = {"nat.dst.address": "10.244.7.65"}
    asks = {"conntrack.direction": "original", **nat}
    answers = {"conntrack.direction": "reply", **nat}
    ipip, vxlan = ("tunl0", "ipip"), ("flannel.1", "vxlan")
    assert told(
        flow("egress", "10.244.0.5", "10.96.0.1", **asks),
        flow("ingress", "10.96.0.1", "10.244.0.5", **answers),
        # At the server's end the client is the far one.
        flow("ingress", "10.244.9.1", "10.244.0.7", **asks),
        flow("egress", "10.244.0.7", "10.244.9.1", **answers),
        flow("egress", "10.244.0.5", "10.96.0.1"),
    ) == [ipip, ipip, vxlan, vxlan, (None, None)]


def test_without_addresses_or_routes_nothing_is_told():
    assert told({"direction": "egress"}) == [(None, None)]
    away = table_of(flow("egress", "10.0.0.1", "10.244.9.1"))
    assert tunnel_columns(away.columns, NODE, None) == {}
