"""`trace --inner`: chosen by what a tunnel's packet holds; `--snaplen`: more of it is shown."""

from __future__ import annotations

import pytest
from lab import captures, runner, tunnels, ways, wire
from lab.traffic import new_port

from tracer.layout import layout

COUNT = 3
INNER = ("10.99.0.1", "10.99.0.2")
SNAPLEN = 512
PAYLOAD = b"serial %d " * 30


@pytest.fixture(scope="module", autouse=True)
def _made(cluster, routed):
    """The cluster first: it sweeps away what a killed run left, and `routed` looks the same."""


def inner(port, number=0):
    datagram = wire.udp(*INNER, (44444, port), PAYLOAD.replace(b"%d", b"%d" % number))
    return wire.ip(*INNER, 17, datagram)


@pytest.mark.parametrize("version", [4, 6])
def test_chosen_by_what_is_inside(routed, cri_env, tmp_path, version):
    """Each form of tunnel, over both families; packets of another port are left alone."""
    port, other = new_port(), new_port()
    ends = routed.left.ip(version), routed.right.ip(version)
    recording = tmp_path / "tunnels.rec"
    arguments = (f"udp port {port}", "--inner", "--snaplen", str(SNAPLEN), "-o", "json")
    with runner.running("trace", *arguments, "--record", str(recording), env=cri_env) as live:
        for number in range(COUNT):
            for wanted in (port, other):
                for packet in tunnels.forms(ends, inner(wanted, number)).values():
                    wire.send(routed.left.where, packet)
        runner.until_quiet(live, 1.4, 8)
        done = live.stop()
    found = [record for record in done.records if record["type"] == "packet"]
    forms = tunnels.forms(ends, inner(port))
    assert len(found) == COUNT * len(forms)
    way = [
        *ways.sent("trt-left", version),
        *ways.forwarded("trt-router", ("to-left", "to-right"), version),
    ]
    for record in found:
        assert ways.told(record)[: len(way)] == way
        assert (record["src.address"], record["dst.address"]) == ends
    shown = runner.finish("show", str(recording), "--inner", f"udp port {port}", "-o", "json")
    again = [record for record in shown.records if record["type"] == "packet"]
    assert len(again) == len(found)
    other = runner.finish("show", str(recording), "--inner", f"udp port {other}", "-o", "json")
    assert [record["type"] for record in other.records] == ["end"]


def test_without_inner_a_tunnel_is_a_tunnel(routed, cri_env):
    port = new_port()
    ends = routed.left.ip4, routed.right.ip4
    with runner.running("trace", f"udp port {port}", "-o", "json", env=cri_env) as live:
        for packet in tunnels.forms(ends, inner(port)).values():
            wire.send(routed.left.where, packet)
        done = live.stop()
    assert [record["type"] for record in done.records] == ["end"]


@pytest.mark.parametrize("snaplen", [None, 60, 333])
def test_snaplen(routed, cri_env, tmp_path, snaplen):
    """So many bytes of each hop are in the capture, rounded up, and Wireshark reads them."""
    port, path = new_port(), tmp_path / "way.pcapng"
    asked = () if snaplen is None else ("--snaplen", str(snaplen))
    capture = ("--write", str(path))
    with runner.running(
        "trace", f"udp port {port}", "-o", "json", *capture, *asked, env=cri_env
    ) as live:
        datagram = wire.udp(routed.left.ip4, routed.right.ip4, (44444, port), b"abcd" * 200)
        wire.send(routed.left.where, wire.ip(routed.left.ip4, routed.right.ip4, 17, datagram), 3)
        done = live.stop()
    assert len([record for record in done.records if record["type"] == "packet"]) == 3
    sizes = {int(captured) for (captured,) in captures.rows(path, "frame.cap_len")}
    wanted = layout().constants["SNAPLEN"] if snaplen is None else -(-snaplen // 8) * 8
    assert sizes == {wanted}
    assert (b"abcd" * 50 in path.read_bytes()) == (snaplen == 333)
