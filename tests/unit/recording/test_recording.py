"""Recordings: what was written is read again, whatever ended the recorder and wherever."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from tracer.analysis.drops import Context
from tracer.errors import TracerError
from tracer.layout import layout
from tracer.model import Device, Namespace, Node, Pod
from tracer.recording import Batch, Evidence, Loss, Recorder, Recording, Rules, blocks, writer

HOP, DROP = layout().structs["hop_event"], layout().structs["drop_event"]
NODE = Node(
    "n1",
    5,
    pods={"u": Pod("u", "shop", "web", 7, addresses=("10.0.0.1",), labels={"app": "web"})},
    namespaces={7: Namespace(7, "cni-1", pid=3, sources=("netns",))},
    devices={(7, 2): Device(7, 2, "eth0", peer=(5, 9))},
    pod_by_netns={7: "u"},
    pod_by_device={(7, 2): "u", (5, 9): "u"},
    warnings=("cri: gone",),
    version=4,
)


def hops(count, start=0):
    """Records of random bytes: nothing but the true bytes will do."""
    rng = np.random.default_rng(start)
    rows = np.frombuffer(rng.bytes(count * HOP.itemsize), HOP).copy()
    rows["time_ns"] >>= np.uint64(2)
    return rows


def read(path):
    """All that a recording holds, and its ending."""
    recording = Recording(path)
    return list(recording), recording.ending


def recorded(path, batches=3, *, close=True):
    recorder = Recorder(path, {"command": "trace"})
    recorder.context(NODE, {0xFFFFFFFF81000010: "f+0x10"}, {2: "NO_SOCKET"}, 77)
    for at in range(batches):
        recorder.write("hops", hops(100, at))
    if close:
        recorder.close()
    return path


def test_what_is_written_is_read(tmp_path):
    recorder = Recorder(tmp_path / "r", {"command": "trace", "filter": "tcp"})
    recorder.context(NODE, {0xFFFFFFFF81000010: "f+0x10"}, {2: "NO_SOCKET"}, 77)
    recorder.write("hops", hops(10_000))
    recorder.write("drops", np.zeros(3, DROP))
    recorder.lost("hops", 9)
    recorder.write("hops", hops(0))
    recorder.close()
    recording = Recording(tmp_path / "r")
    assert (recording.header["command"], recording.header["filter"]) == ("trace", "tcp")
    found = list(recording)
    assert recording.ending == ""
    batches = [one for one in found if isinstance(one, Batch)]
    read_hops = [one.events for one in batches if one.kind == "hops"]
    assert len(read_hops) > 1, "a batch of 3 MB is split"
    assert np.concatenate(read_hops).tobytes() == hops(10_000).tobytes()
    assert (batches[-1].kind, len(batches[-1].events)) == ("drops", 3)
    assert found[-1] == Loss("hops", 9)
    context = batches[0].context
    assert context.node == NODE
    assert context.symbol(0xFFFFFFFF81000010) == "f+0x10"
    assert context.symbol(16) == "0x10"
    assert context.reason(2) == "NO_SOCKET"
    assert context.wall_offset_ns == 77
    assert list(recording), "it can be read again"


def test_the_context_is_that_of_its_time_and_only_changes_are_written(tmp_path):
    path = tmp_path / "r"
    recorder = Recorder(path, {"command": "trace"})
    recorder.context(NODE, {}, {}, 1)
    recorder.write("hops", hops(1))
    size = path.stat().st_size
    recorder.context(NODE, {}, {}, 1)
    assert path.stat().st_size == size
    gone = Node("n1", 5, pods={"v": Pod("v", "", "")}, devices=NODE.devices, version=5)
    recorder.context(gone, {1: "g+0x0"}, {}, 2)
    assert path.stat().st_size < size + 250, "devices are not written twice"
    recorder.write("hops", hops(1))
    recorder.close()
    first, second = (batch.context for batch in Recording(path))
    assert (first.node, first.wall_offset_ns) == (NODE, 1)
    assert (second.node, second.wall_offset_ns, second.symbol(1)) == (gone, 2, "g+0x0")


def test_evidence_is_kept_once(tmp_path):
    recorder = Recorder(tmp_path / "r", {"command": "trace"})
    recorder.evidence(7, {"net.ipv4.ip_forward": "0", "a": "b"})
    recorder.evidence(7, {"net.ipv4.ip_forward": "0"})
    recorder.evidence(7, {"net.ipv4.ip_forward": "1"})
    recorder.close()
    assert read(tmp_path / "r")[0] == [
        Evidence(7, {"net.ipv4.ip_forward": "0", "a": "b"}),
        Evidence(7, {"net.ipv4.ip_forward": "1"}),
    ]


RULE = {"netfilter.rule": "udp drop", "netfilter.handle": 7, "netfilter.path": ["c", "d"],
        "netfilter.rule_source": "inferred", "service.port": 53}  # fmt: skip
"""Of a drop."""


def test_rules_are_told_behind_their_events_and_kept_once(tmp_path):
    recorder = Recorder(tmp_path / "r", {"command": "drops", "rules": "read"})
    recorder.rules([((1, 2), RULE), ((3, 4), [RULE, RULE])])
    before = (tmp_path / "r").stat().st_size
    recorder.rules([((number, 9), RULE) for number in range(100)])
    recorder.rules([])
    recorder.close()
    assert (tmp_path / "r").stat().st_size - before < 1000
    rules = Recording(tmp_path / "r").rules()
    assert rules.of_drop((1, 2)) == RULE == rules.of_drop((99, 9))
    assert rules.of_hop((3, 4)) == [RULE, RULE]
    assert rules.of_drop((3, 4)) == {}
    assert rules.of_hop((1, 2)) == rules.of_hop((7, 7)) == []
    assert not rules.nonsense
    assert read(tmp_path / "r") == ([], ""), "they are no events"


@pytest.mark.parametrize(
    "told",
    [
        [],
        {"fields": {"x": {}}, "of": []},
        {"fields": {"1": [7]}, "of": []},
        {"fields": {"1": {"netfilter.path": [7]}}, "of": []},
        {"fields": {"1": {"netfilter.rule": {}}}, "of": []},
        {"fields": {"1": {"netfilter.handle": "many"}}, "of": []},
        {"fields": {"1": {"netfilter.candidates": [7]}}, "of": []},
        {"fields": {}, "of": [[1, 2]]},
    ],
)
def test_rules_that_make_no_sense_are_left_out_and_told(told):
    good = orjson.dumps({"fields": {"0": RULE}, "of": [[1, 2, 0]]})
    payloads = good, orjson.dumps(told)
    rules = Rules(blocks.Block(blocks.RULES, payload, at) for at, payload in enumerate(payloads))
    assert rules.nonsense.startswith("byte 1")
    assert rules.of_drop((1, 2)) == RULE


def test_a_rule_cannot_steer_a_terminal(tmp_path):
    with_escape = {"netfilter.rule": "a\x1b[2Jb", "netfilter.candidates": [{"rule": "\x07"}]}
    recorder = Recorder(tmp_path / "r", {"command": "drops", "rules": "read"})
    recorder.rules([((1, 2), with_escape)])
    recorder.close()
    told = Recording(tmp_path / "r").rules().of_drop((1, 2))
    assert told == {"netfilter.rule": "a?[2Jb", "netfilter.candidates": [{"rule": "?"}]}


def test_one_call_records_a_batch_and_its_names(tmp_path):
    recorder = Recorder(tmp_path / "r", {"command": "drops"})
    drops = np.zeros(2, DROP)
    drops["location"], drops["stack"][0, :2] = (0x10, 0x20), (0x10, 0x30)
    asked = []

    def symbol(address):
        asked.append(address)
        return f"f{address:x}"

    context = Context(NODE, {2: "NO_SOCKET"}, symbol, 5)
    recorder.record("drops", drops, context)
    recorder.record("drops", drops, context)
    recorder.close()
    assert sorted(asked) == [0x10, 0x20, 0x30], "each address once"
    (batch, _), _ = read(tmp_path / "r")
    assert [batch.context.symbol(at) for at in (0x10, 0x20, 0x30)] == ["f10", "f20", "f30"]


def test_cut_anywhere_it_reads_up_to_the_last_whole_batch(tmp_path):
    whole = recorded(tmp_path / "whole").read_bytes()
    ends = [*(block.at for block in _blocks(whole)[1:]), len(whole)]
    rng = random.Random(3)  # noqa: S311 - repeatable, not secret
    cuts = {*ends, *(rng.randrange(ends[0], len(whole)) for _ in range(60))}
    for cut in sorted(cuts):
        (tmp_path / "cut").write_bytes(whole[:cut])
        found, ending = read(tmp_path / "cut")
        assert len(found) == sum(
            end <= cut
            for end, block in zip(ends, _blocks(whole), strict=True)
            if block.tag == blocks.ROWS
        )
        for at, batch in enumerate(found):
            assert batch.events.tobytes() == hops(100, at).tobytes()
        assert bool(ending) == (cut < len(whole))
        assert ("cut" in ending) == (cut not in ends)


def _blocks(content):
    import io  # noqa: PLC0415

    file = io.BytesIO(content)
    file.seek(len(blocks.MAGIC))
    return list(blocks.blocks(file))


def test_a_flipped_bit_is_told_and_never_shown(tmp_path):
    path = recorded(tmp_path / "r")
    whole = path.read_bytes()
    first_rows = next(block.at for block in _blocks(whole) if block.tag == blocks.ROWS)
    rng = random.Random(4)  # noqa: S311 - repeatable, not secret
    for at in (rng.randrange(first_rows, len(whole) - 40) for _ in range(60)):
        bad = bytearray(whole)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        found = []
        recording = Recording(path)
        try:
            for batch in recording:
                found.append(batch)  # noqa: PERF402 - it may stop in the middle
        except TracerError as error:
            assert "damaged" in error.message  # noqa: PT017 - a longer size may also look cut
        else:
            assert "cut" in recording.ending
        for index, batch in enumerate(found):
            assert batch.events.tobytes() == hops(100, index).tobytes()


def _forge(path, *pieces):
    """A file whose checksums hold, as someone ill-meaning would write it."""
    encoder = blocks.Encoder()
    head = encoder.encode(blocks.HEAD, b"{}")
    made = (encoder.encode(tag, payload) for tag, payload in pieces)
    path.write_bytes(blocks.MAGIC + head + b"".join(made))


KIND = (blocks.KIND, orjson.dumps({"kind": "hops", "fields": [["time_ns", "<u8", 0]]}))


@pytest.mark.parametrize(
    "pieces",
    [
        [(blocks.ROWS, b"\0\0\0\0" + bytes(8))],
        [(blocks.ROWS, b"")],
        [KIND, (blocks.ROWS, b"\0\0\0\0" + bytes(9))],
        [KIND, (blocks.ROWS, b"\1\0\0\0" + bytes(8))],
        [(blocks.KIND, b"[]")],
        [(blocks.KIND, b"{")],
        [(blocks.KIND, b'{"kind":"hops","fields":[]}')],
        [(blocks.KIND, b'{"kind":"hops","fields":[["a","O",0]]}')],
        [(blocks.KIND, b'{"kind":"hops","fields":[["a","<u3",0]]}')],
        [(blocks.KIND, b'{"kind":"hops","fields":[["a","<u8",99999999]]}')],
        [(blocks.KIND, b'{"kind":"hops","fields":[["a","<u8",0],["a","<u8",0]]}')],
        [(blocks.KIND, b'{"kind":"hops","fields":' + b'[["a",' * 60 + b"0" + b",0]]" * 60 + b"}")],
        [
            (blocks.KIND, b'{"kind":"hops","fields":[["time_ns","|S8",0]]}'),
            (blocks.ROWS, b"\0\0\0\0" + bytes(8)),
        ],
        [
            (blocks.KIND, b'{"kind":"hops","fields":[["tuple","<u8",0]]}'),
            (blocks.ROWS, b"\0\0\0\0" + bytes(8)),
        ],
        [(blocks.CONTEXT, b'{"node":{"pods":{"u":{"uid":1}}}}')],
        [(blocks.CONTEXT, b'{"node":{"pods":{"u":{}}}}')],
        [(blocks.CONTEXT, b'{"node":{"pods":7}}')],
        [(blocks.CONTEXT, b'{"node":{"devices":{"7":{"netns":7,"ifindex":1,"name":"x"}}}}')],
        [(blocks.CONTEXT, b'{"node":{"name":null}}')],
        [(blocks.CONTEXT, b'{"node":3}')],
        [(blocks.CONTEXT, b'{"symbols":3}')],
        [(blocks.CONTEXT, b'{"symbols":{"x":"f"}}')],
        [(blocks.CONTEXT, b'{"symbols":{"1":2}}')],
        [(blocks.CONTEXT, b'{"reasons":{"1":2}}')],
        [(blocks.CONTEXT, b'{"wall_offset_ns":1e300}')],
        [(blocks.CONTEXT, b'{"wall_offset_ns":18446744073709551615}')],
        [KIND, (blocks.ROWS, b"\0\0\0\0" + b"\xff" * 8)],
        [KIND, (blocks.ROWS, bytes(4 + (32 << 20)))],
        [(blocks.LOST, b"{}")],
        [(blocks.EVIDENCE, b'{"netns":1,"values":{"a":1}}')],
        [(blocks.EVIDENCE, b'{"netns":1,"values":3}')],
    ],
)
def test_forged_content_is_an_error_of_one_line(tmp_path, pieces):
    _forge(tmp_path / "r", *pieces)
    with pytest.raises(TracerError, match="damaged: byte") as caught:
        list(Recording(tmp_path / "r"))
    assert "\n" not in caught.value.message


def test_a_claimed_size_is_not_believed(tmp_path):
    """A decompression bomb: a frame that claims 3 GB, a block that claims 4 GB."""
    import zlib  # noqa: PLC0415

    import zstandard  # noqa: PLC0415

    zeros = zstandard.ZstdCompressor().compressobj(size=3 << 30)
    bomb = zeros.compress(bytes(1 << 20)) + zeros.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    for size in (8, 0xFFFFFFFF):
        _forge(tmp_path / "r")
        checked = b"ROWS" + len(bomb).to_bytes(4, "little") + size.to_bytes(4, "little")
        crc = zlib.crc32(bomb, zlib.crc32(checked)).to_bytes(4, "little")
        with (tmp_path / "r").open("ab") as file:
            file.write(checked + crc + bomb)
        with pytest.raises(TracerError, match="impossible size"):
            list(Recording(tmp_path / "r"))


def test_text_cannot_steer_a_terminal(tmp_path):
    _forge(
        tmp_path / "r",
        KIND,
        (blocks.CONTEXT, b'{"symbols":{"1":"f\\u001b[2J"},"node":{"name":"\\u001b]0;x"}}'),
        (blocks.ROWS, b"\0\0\0\0" + bytes(8)),
    )
    (batch,), _ = read(tmp_path / "r")
    assert (batch.context.symbol(1), batch.context.node.name) == ("f?[2J", "?]0;x")


def test_an_older_layout_is_read_by_name(tmp_path):
    """Another order, no conntrack, a longer packet, a narrower mark, an unknown field."""
    old = np.dtype(
        [("packet", "u1", (96,)), ("later", "<u8"), ("mark", "<u2"), ("time_ns", "<u8"),
         ("tuple", [("sport", "<u2"), ("saddr", "u1", (16,))]), ("hop", "<u2")]
    )  # fmt: skip
    rows = np.zeros(2, old)
    rows["packet"][:, 95], rows["mark"], rows["time_ns"] = 7, (1, 2), (3, 4)
    rows["tuple"]["sport"] = (5, 6)
    recorder = Recorder(tmp_path / "r", {"command": "trace"})
    recorder.write("hops", rows)
    recorder.close()
    (batch,), _ = read(tmp_path / "r")
    events = batch.events
    assert set(HOP.names) <= set(events.dtype.names)
    assert events["mark"].tolist() == [1, 2]
    assert events["tuple"]["sport"].tolist() == [5, 6]
    assert events["tuple"]["dport"].tolist() == [0, 0]
    assert events["ct"]["present"].tolist() == [0, 0]
    assert events["packet"][:, 95].tolist() == [7, 7]


def test_renumbered_enums_are_read_by_name(tmp_path):
    ours = layout().enums["hop"].__members__
    theirs = {name: {2: 3, 3: 2}.get(value, value) for name, value in ours.items()}
    rows = np.zeros(3, HOP)
    rows["hop"] = (1, 2, 3)
    recorder = Recorder(tmp_path / "r", {"command": "trace"})
    recorder.write("hops", rows)
    recorder.close()
    content = (tmp_path / "r").read_bytes()
    head, *rest = _blocks(content)
    header = json.loads(head.payload)
    header["enums"]["hop"] = theirs
    encoder = blocks.Encoder()
    made = [encoder.encode(head.tag, orjson.dumps(header))]
    made += [encoder.encode(block.tag, block.payload) for block in rest]
    (tmp_path / "r").write_bytes(blocks.MAGIC + b"".join(made))
    (batch,), _ = read(tmp_path / "r")
    assert batch.events["hop"].tolist() == [1, 3, 2]


def test_blocks_of_a_later_version_are_skipped(tmp_path):
    _forge(tmp_path / "r", (b"NEWS", b"?"), KIND, (blocks.ROWS, b"\0\0\0\0" + bytes(16)))
    (batch,), _ = read(tmp_path / "r")
    assert len(batch.events) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a recording"),
        (b"\xd4\xc3\xb2\xa1" + bytes(40), "not a recording"),
        (b"tracer recording 2\n" + bytes(40), "made by a later tracer"),
        (blocks.MAGIC, "its header is damaged"),
        (blocks.MAGIC + bytes(100), "its header is damaged"),
    ],
)
def test_what_is_no_recording_is_told(tmp_path, content, words):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(TracerError, match=words) as caught:
        Recording(tmp_path / "r")
    assert caught.value.hint


def test_bad_paths_are_told(tmp_path):
    with pytest.raises(TracerError, match="no such file"):
        Recording(tmp_path / "none")
    with pytest.raises(TracerError, match="null: not a file"):
        Recording(Path("/dev/null"))
    with pytest.raises(TracerError, match="is a directory"):
        Recording(tmp_path)
    with pytest.raises(TracerError, match="no such file"):
        Recorder(tmp_path / "none" / "r", {})


def test_only_recordings_are_overwritten(tmp_path):
    recorded(tmp_path / "r", 50)
    assert len(read(recorded(tmp_path / "r", 1))[0]) == 1
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(TracerError, match="holds something else") as caught:
        Recorder(tmp_path / "notes", {})
    assert caught.value.hint
    assert (tmp_path / "notes").read_text() == "mine"


def test_one_file_has_one_recorder(tmp_path):
    first = Recorder(tmp_path / "r", {})
    with pytest.raises(TracerError, match="another tracer writes it"):
        Recorder(tmp_path / "r", {})
    first.close()


WRITE = """
import pathlib, sys
import numpy as np
from tracer.errors import TracerError
from tracer.layout import layout
from tracer.recording import Recorder
hop = layout().structs["hop_event"]
recorder = Recorder(pathlib.Path(sys.argv[1]), {"command": "trace"})
at = 0
print("ready", flush=True)
while True:
    rows = np.frombuffer(np.random.default_rng(at).bytes(300 * hop.itemsize), hop).copy()
    rows["packet_id"] = at
    rows["time_ns"] >>= np.uint64(2)
    try:
        recorder.write("hops", rows)
    except TracerError as error:
        sys.exit(error.message)
    at += 1
