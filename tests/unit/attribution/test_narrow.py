"""A tcpdump expression as nf_tables matches: never less than the expression."""

import pytest

from tracer.attribution.narrow import EVERYTHING, narrow
from tracer.netfilter.nft_table import Match


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ("", EVERYTHING),
        ("tcp", (Match(protocol=6),)),
        ("icmp6", (Match("ip6", 58),)),
        ("dst port 53", (Match(dport=53),)),
        ("udp port 53", (Match(protocol=17, sport=53), Match(protocol=17, dport=53))),
        ("src host 10.0.0.1 and tcp", (Match("ip", 6, saddr="10.0.0.1"),)),
        ("dst host FD00::1", (Match("ip6", daddr="fd00::1"),)),
        (
            "host 10.0.0.1 and host 10.0.0.2",
            (
                Match("ip", saddr="10.0.0.1", daddr="10.0.0.2"),
                Match("ip", saddr="10.0.0.2", daddr="10.0.0.1"),
            ),
        ),
    ],
)
def test_what_is_understood(expression, matches):
    assert narrow(expression) == matches


@pytest.mark.parametrize(
    "expression",
    [
        "tcp or udp",
        "not tcp",
        "port 80 or port 443",
        "tcp[13] & 2 != 0",
        "net 10.0.0.0/8",
        "host example.org",
        "ip host ::1",
        "port http",
        "port 70000",
        "tcp and",
        "and",
        "src",
        "tcp udp",
        "host",
        "greater 100",
        "(tcp)",
        "tcp and udp",
    ],
)
def test_what_is_not_understood_is_everything(expression):
    assert narrow(expression) == EVERYTHING
