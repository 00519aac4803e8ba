"""Packets that become several on their way: fragments and segments."""

from dataclasses import replace

from hop_rows import (
    CLIENT,
    CONSUMED,
    ENTER,
    FIRST,
    GSO,
    IN,
    LEAVE,
    POST,
    QUEUE,
    RX,
    XMIT,
    context,
    hop,
    no_drops,
    rows,
)

from tracer.analysis.paths import Assembler, path_records


def one(*hops):
    assembler = Assembler()
    assembler.add(rows(*hops), no_drops())
    (record,) = path_records(assembler.take(0, everything=True), context())
    return record


def test_fragments():
    """The first of them is the packet that was sent."""
    part = hop(QUEUE, 200, netns=CLIENT, bytes=80)
    part["packet"][0, 14 + 6] = 0x20  # more fragments
    record = one(hop(QUEUE, 100, netns=CLIENT, flags=FIRST), part, hop(ENTER, 300, nf=IN))
    assert record["hops"][1]["changes"] == ["fragmented, 100 → 80 bytes"]
    assert record["hops"][2]["changes"][-1] == "reassembled, 80 → 100 bytes"


def test_segments():
    """Each is a branch of the packet that they were cut from."""
    large = {"netns": CLIENT, "gso_segments": 2}
    whole = (
        hop(ENTER, 100, nf=POST, flags=FIRST | GSO, **large),
        hop(LEAVE, 110, nf=POST, flags=GSO, **large),
        hop(QUEUE, 120, flags=GSO, **large),
        hop(CONSUMED, 130, flags=GSO, **large),
    )
    segments = [
        hop(XMIT, 150 + n, netns=CLIENT, skb=90 + n, head=90 + n, bytes=60) for n in range(2)
    ]
    record = one(*whole, *segments)
    told = [hop["changes"] for hop in record["hops"] if hop["hook"] == "net_dev_start_xmit"]
    assert told == [["segment", "GSO 2 → 1 segments", "100 → 60 bytes"]] * 2
    assert [hop["branch"] for hop in record["hops"]] == [0, 0, 0, 1, 2]
    assert [hop.get("after") for hop in record["hops"]] == [None, None, None, 1, 1]  # the queue
    assert [hop["delta_ns"] for hop in record["hops"][-2:]] == [30, 31]


def test_merged_again():
    """By GRO, where a device receives them."""
    large = {"netns": CLIENT, "gso_segments": 3, "bytes": 300}
    begin = hop(QUEUE, 100, flags=FIRST, netns=CLIENT)
    record = one(begin, hop(RX, 200, flags=GSO, **large))
    assert record["hops"][-1]["changes"] == ["GRO 1 → 3 segments", "100 → 300 bytes"]


def test_who_was_merged_is_freed_with_the_other():
    released = replace(context(), symbol=lambda _: "skb_release_data+0x163")
    assembler = Assembler()
    assembler.add(rows(hop(QUEUE, 100, flags=FIRST), hop(CONSUMED, 300)), no_drops())
    (record,) = path_records(assembler.take(0, everything=True), released)
    assert record["hops"][-1]["changes"] == ["was merged into another"]
