"""Capture files: tshark and capinfos read them without a complaint, and find everything in them."""

import gzip
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from socket import inet_aton

import flow_writer
import numpy as np
import pytest
import zstandard
from disks import small_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.analysis.addresses import address_bytes
from tracer.analysis.drops import Context
from tracer.analysis.frames import frames, path_frames
from tracer.analysis.paths import Assembler
from tracer.errors import TracerError
from tracer.files import PAGE_BYTES, NoRoomError
from tracer.layout import layout
from tracer.model import Device, Namespace, Node, Pod
from tracer.sinks import pcapng
from tracer.sinks.pcapng import CAPTURE, Pcapng, paged
from tracer.sinks.rotation import backups

NODE_NETNS, POD_NETNS, PLAIN_NETNS = 4026531833, 4026532001, 4026532002
WEB = Pod("u1", "shop", "web-1", POD_NETNS, addresses=("10.244.0.5",))
NODE = Node(
    "n1",
    NODE_NETNS,
    pods={"u1": WEB},
    namespaces={PLAIN_NETNS: Namespace(PLAIN_NETNS, "blue")},
    devices={
        (NODE_NETNS, 7): Device(NODE_NETNS, 7, "veth7"),
        (POD_NETNS, 2): Device(POD_NETNS, 2, "eth0"),
        (PLAIN_NETNS, 2): Device(PLAIN_NETNS, 2, "eth0"),
    },
    pod_by_netns={POD_NETNS: "u1"},
    pod_by_device={(NODE_NETNS, 7): "u1", (POD_NETNS, 2): "u1"},
    pod_by_address={"10.244.0.5": "u1"},
)
CONTEXT = Context(
    NODE,
    {2: "NOT_SPECIFIED", 12: "NETFILTER_DROP"},
    lambda at: {1: "nft_do_chain+0x5", 2: "nft_do_chain_ipv4+0x1", 3: "ip_forward+0x9"}[at],
    wall_offset_ns=1_700_000_000_000_000_000,
)
HOP = layout().enums["hop"]
MAC = bytes.fromhex("020000000002") + bytes.fromhex("020000000001")
ROTATING = replace(CAPTURE, max_bytes=20_000)
FIELDS = (
    "frame.time_epoch", "frame.interface_name", "frame.interface_description", "frame.comment",
    "frame.len", "frame.cap_len", "frame.packet_id", "ip.dst", "udp.dstport", "eth.src",
)  # fmt: skip


def udp(payload=20):
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 28 + payload, 7, 0, 64, 17, 0)
        + inet_aton("10.244.0.5")
        + inet_aton("10.244.0.6")
        + struct.pack("!HHHH", 4000, 9099, 8 + payload, 0)
        + bytes(payload)
    )


def event(struct_name, packet=None, mac=MAC, **fields):
    row = np.zeros(1, layout().structs[struct_name])[0]
    packet = udp() if packet is None else packet
    raw = ((mac or bytes(12)) + b"\x08\x00" + packet)[: len(row["packet"])]
    row["packet"][: len(raw)] = np.frombuffer(raw, np.uint8)
    row["captured_bytes"], row["bytes"], row["has_mac"] = len(raw), len(packet), mac is not None
    for name, value in fields.items():
        row[name] = value
    return row


def hops():
    pod, node = {"netns": POD_NETNS, "ifindex": 2}, {"netns": NODE_NETNS, "ifindex": 7}
    return np.array(
        [
            event("hop_event", None, None, hop=HOP.HOP_NF_LEAVE, time_ns=1, nf_family=2,
                  nf_hook=3, packet_id=9, **pod),
            event("hop_event", hop=HOP.HOP_DEV_XMIT, time_ns=2, packet_id=9, **pod),
            event("hop_event", udp(500), hop=HOP.HOP_DEV_RX, time_ns=1_000_000_003, packet_id=9,
                  **node),
            event("hop_event", hop=HOP.HOP_DROPPED, time_ns=5, argument=12, location=1,
                  packet_id=8, netns=PLAIN_NETNS, ifindex=2),
            event("hop_event", hop=HOP.HOP_NF_ENTER, time_ns=6, nf_family=10, nf_hook=4,
                  packet_id=8, netns=NODE_NETNS, ifindex=99),
        ]
    )  # fmt: skip


def drops():
    stack = np.array([1, 2, 3] + [0] * 21, np.uint64)
    address = np.frombuffer(address_bytes("10.244.0.5"), np.uint8)
    return np.array(
        [
            event("drop_event", reason=12, location=1, stack=stack, time_ns=9, ifname=b"veth9",
                  netns=NODE_NETNS, ifindex=9, pod_address=address),
            event("drop_event", reason=2, location=3, time_ns=8, netns=PLAIN_NETNS),
        ]
    )  # fmt: skip


