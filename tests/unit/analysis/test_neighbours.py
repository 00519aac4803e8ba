"""Who waited for a link address: the packet that asked, and those behind it."""

from dataclasses import replace

from hop_rows import (
    CLONE,
    CONSUMED,
    ENTER,
    FIRST,
    LEAVE,
    OUT,
    POST,
    QUEUE,
    context,
    hop,
    no_drops,
    rows,
)

from tracer.analysis.assemble import Assembler
from tracer.analysis.paths import path_records

WAITED = "waited for the next hop's link address"
ROUTER, OTHER = 0x77, 0x78


def sent(packet, at, queued, mac=ROUTER, device=2):
    """A packet from its socket to the device's queue."""
    out = hop(QUEUE, queued, packet=packet, ifindex=device)
    out["packet"][0, 5] = mac
    return [
        hop(ENTER, at, packet=packet, nf=OUT, flags=FIRST, ifindex=device),
        hop(LEAVE, at + 1, packet=packet, nf=OUT, ifindex=device),
        hop(ENTER, at + 2, packet=packet, nf=POST, ifindex=device),
        hop(LEAVE, at + 3, packet=packet, nf=POST, ifindex=device),
        out,
    ]


def question(packet, at):
    """The copy of a packet that went into the question, freed; in no namespace that it knows."""
    return hop(CONSUMED, at, packet=packet, skb=0x5000, flags=CLONE, netns=0, location=7)


def waiting(*hops, location="__neigh_event_send+0x1a"):
    assembler = Assembler()
    assembler.add(rows(*hops), no_drops())
    known = replace(context(), symbol=lambda _: location)
    records = path_records(assembler.take(0, everything=True), known)
    return [any(WAITED in hop.get("changes", ()) for hop in one["hops"]) for one in records]


def test_who_came_while_the_question_was_open():
    hops = [
        *sent(1, 10, 20),  # before anybody asked
        *sent(2, 100, 900),  # asks
        question(2, 110),
        *sent(3, 200, 910),  # behind it
        *sent(4, 300, 310, mac=OTHER),  # to another, that is known
        *sent(5, 400, 920, mac=OTHER),  # slow for a reason of its own
        *sent(6, 500, 930, device=3),
        *sent(7, 1000, 1010),  # after the answer
    ]
    assert waiting(*hops) == [False, True, True, False, False, False, False]


def test_other_clones_ask_nothing():
    hops = [*sent(2, 100, 900), question(2, 110), *sent(3, 200, 910)]
    assert waiting(*hops, location="packet_rcv+0x2") == [False, False]


def test_a_question_without_an_answer():
    """Its packet never comes to the queue: nobody is said to have waited for it."""
    hops = [*sent(2, 100, 900)[:-1], question(2, 110), *sent(3, 200, 910)]
    assert waiting(*hops) == [False, False]
