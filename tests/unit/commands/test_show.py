"""`tracer show`: real recorded hops rendered again, with every selection evaluated here."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracer import cli
from tracer.analysis.drops import Context
from tracer.analysis.paths import Assembler, path_records
from tracer.commands import show
from tracer.errors import TracerError
from tracer.kernel import pcap
from tracer.layout import layout
from tracer.model import Device, EndpointSlice, Namespace, Node, Pod, Service, ServicePort
from tracer.recording import Recorder, blocks

DATA = Path(__file__).parents[2] / "data" / "paths"
HOP = layout().enums["hop"]
REASONS = {2: "NOT_SPECIFIED", 3: "NO_SOCKET", 12: "NETFILTER_DROP"}


def load(name):
    """Hops, drops and their context: client `tpc` is a pod, `tpn` the node."""
    source = np.load(DATA / f"{name}.npz")
    names = json.loads(str(source["names"]))
    inodes = {text: int(inode) for inode, text in names["namespaces"].items()}
    client = inodes["tpc"]
    node = Node(
        "n1",
        inodes["tpn"],
        pods={"u1": Pod("u1", "shop", "client", client, labels={"app": "web"})},
        namespaces={inode: Namespace(inode, text) for text, inode in inodes.items()},
        devices={(n, i): Device(n, i, text, kind) for n, i, text, kind in names["devices"]},
        pod_by_netns={client: "u1"},
    )
    symbols = {int(at): text for at, text in names["symbols"].items()}
    symbol = lambda at: symbols.get(at, f"0x{at:x}")  # noqa: E731 - as Context wants it
    return source["hops"], source["drops"], Context(node, REASONS, symbol, 1_700_000_000 * 10**9)


def record(path, name, *, rows=7, end=True):
    hops, drops, context = load(name)
    recorder = Recorder(path, {"command": "trace"})
    for at in range(0, len(hops), rows):
        recorder.record("hops", hops[at : at + rows], context)
    recorder.record("drops", drops, context)
    if end:
        recorder.close()
    return path


def shown(capfd, path, *options):
    """Exit code and JSON records of `tracer show PATH -o json OPTIONS`."""
    parser = argparse.ArgumentParser()
    show.add_arguments(parser)
    code = show.run(parser.parse_intermixed_args([str(path), "-o", "json", *options]))
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    return code, records


def packets(capfd, path, *options):
    return [one for one in shown(capfd, path, *options)[1] if one["type"] == "packet"]


@pytest.fixture
def service(tmp_path):
    return record(tmp_path / "service", "service")


@pytest.mark.parametrize("name", ["service", "retransmit", "flood", "bridge", "forward_drop"])
def test_a_recording_shows_what_was_assembled_live(tmp_path, capfd, name):
    hops, drops, context = load(name)
    live = Assembler()
    live.add(hops, drops)
    expected = path_records(live.take(2**62, everything=True), context)
    code, records = shown(capfd, record(tmp_path / "r", name))
    assert code == 0
    assert records[-1] == {
        "type": "end", "packets": len(expected), "shown": len(expected), "lost": {}
    }  # fmt: skip
    found = [one for one in records if one["type"] == "packet"]
    by_time = lambda one: (one["time"], one["packet"])  # noqa: E731
    assert sorted(found, key=by_time) == sorted(json.loads(json.dumps(expected)), key=by_time)
    assert any(one["type"] == "latency" for one in records)


def test_tcp_flags(service, capfd):
    found = packets(capfd, service, "--tcp-flags", "SYN,FIN")
    everything = packets(capfd, service)
    flags = [one["tcp.flags"].split(",") for one in everything if one["transport"] == "tcp"]
    assert 0 < len(found) < len(everything)
    assert len(found) == sum(bool({"SYN", "FIN"} & set(one)) for one in flags)


def test_a_filter_matches_before_and_after_nat(service, capfd):
    try:
        pcap.libpcap()
    except TracerError as error:
        pytest.skip(error.message)
    everything = packets(capfd, service)
    asked = [one for one in everything if one.get("dst.address") == "10.96.0.10"]
    assert asked
    before = packets(capfd, service, "dst", "host", "10.96.0.10")
    after = packets(capfd, service, "dst host 10.244.2.2 and dst port 8080")
    assert before == asked
    assert [one["time"] for one in after] == [
        one["time"] for one in everything if one.get("nat.dst.port") == 8080
    ]
    assert packets(capfd, service, "udp") == []


def test_without_libpcap_a_filter_is_a_clear_error(service, monkeypatch):
    monkeypatch.setattr(pcap, "_SONAMES", ("libpcap.so.none",))
    pcap.libpcap.cache_clear()
    with pytest.raises(TracerError, match="not installed"):
        cli._run(["show", str(service), "tcp"])
    pcap.libpcap.cache_clear()


@pytest.mark.parametrize(
    "options",
    [("--pod", "shop/client"), ("-n", "shop"), ("-l", "app=web"), ("--netns", "tpc"),
     ("--interface", "vc"), ("--netns", "node")],
)  # fmt: skip
def test_where_a_packet_was(service, capfd, options):
    found = packets(capfd, service, *options)
    assert found
    for one in found:
        assert any(
            hop.get("k8s.pod.name") == "client" or hop["netns.name"] in ("tpc", "node")
            for hop in one["hops"]
        )


def test_where_no_packet_was(service, capfd):
    assert packets(capfd, service, "--netns", "tpo") == []
    assert packets(capfd, service, "-i", "wlan0") == []


def test_all_must_hold_at_one_hop(service, capfd):
    """vc is a device of the node: no hop is both there and in the client's namespace."""
    assert packets(capfd, service, "-i", "vc", "--netns", "node")
    assert packets(capfd, service, "-i", "vc", "--netns", "tpc") == []