def capture(path):
    sink = Pcapng(path)
    sink.write(frames("hops", hops(), CONTEXT))
    sink.write(frames("drops", drops(), CONTEXT))
    sink.write([])
    sink.close()
    return path


def run(tool, *args):
    """The tool's lines; a complaint fails the test."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, *args], capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "could be dangerous" not in line]
    assert (done.returncode, complaints) == (0, [])
    return done.stdout.splitlines()


def test_tshark_reads_names_comments_and_nanoseconds(tmp_path):
    path = capture(tmp_path / "c.pcapng")
    options = [word for name in FIELDS for word in ("-e", name)]
    rows = [
        line.split("\t")
        for line in run("tshark", "-r", path, "-T", "fields", "-E", "separator=/t", *options)
    ]
    made_up = "link-layer header made up"
    pod, node = "pod shop/web-1, netns 4026532001, node n1", "pod shop/web-1, netns node, node n1"
    assert [row[:4] for row in rows] == [
        ["1700000000.000000001", "eth0", pod,
         f"pod shop/web-1: nf ip OUTPUT, accept, {made_up}, packet 9"],
        ["1700000000.000000002", "eth0", pod, "pod shop/web-1: net_dev_start_xmit, packet 9"],
        ["1700000000.000000005", "eth0", "netns blue, node n1",
         "netns blue: kfree_skb, NETFILTER_DROP at nft_do_chain+0x5, packet 8"],
        ["1700000000.000000006", "if99", "netns node, node n1",
         "node: nf ip6 POSTROUTING, packet 8"],
        ["1700000001.000000003", "veth7", node, "pod shop/web-1: netif_receive_skb, packet 9"],
        ["1700000000.000000008", "no device", "netns blue, node n1",
         "netns blue: kfree_skb, NOT_SPECIFIED at ip_forward+0x9"],
        ["1700000000.000000009", "veth9", node,
         "pod shop/web-1: kfree_skb, NETFILTER_DROP at nft_do_chain+0x5, ip FORWARD"],
    ]  # fmt: skip
    assert rows[4][4:7] == ["542", str(layout().constants["SNAPLEN"]), "9"]
    assert rows[5][6] == ""
    assert {(*row[7:9],) for row in rows} == {("10.244.0.6", "9099")}
    assert [row[9] for row in rows[:2]] == ["00:00:00:00:00:00", "02:00:00:00:00:01"]


def test_capinfos_counts_interfaces_and_packets(tmp_path):
    lines = [line.strip() for line in run("capinfos", capture(tmp_path / "c.pcapng"))]
    assert "Number of packets:   7" in lines
    assert "Number of interfaces in file: 6" in lines
    assert "File timestamp precision:  nanoseconds (9)" in lines


def test_tshark_finds_nothing_wrong(tmp_path):
    path = capture(tmp_path / "c.pcapng")
    told = run("tshark", "-r", path, "-q", "-z", "expert")
    assert not [line for line in told if line.startswith(("Errors", "Warns"))]


def blocks(content):
    """(type, block) of each whole block; the length must stand at both ends."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        assert size % 4 == 0
        if at + size > len(content):
            break
        assert struct.unpack_from("<I", content, at + size - 4) == (size,)
        yield kind, content[at : at + size]
        at += size


def test_blocks_are_whole_and_interfaces_come_before_their_packets(tmp_path):
    known = -1
    kinds = []
    for kind, block in blocks(capture(tmp_path / "c.pcapng").read_bytes()):
        kinds.append(kind)
        known += kind == 1
        if kind == 6:
            assert struct.unpack_from("<I", block, 8)[0] <= known
    assert kinds[0] == 0x0A0D0D0A
    assert (kinds.count(1), kinds.count(6)) == (6, 7)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(3, 1018), max_size=60),
    st.integers(0, 3000).filter(lambda words: words % 1024 not in (1022, 1023)),
)
def test_no_block_crosses_the_end_of_a_page(words, at):
    """Blocks of any size up to a page, less what padding needs, behind any file."""
    made = [pcapng._block(6, bytes(4 * (count - 3))) for count in words]
    content = paged(made, 4 * at)
    offset, found = 4 * at, []
    for kind, block in blocks(content):
        assert offset // PAGE_BYTES == (offset + len(block) - 1) // PAGE_BYTES
        offset += len(block)
        found += [block] if kind == 6 else []
    assert found == made
    assert offset == 4 * at + len(content)


def test_tshark_passes_over_what_fills_pages(tmp_path):
    sink = Pcapng(tmp_path / "c.pcapng")
    for first in range(0, 5_005, 1_001):
        sink.write(flow_writer.frames(first, 1_001))
    sink.close()
    kinds = [kind for kind, _ in blocks((tmp_path / "c.pcapng").read_bytes())]
    assert kinds.count(pcapng._PADDING) > 100
    assert len(run("tshark", "-n", "-r", str(tmp_path / "c.pcapng"))) == 5_005
    assert kinds.count(6) == 5_005


