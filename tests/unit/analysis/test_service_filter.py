"""A Service as a filter that libpcap understands."""

from __future__ import annotations

from tracer.analysis.service_filter import MAX_ENDPOINTS, service_filter
from tracer.kernel.pcap import instructions
from tracer.model import EndpointSlice, Service, ServicePort

WEB = Service(
    "shop",
    "web",
    "NodePort",
    ("10.96.10.1", "fd00:10:96::1"),
    ("203.0.113.9",),
    (ServicePort("http", "tcp", 80, 30080), ServicePort("dns", "udp", 53)),
)
SLICE = EndpointSlice("shop", "web", (ServicePort("http", "tcp", 8080),), ("10.244.0.5",), ("x",))


def test_addresses_ports_node_ports_and_endpoints():
    text, whole = service_filter(WEB, [SLICE, EndpointSlice("ops", "web", SLICE.ports, ("y",))])
    assert text == (
        "(tcp port 80 and (host 10.96.10.1 or host fd00:10:96::1 or host 203.0.113.9))"
        " or (tcp port 30080)"
        " or (udp port 53 and (host 10.96.10.1 or host fd00:10:96::1 or host 203.0.113.9))"
        " or (tcp port 8080 and (host 10.244.0.5))"
    )
    assert whole
    assert instructions(f"({text}) and (greater 100)")


def test_sctp_and_a_headless_service():
    text, _ = service_filter(Service("a", "b", ports=(ServicePort("", "sctp", 7777),)))
    assert text == ""
    slices = [EndpointSlice("a", "b", (ServicePort("", "sctp", 7777),), ("10.244.0.5",))]
    text, _ = service_filter(Service("a", "b", ports=(ServicePort("", "sctp", 7777),)), slices)
    assert text == "(sctp port 7777 and (host 10.244.0.5))"
    assert instructions(text)


def test_more_endpoints_than_a_filter_holds_are_left_out():
    many = tuple(f"10.244.1.{number}" for number in range(MAX_ENDPOINTS + 1))
    text, whole = service_filter(WEB, [EndpointSlice("shop", "web", SLICE.ports, many)])
    assert not whole
    assert "10.244.1." not in text