def test_drops_and_reasons(tmp_path, capfd):
    path = record(tmp_path / "r", "forward_drop")
    everything = packets(capfd, path)
    died = [one for one in everything if one["verdict"] == "dropped"]
    assert died
    assert packets(capfd, path, "--dropped") == died
    reasons = {one["drop.reason"] for one in died}
    for reason in reasons:
        assert packets(capfd, path, "--dropped", "--reason", reason) == [
            one for one in died if one["drop.reason"] == reason
        ]
    assert all("explanation" in one for one in died)


def test_evidence_proves_as_it_did_live(tmp_path, capfd):
    _, drops, context = load("forward_drop")
    netns = context.node.netns
    recorder = Recorder(tmp_path / "r", {"command": "drops"})
    drops = drops[:1].copy()
    drops["netns"], drops["reason"], drops["location"] = netns, 2, 1
    changed = Context(context.node, {2: "IP_INNOROUTES"}, lambda _: "ip_error+0x1", 0)
    recorder.evidence(netns, {"net.ipv4.ip_forward": "0", "net.ipv4.conf.all.forwarding": "0"})
    recorder.record("drops", drops, changed)
    recorder.close()
    (found, end) = shown(capfd, tmp_path / "r")[1]
    assert (found["type"], end["shown"]) == ("drop", 1)
    assert "drop.stack" not in found
    from tracer.analysis.drops import drop_record  # noqa: PLC0415
    from tracer.analysis.explain import explain  # noqa: PLC0415

    evidence = {"net.ipv4.ip_forward": "0", "net.ipv4.conf.all.forwarding": "0"}
    live = drop_record(drops[0], changed, with_stack=True)
    assert found["explanation"] == explain(live, evidence).sentence