def test_each_batch_is_one_write(tmp_path, monkeypatch):
    path, writes = tmp_path / "c.pcapng", []
    sink = Pcapng(path)
    monkeypatch.setattr(sink._file, "append", writes.append)
    sink.write(frames("hops", hops(), CONTEXT))
    assert [len(list(blocks(piece))) for piece in writes] == [5 + 4]


def rotated(path, policy, packets, said=None):
    """All files of a capture of so many numbered packets, oldest first."""
    sink = Pcapng(path, replace(CAPTURE, **policy), [].append if said is None else said.append)
    for first in range(0, packets, 77):
        sink.write(flow_writer.frames(first, min(77, packets - first)))
    sink.close()
    return [*backups(path), path]


def unpacked(path):
    """The file itself, or a plain one of what it holds."""
    opener = {".gz": gzip.open, ".zst": zstandard.open}.get(path.suffix)
    if opener is None:
        return path
    plain = path.parent / "unpacked" / path.with_suffix("").name
    plain.parent.mkdir(exist_ok=True)
    with opener(path, "rb") as file:
        plain.write_bytes(file.read())
    return plain


@pytest.mark.parametrize(("compress", "suffix"), [("none", ""), ("gzip", ".gz"), ("zstd", ".zst")])
def test_each_file_of_many_is_a_capture_of_its_own(tmp_path, compress, suffix):
    policy = {"max_bytes": 30_000, "compress": compress}
    files = rotated(tmp_path / "c.pcapng", policy, 1_001)
    assert len(files) > 5
    assert all(one.name.endswith(f".pcapng{suffix}") for one in files[:-2])
    assert all(one.suffix == ".pcapng" for one in files[-2:])
    found = []
    for plain in map(unpacked, files):
        assert 10_000 < plain.stat().st_size <= 30_000 or plain == files[-1]
        kinds = [kind for kind, _ in blocks(plain.read_bytes())]
        assert kinds[0] == 0x0A0D0D0A
        assert kinds.count(0x0A0D0D0A) == kinds.count(1) == 1
        fields = ("-e", "frame.time_epoch", "-e", "frame.interface_name")
        found += run("tshark", "-n", "-r", str(plain), "-T", "fields", *fields)
    assert found == [f"{number / 1e9:.9f}\teth0" for number in range(1_001)]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("packets", [1_001, 3_003])
def test_the_disk_budget_of_captures_holds(tmp_path, packets):
    said = []
    files = rotated(tmp_path / "c", {"max_bytes": 20_000, "budget_bytes": 60_000}, packets, said)
    assert 30_000 < sum(one.stat().st_size for one in files) <= 60_000
    assert said == [f"{tmp_path}/c: old backups are removed from now on"]
    files = rotated(tmp_path / "d", {"max_bytes": 20_000, "max_backups": 2}, packets)
    assert len(files) == 3


def test_a_packet_that_is_more_than_a_file_has_one(tmp_path):
    assert len(rotated(tmp_path / "c", {"max_bytes": 1}, 11)) == 11


