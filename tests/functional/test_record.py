"""`trace --record` and `show`: the same packets again, also after kill -9."""

import json
import signal

import pytest
from lab import runner
from lab.rules import nft
from lab.traffic import new_port, send_udp, udp_listener

PACKETS = 7


def packets(lines):
    """Packet records by time, as written."""
    records = [json.loads(line) for line in lines]
    found = [record for record in records if record["type"] == "packet"]
    return sorted(found, key=lambda record: (record["time"], record["packet"]))


def second(record):
    """Seconds since the minute began."""
    return float(record["time"][17:-1])


def timeless(record):
    """Without the times: the wall clock is asked anew, and differs by nanoseconds."""
    hops = [{name: hop[name] for name in hop if name != "time"} for hop in record["hops"]]
    return {name: record[name] for name in record if name != "time"} | {"hops": hops}


def shown(path, *options):
    """`tracer show` to its end."""
    return runner.finish("show", str(path), "-o", "json", *options)


@pytest.fixture
def ports(routed):
    """A port with a listener on the right host, and one without."""
    is_open, closed = new_port(), new_port()
    with udp_listener(routed.right.where, is_open):
        yield is_open, closed


def send(routed, ports):
    for port in ports:
        send_udp(routed.left.where, (routed.right.ip4, port), PACKETS)


def test_show_tells_what_trace_told(routed, ports, tmp_path):
    path = tmp_path / "r"
    filter_ = f"udp port {ports[0]} or udp port {ports[1]}"
    with runner.running("trace", filter_, "-o", "json", "--record", str(path)) as live:
        send(routed, ports)
        runner.until_quiet(live, 1.5, 8)
        done = live.stop()
    assert done.code in (0, 1), done.err
    told = packets(done.out.splitlines())
    assert len(told) == 2 * PACKETS
    again = shown(path)
    assert again.err == ""
    for one, other in zip(told, packets(again.out.splitlines()), strict=True):
        assert timeless(one) == timeless(other)
        assert abs(second(one) - second(other)) < 0.001
    died = [one for one in told if one["verdict"] == "dropped"]
    assert len(died) == PACKETS, "the port without a listener"
    again = packets(shown(path, "--dropped").out.splitlines())
    assert [timeless(one) for one in again] == [timeless(one) for one in died]
    after = shown(path, f"udp port {ports[1]}", "--count", "3").out.splitlines()
    assert len(packets(after)) == 3
    assert {one["dst.port"] for one in packets(after)} == {ports[1]}


def test_a_killed_trace_leaves_what_it_had(routed, ports, tmp_path):
    path = tmp_path / "r"
    with runner.running(
        "trace", f"udp port {ports[0]}", "-o", "json", "--record", str(path)
    ) as live:
        send(routed, ports[:1])
        runner.until_quiet(live, 1.5, 8)
        live.stop(signal.SIGKILL)
    again = shown(path)
    assert again.code == 1
    assert "recorder was killed" in again.err
    assert len(packets(again.out.splitlines())) == PACKETS


def test_drops_are_recorded(routed, ports, tmp_path):
    """With their explanations and what proves them; `show` selects among them."""
    path, (_, closed) = tmp_path / "r", ports
    with runner.running("drops", f"udp port {closed}", "-o", "json", "--record", str(path)) as live:
        send(routed, ports)
        runner.until_lines(live, PACKETS)
        done = live.stop()
    assert done.code in (0, 1), done.err
    told = [record for record in done.records if record["type"] == "drop"]
    again = shown(path)
    assert (again.err, len(told)) == ("", PACKETS)
    repeated = [record for record in again.records if record["type"] == "drop"]
    for one, other in zip(told, repeated, strict=True):
        assert {**one, "time": ""} == {**other, "time": ""}
        assert str(closed) in other["explanation"]
    none = shown(path, "--reason", "NETFILTER_DROP").records
    assert [record["type"] for record in none] == ["end"]
    assert len(shown(path, f"udp port {closed}", "--count", "3").records) == 3 + 1


@pytest.mark.parametrize("way", ["--rules", "--rules=read"])
def test_the_rules_of_packets_are_shown_again(routed, ports, tmp_path, way):
    """Of those that passed, at their hops; of those that a rule dropped, it and why."""
    path, (is_open, closed), router = tmp_path / "r", ports, routed.router
    rules = f"udp dport {is_open} meta mark set 0x7 accept; udp dport {closed} counter drop"
    filter_ = f"udp port {is_open} or udp port {closed}"
    with (
        nft(router, "inet", "forward", rules),
        runner.running("trace", filter_, way, "-o", "json", "--record", str(path)) as live,
    ):
        send(routed, ports)
        runner.watch(live).expect(2 * PACKETS, {"type": "packet"}, timeout_s=15)
        done = live.stop()
    told, again = packets(done.out.splitlines()), packets(shown(path).out.splitlines())
    assert [timeless(one) for one in told] == [timeless(one) for one in again]
    for record in again:
        hops = [hop for hop in record["hops"] if hop["hook"] == "nf ip FORWARD"]
        if record["dst.port"] == is_open:
            assert any("mark" in one.get("netfilter.changes", ()) for one in hops[0]["rules"])
        else:
            assert record["netfilter.rule"].endswith("drop")
            assert "rule of chain c" in record["explanation"]


def test_the_rules_of_drops_are_shown_again(routed, ports, tmp_path):
    path, (_, closed) = tmp_path / "r", ports
    with (
        nft(routed.router, "inet", "forward", f"udp dport {closed} counter drop"),
        runner.running("drops", f"udp port {closed}", "-o", "json", "--record", str(path)) as live,
    ):
        send(routed, ports)
        told = runner.watch(live).expect(PACKETS, {"type": "drop"}, timeout_s=15)
        live.stop()
    again = [record for record in shown(path).records if record["type"] == "drop"]
    by_time = [{**one, "time": ""} for one in sorted(told, key=lambda one: one["time"])]
    assert [{**one, "time": ""} for one in sorted(again, key=lambda one: one["time"])] == by_time
    assert all(one["netfilter.rule"] for one in again)
