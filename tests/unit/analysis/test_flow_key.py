"""One key for a connection: Community IDs of the specification's own tests, NAT, both ways."""

import numpy as np
import pytest
from hop_rows import set_tuple

from tracer.analysis.flow_key import KEY_BYTES, Flows, community_id
from tracer.layout import layout

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
CLIENT, SERVICE, WEB = ("10.1.0.2", 4000), ("10.96.0.10", 80), ("10.1.0.3", 8080)
NODE = ("10.1.0.1", 1024)


def key(source, goal, protocol=TCP):
    one = np.zeros(1, layout().structs["tuple"])
    set_tuple(one[0], source, goal, protocol)
    return one.tobytes()[:KEY_BYTES]


@pytest.mark.parametrize(
    ("protocol", "source", "sport", "goal", "dport", "wanted"),
    [
        (TCP, "128.232.110.120", 34855, "66.35.250.204", 80, "LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (TCP, "66.35.250.204", 80, "128.232.110.120", 34855, "LQU9qZlK+B5F3KDmev6m5PMibrg="),
        (TCP, "10.0.0.1", 10, "10.0.0.2", 11569, "SXBGMX1lBOwhhoDrZynfROxnhnM="),
        (UDP, "192.168.1.52", 54585, "8.8.8.8", 53, "d/FP5EW3wiY1vCndhwleRRKHowQ="),
        (SCTP, "192.168.170.8", 7, "192.168.170.56", 80, "jQgCxbku+pNGw8WPbEc/TS/uTpQ="),
        (ICMP, "192.168.0.89", 8, "192.168.0.1", 0, "X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        (ICMP, "192.168.0.1", 0, "192.168.0.89", 8, "X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        (ICMP, "192.168.0.89", 20, "192.168.0.1", 0, "3o2RFccXzUgjl7zDpqmY7yJi8rI="),
        (ICMP, "192.168.0.89", 20, "192.168.0.1", 1, "tz/fHIDUHs19NkixVVoOZywde+I="),
        (ICMPV6, "fe80::200:86ff:fe05:80da", 135, "fe80::260:97ff:fe07:69ea", 0,
         "dGHyGvjMfljg6Bppwm3bg0LO8TY="),
        (ICMPV6, "fe80::260:97ff:fe07:69ea", 136, "fe80::200:86ff:fe05:80da", 0,
         "dGHyGvjMfljg6Bppwm3bg0LO8TY="),
        (ICMPV6, "3ffe:507:0:1:260:97ff:fe07:69ea", 3, "3ffe:507:0:1:200:86ff:fe05:80da", 0,
         "NdobDX8PQNJbAyfkWxhtL2Pqp5w="),
        (ICMPV6, "3ffe:507:0:1:200:86ff:fe05:80da", 3, "3ffe:507:0:1:260:97ff:fe07:69ea", 0,
         "/OGBt9BN1ofenrmSPWYicpij2Vc="),
        (46, "10.1.24.4", 0, "10.1.12.1", 0, "/nQI4Rh/TtY3mf0R2gJFBkVlgS4="),
    ],
)  # fmt: skip
def test_community_ids_of_the_specification(protocol, source, sport, goal, dport, wanted):
    assert community_id(key((source, sport), (goal, dport), protocol)) == f"1:{wanted}"


def test_what_is_not_ip_has_no_community_id():
    assert community_id(bytes(KEY_BYTES)) == ""
    assert Flows().find(bytes(KEY_BYTES)).text == ""


def test_both_directions_are_one_flow():
    flows = Flows()
    asked = flows.find(key(CLIENT, WEB))
    assert flows.find(key(WEB, CLIENT)) is asked
    assert asked.text == "10.1.0.2:4000 → 10.1.0.3:8080 TCP"
    assert Flows().find(key(WEB, CLIENT)).community_id == asked.community_id


def test_both_sides_of_nat_are_one_flow():
    flows = Flows()
    entry = key(CLIENT, SERVICE), key(WEB, NODE)
    before = flows.find(key(WEB, NODE))  # seen before anybody told
    learnt = flows.learn(*entry)
    assert learnt.text == "10.1.0.2:4000 → 10.96.0.10:80 TCP"
    assert before.text != learnt.text
    for ends in (key(WEB, NODE), key(NODE, WEB), *entry, key(SERVICE, CLIENT)):
        assert flows.find(ends) is learnt
    assert flows.learn(*entry) is learnt


def test_icmp_has_no_ports_in_its_text():
    assert Flows().find(key(("10.1.0.2", 8), ("10.1.0.3", 0), ICMP)).text == (
        "10.1.0.2 → 10.1.0.3 ICMP"
    )


def test_memory_is_bounded():
    flows = Flows(size=8)
    for port in range(100):
        flows.find(key(("10.1.0.2", port + 1), WEB))
    assert len(flows._flows) <= 8