def test_a_capture_rotates_by_age_but_not_while_it_is_empty(tmp_path, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(pcapng.time, "monotonic", lambda: now_s)
    path = tmp_path / "c.pcapng"
    sink = Pcapng(path, replace(CAPTURE, max_age_s=60))
    for frames_before, now_s, expected in ((0, 61, 0), (7, 120, 0), (0, 122, 1), (5, 181, 1)):  # noqa: B007 - read by the lambda
        sink.write(flow_writer.frames(0, frames_before))
        sink.tick()
        assert len(backups(path)) == expected
    sink.close()
    counts = [[kind for kind, _ in blocks(one.read_bytes())].count(6)
              for one in (*backups(path), path)]  # fmt: skip
    assert counts == [7, 5]


def test_what_was_there_becomes_a_backup(tmp_path):
    """Of a capture that rotates; not what holds no packet, nor what is no capture."""
    path = tmp_path / "c.pcapng"
    before = capture(path).read_bytes()
    for _ in range(3):
        Pcapng(path, ROTATING).close()
    assert [one.read_bytes() for one in backups(path)] == [before]
    path.write_bytes(b"")
    Pcapng(path, ROTATING).close()
    assert len(backups(path)) == 1
    path.write_text("mine")
    with pytest.raises(TracerError, match="holds something else"):
        Pcapng(path, ROTATING)
    assert path.read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_two_tracers_do_not_rotate_one_capture(tmp_path):
    path = tmp_path / "c.pcapng"
    for first, second in ((ROTATING, ROTATING), (ROTATING, CAPTURE), (CAPTURE, ROTATING)):
        sink = Pcapng(path, first)
        with pytest.raises(TracerError, match="another tracer writes it"):
            Pcapng(path, second)
        sink.write(flow_writer.frames(0, 300))
        sink.close()
        assert not list(tmp_path.glob(".*"))


def test_a_pipe_takes_one_capture_and_does_not_rotate(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(TracerError, match="not a file that rotates"):
        Pcapng(path, ROTATING)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = Pcapng(path, replace(CAPTURE, fsync="batch"))
    sink.write(flow_writer.frames(0, 7))
    sink.close()
    assert len([kind for kind, _ in blocks(os.read(reader, 1 << 16)) if kind == 6]) == 7
    os.close(reader)


@pytest.mark.parametrize("policy", [{}, {"max_bytes": 5_000}])
@pytest.mark.parametrize("fsync", ["never", "rotate", "batch"])
def test_the_disk_is_waited_for_as_asked(tmp_path, monkeypatch, policy, fsync):
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    sink = Pcapng(tmp_path / "c", replace(CAPTURE, fsync=fsync, **policy))
    sink.write(flow_writer.frames(0, 7))
    assert (len(waited) > 0) == (fsync == "batch")
    waited.clear()
    sink.close()
    assert (len(waited) > 0) == (fsync != "never")


def test_a_capture_that_somebody_moved_away_stays_there(tmp_path):
    path = tmp_path / "c"
    sink = Pcapng(path, ROTATING)
    sink.write(flow_writer.frames(0, 7))
    path.rename(tmp_path / "moved")
    sink.write(flow_writer.frames(0, 300))
    sink.close()
    assert path.exists()
    for one in tmp_path.iterdir():
        assert next(blocks(one.read_bytes()))[0] == 0x0A0D0D0A


def test_a_full_disk_leaves_whole_captures(tmp_path):
    with small_disk(tmp_path, "128k"):
        path = tmp_path / "c"
        sink = Pcapng(path, ROTATING)
        with pytest.raises(NoRoomError, match=f"{path}: no space left"):
            sink.write(flow_writer.frames(0, 9_999))
        sink.close()
        assert not list(tmp_path.glob(".*"))
        for one in (*backups(path), path):
            content = one.read_bytes()
            assert sum(len(block) for _, block in blocks(content)) == len(content) > 0


def test_what_we_did_not_make_is_not_overwritten(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(TracerError, match="holds something else"):
        Pcapng(tmp_path / "notes")
    capture(tmp_path / "c.pcapng")
    capture(tmp_path / "c.pcapng")


def test_a_device_that_got_another_name_is_another_interface(tmp_path):
    one = frames("hops", hops()[1:2], CONTEXT)
    sink = Pcapng(tmp_path / "c.pcapng")
    sink.write(one)
    node = Node("n1", NODE_NETNS, devices={(POD_NETNS, 2): Device(POD_NETNS, 2, "net1")})
    sink.write(frames("hops", hops()[1:2], Context(node, {}, hex, 0)))
    sink.close()
    kinds = [kind for kind, _ in blocks((tmp_path / "c.pcapng").read_bytes())]
    assert kinds == [0x0A0D0D0A, 1, 6, 1, 6]


def test_hops_of_another_kernel_side_keep_their_number():
    strange = event("hop_event", hop=HOP.HOP_NF_ENTER, nf_family=77, nf_hook=200, netns=1)
    later = event("hop_event", hop=999, netns=1)
    without_bytes = event("hop_event", hop=HOP.HOP_ROUTE, netns=1, captured_bytes=0)
    frame, other = frames("hops", np.array([strange, later, without_bytes]), CONTEXT)
    assert other.comment == "netns 1: hop 999"
    assert frame.comment == "netns 1: nf 77 200"


def test_a_hop_without_a_namespace_is_where_its_packet_was():
    """A socket's hop may not tell; then it is in the namespace of the hop before."""
    rows = np.repeat(hops()[1:2], 2)
    rows["hop"], rows["time_ns"] = (HOP.HOP_DEV_RX, HOP.HOP_CONSUMED), (10, 11)
    rows["netns"][1] = rows["ifindex"][1] = 0
    rows["tuple"]["ethertype"] = 0x0800
    (unknown,) = frames("hops", rows[1:], CONTEXT)
    assert unknown.comment == "somewhere: consume_skb, packet 9"
    assembler = Assembler()
    assembler.add(rows, drops()[:0])
    first, second = path_frames(assembler.take(0, everything=True), CONTEXT)
    assert first.comment == "pod shop/web-1: netif_receive_skb, packet 9"
    assert second.comment == "pod shop/web-1: consume_skb, packet 9"
    assert (second.name, second.description) == ("no device", first.description)