def test_limits(service, capfd):
    everything = packets(capfd, service)
    assert packets(capfd, service, "-c", "3") == everything[:3]
    firsts = packets(capfd, service, "--first", "1")
    tuples = {(one["src.address"], one.get("src.port"), one["dst.address"]) for one in everything}
    assert len(firsts) == len(tuples)
    durations = sorted(one["duration_ns"] for one in everything)
    middle_ns = durations[len(durations) // 2]
    slow = packets(capfd, service, "--slow", f"{middle_ns / 1e6:.6f}ms")
    assert len(slow) == sum(one > middle_ns for one in durations)
    assert packets(capfd, service, "--sample", "1/1") == everything
    sampled = packets(capfd, service, "--sample", "1/3")
    assert len(sampled) < len(everything)


def test_what_the_recording_does_not_know_is_told(service, capfd):
    with pytest.raises(TracerError, match="no such pod in the recording") as caught:
        shown(capfd, service, "--pod", "shop/nope")
    assert "shop/client" in caught.value.hint
    with pytest.raises(TracerError, match="has none of that name"):
        shown(capfd, service, "--reason", "NOPE")


def test_drops_alone_have_no_hops(tmp_path, capfd):
    _, drops, context = load("forward_drop")
    recorder = Recorder(tmp_path / "r", {"command": "drops"})
    recorder.record("drops", drops, context)
    recorder.close()
    _, records = shown(capfd, tmp_path / "r", "--stack", "--pod", "client")
    assert all("drop.stack" in one for one in records if one["type"] == "drop")
    with pytest.raises(TracerError, match="--sample: this recording has drops only"):
        shown(capfd, tmp_path / "r", "--sample", "1/2")


def test_a_cut_recording_is_shown_and_told(tmp_path, capfd):
    path = record(tmp_path / "r", "service", end=False)
    parser = argparse.ArgumentParser()
    show.add_arguments(parser)
    assert show.run(parser.parse_args([str(path), "-o", "json"])) == 1
    printed = capfd.readouterr()
    assert "was killed, found no room, or still runs; shown is what was whole" in printed.err
    assert '"packet"' in printed.out
    path.write_bytes(path.read_bytes()[:-5])
    assert show.run(parser.parse_args([str(path), "-o", "json"])) == 1
    assert "cut in the middle of a batch" in capfd.readouterr().err


def test_a_damaged_recording_is_shown_up_to_there(tmp_path, capfd):
    path = record(tmp_path / "r", "service")
    everything = packets(capfd, path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"ROWS") + 30
    data[at] ^= 1
    path.write_bytes(data)
    parser = argparse.ArgumentParser()
    show.add_arguments(parser)
    assert show.run(parser.parse_args([str(path), "-o", "json"])) == 1
    printed = capfd.readouterr()
    assert "checksum does not hold; shown is what was whole" in printed.err
    shown_ = [json.loads(line) for line in printed.out.splitlines()]
    whole = [one for one in shown_ if one["type"] == "packet"]
    assert len(everything) > 3
    assert len(whole) >= len(everything) - 1
    assert shown_[-1]["type"] == "end"


def test_a_service_that_the_recorder_knew(tmp_path, capfd):
    """By its address, by what its endpoints are asked, and nothing else."""
    hops, drops, context = load("service")
    web = Service("shop", "web", addresses=("10.96.0.10",), ports=(ServicePort("", "tcp", 80),))
    other = replace(web, name="other", addresses=("10.96.0.11",))
    slices = {
        "shop/web-1": EndpointSlice("shop", "web", (ServicePort("", "tcp", 8080),), ("10.244.2.2",))
    }
    recorder = Recorder(tmp_path / "r", {"command": "trace"})
    recorder.record("hops", hops[:7], context)
    services = {"shop/web": web, "shop/other": other}
    node = replace(context.node, services=services, endpoint_slices=slices)
    recorder.record("hops", hops[7:], replace(context, node=node))
    recorder.record("drops", drops, replace(context, node=node))
    recorder.close()
    everything = packets(capfd, tmp_path / "r")
    found = packets(capfd, tmp_path / "r", "--service", "shop/web")
    ends = ("10.96.0.10", "10.244.2.2")
    assert len(found) > 0
    assert found == [
        one
        for one in everything
        if {one[f"{end}.address"] for end in ("src", "dst")} & set(ends)
        and one["transport"] == "tcp"
    ]
    syn = packets(capfd, tmp_path / "r", "--service", "shop/web", "tcp[13] = 2")
    assert 0 < len(syn) < len(found)
    assert packets(capfd, tmp_path / "r", "--service", "shop/other") == []
    with pytest.raises(TracerError, match="no such Service") as caught:
        shown(capfd, tmp_path / "r", "--service", "shop/none")
    assert "shop/other, shop/web" in caught.value.hint


def test_losses_are_told_where_they_were(tmp_path, capfd):
    hops, _, context = load("service")
    recorder = Recorder(tmp_path / "r", {"command": "trace"})
    recorder.record("hops", hops, context)
    recorder.lost("hops", 3)
    recorder.close()
    code, records = shown(capfd, tmp_path / "r")
    assert code == 1
    assert records[-1]["lost"] == {"hops": 3}
    assert {"type": "lost", "source": "hops", "count": 3} in records


def test_packets_for_wireshark(service, capfd, tmp_path):
    hops, _, _ = load("service")
    found = packets(capfd, service, "--tcp-flags", "SYN", "--write", str(tmp_path / "c.pcapng"))
    content = (tmp_path / "c.pcapng").read_bytes()
    kinds, at = [], 0
    while at < len(content):
        kinds.append(int.from_bytes(content[at : at + 4], "little"))
        at += int.from_bytes(content[at + 4 : at + 8], "little")
    assert found
    assert len(found) < kinds.count(6) < len(hops)


def test_the_summary_alone(service, capfd):
    types = {one["type"] for one in shown(capfd, service, "--summary")[1]}
    assert types == {"latency", "end"}


def test_hops_of_any_content_never_crash(tmp_path, capfd):
    """Checksums hold, but the records are made up: enums, addresses and times of any value."""
    rng = np.random.default_rng(7)
    hop, drop = layout().structs["hop_event"], layout().structs["drop_event"]
    _, _, context = load("service")
    for round_ in range(12):
        rows = np.frombuffer(rng.bytes(200 * hop.itemsize), hop).copy()
        died = np.frombuffer(rng.bytes(20 * drop.itemsize), drop).copy()
        for events in (rows, died):
            events["packet_id"] %= 9
            events["time_ns"] >>= np.uint64(20 if round_ % 2 else 2)
        if round_ % 3:
            rows["hop"] = rows["hop"] % 14
            rows["flags"] %= 32
        recorder = Recorder(tmp_path / "r", {"command": "trace"})
        recorder.record("hops", rows, context)
        recorder.record("drops", died, context)
        recorder.close()
        code, records = shown(capfd, tmp_path / "r", "--write", str(tmp_path / "c.pcapng"))
        assert records[-1]["type"] == "end"
        assert code == 0


def test_neither_bcc_nor_root_nor_the_kernel_is_needed(service):
    """With bcc gone, and nothing of this node opened."""
    program = (
        "import sys\n"
        "sys.modules['bcc'] = None\n"
        "from tracer import cli\n"
        "def refuse(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).startswith(('/sys', '/proc')):\n"
        "        raise PermissionError(arguments[0])\n"
        "sys.addaudithook(refuse)\n"
        f"cli.main(['show', {str(service)!r}, '-o', 'json', '--count', '1'])\n"
    )
    content = service.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[0])["type"] == "packet"
    assert service.read_bytes() == content


def test_a_forged_header_is_no_crash(tmp_path, capfd):
    encoder = blocks.Encoder()
    header = b'{"command":["x"],"enums":{"hop":{"HOP_DEV_RX":[1]}}}'
    (tmp_path / "r").write_bytes(blocks.MAGIC + encoder.encode(blocks.HEAD, header))
    code, records = shown(capfd, tmp_path / "r")
    assert (code, records[-1]["packets"]) == (1, 0)