"""


def check_whole(path):
    """Batches 0, 1, 2, … without a gap, each with its true bytes; returns their number."""
    found, ending = read(path)
    assert ending
    for at, batch in enumerate(found):
        expected = hops(300, at).copy()
        expected["packet_id"] = at
        assert batch.events.tobytes() == expected.tobytes()
    return len(found)


def test_twenty_kills_leave_whole_batches(tmp_path):
    rng = random.Random(5)  # noqa: S311 - repeatable, not secret
    total = 0
    for run in range(20):
        path = tmp_path / f"r{run}"
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, path], stdout=subprocess.PIPE
        ) as recorder:
            recorder.stdout.readline()
            time.sleep(rng.uniform(0.01, 0.1))
            recorder.send_signal(signal.SIGKILL)
        total += check_whole(path)
        path.unlink()
    assert total > 20


def test_a_full_disk_keeps_whole_batches_and_is_told(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = subprocess.run(
        [sys.executable, "-c", WRITE, tmp_path / "r"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "file too large" in done.stderr
    assert check_whole(tmp_path / "r") >= 9
    assert "cut" not in read(tmp_path / "r")[1], "what fitted of the last batch is taken back"


def test_after_a_failed_write_a_recording_is_never_called_whole(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "r", {})
    recorder.write("hops", hops(1))
    with monkeypatch.context() as patch:
        patch.setattr(recorder._file, "_fd", -1)
        with pytest.raises(TracerError, match="bad file"):
            recorder.write("hops", hops(1))
    recorder.close()
    recorder.close()
    found, ending = read(tmp_path / "r")
    assert len(found) == 1
    assert "was killed" in ending


def test_addresses_are_those_of_location_and_stack():
    drops = np.zeros(2, DROP)
    drops["location"], drops["stack"][1, :3] = (9, 0), (3, 9, 0)
    assert writer.addresses(drops) == [3, 9]
    assert writer.addresses(np.zeros(1, [("x", "<u8")])) == []
