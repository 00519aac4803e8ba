"""The kernel's trace messages, byte for byte, as visits; and what our table is made of."""

import struct

import pytest

from tracer.netfilter import nfnl, nft_table, nft_trace
from tracer.netfilter.nfnl import attribute, be32, be64, nested, text
from tracer.netfilter.nft_table import Match, Wanted
from tracer.netfilter.nft_trace import Visits

DROP, ACCEPT, QUEUE, JUMP, GOTO, RETURN, CONTINUE = 0, 1, 3, -3, -4, -5, -1
RULE, POLICY = 3, 1
HEADERS = attribute(8, b"network") + attribute(9, b"transport")


def told(number, chain, *parts, kind=RULE, family=2):
    body = text(1, "filter") + text(2, chain) + be32(4, kind) + be32(6, number) + b"".join(parts)
    return nfnl.message(nft_trace.NFT_MSG_TRACE, 0, family, body)


def rule(number, chain, handle, code, *parts, target=""):
    verdict = be32(1, code) + (text(2, target) if target else b"")
    return told(number, chain, be64(3, handle), nested(5, verdict), *parts)


def test_a_rule_reached_by_a_jump():
    visits = Visits()
    assert visits.add(rule(1, "FORWARD", 4, JUMP, HEADERS, be32(14, 9), target="A")) == []
    (visit,) = visits.add(rule(1, "A", 7, DROP))
    assert (visit.family, visit.table, visit.chain) == ("ip", "filter", "FORWARD")
    assert (visit.network, visit.transport, visit.mark) == (b"network", b"transport", 9)
    assert visit.steps == [("FORWARD", 4, "jump A"), ("A", 7, "drop")]
    assert (visit.verdict, visit.by_policy) == ("drop", False)
    assert visits.add(rule(1, "A", 7, DROP)) == [], "it was over"


def test_a_policy_after_the_end_of_the_chain():
    visits = Visits()
    end = told(5, "c", nested(5, be32(1, CONTINUE)), HEADERS, family=1)
    assert visits.add(end) == [], "the end of a chain is no rule"
    (visit,) = visits.add(told(5, "c", be32(16, DROP), kind=POLICY, family=1))
    assert (visit.family, visit.steps) == ("inet", [])
    assert (visit.verdict, visit.by_policy) == ("drop", True)


def test_packets_of_several_cpus_are_interleaved():
    visits = Visits()
    visits.add(rule(1, "c", 1, CONTINUE, HEADERS))
    visits.add(rule(2, "c", 2, CONTINUE, HEADERS))
    (one,) = visits.add(rule(1, "c", 3, ACCEPT))
    (two,) = visits.add(rule(2, "c", 4, DROP))
    assert [step[1] for step in one.steps] == [1, 3]
    assert [step[1] for step in two.steps] == [2, 4]


def test_several_messages_in_one_datagram():
    data = rule(1, "c", 1, RETURN, HEADERS) + rule(1, "c", 2, QUEUE | 5 << 16)
    (visit,) = Visits().add(data)
    assert [step[2] for step in visit.steps] == ["return", "queue"]


def test_without_its_beginning_nothing_is_told():
    assert Visits().add(rule(1, "c", 1, DROP)) == []


def test_lost_ends_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(nft_trace, "MAX_OPEN", 4)
    visits = Visits()
    for number in range(9):
        visits.add(rule(number, "c", 1, CONTINUE, HEADERS))
    assert len(visits.add(rule(8, "c", 1, DROP))) == 1


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_broken_message_is_no_disaster(cut):
    data = bytearray(rule(1, "c", 1, DROP, HEADERS))
    data[cut : cut + 4] = b"\xff\xff\xff\xff"
    Visits().add(bytes(data))


class Kernel:
    """A socket that acknowledges everything."""

    def __init__(self, error=0):
        self.sent, self._error = b"", error

    def send(self, data):
        self.sent = bytes(data)
        kinds = [kind for kind, _, _ in nfnl.messages(self.sent)][1:-1]
        ack = struct.pack("=IHHIIi", 20, nfnl.NLMSG_ERROR, 0, 0, 0, -self._error)
        self._answers = [ack for _ in kinds]

    def recv(self, _size):
        return self._answers.pop()


def messages(sent):
    return [kind & 0xFF for kind, _, _ in nfnl.messages(sent)]


def test_the_table_is_owned_and_made_at_once():
    kernel = Kernel()
    nft_table.install(kernel, "tracer-1", Wanted())
    kinds = messages(kernel.sent)
    assert (kinds[0], kinds[-1]) == (nfnl.NFNL_MSG_BATCH_BEGIN, nfnl.NFNL_MSG_BATCH_END)
    assert kinds[1] == nft_table.NEWTABLE
    assert kinds.count(nft_table.NEWCHAIN) == kinds.count(nft_table.NEWRULE) == len(nft_table.HOOKS)
    assert be32(2, nft_table.NFT_TABLE_F_OWNER) in kernel.sent
    assert be32(2, nft_table.FIRST) in kernel.sent


def test_a_changed_table_takes_the_place_of_the_former_at_once():
    kernel = Kernel()
    one = Wanted(addresses=frozenset({"10.0.0.1"}))
    both = Wanted((Match("ip", 6, dport=80),), frozenset({"10.0.0.1", "fd00::1"}), bridge=True)
    nft_table.install(kernel, "tracer-1", both, one)
    kinds = messages(kernel.sent)
    assert kinds.count(nft_table.DELTABLE) == 1
    assert kinds.index(nft_table.DELTABLE) < kinds.index(nft_table.NEWTABLE)
    assert kinds.count(nft_table.NEWTABLE) == 2, "the bridge's too"
    assert kinds.count(nft_table.NEWRULE) == 2 * len(nft_table.HOOKS) * 2, "source or destination"


def test_devices_have_a_chain_of_their_own():
    kernel = Kernel()
    wanted = Wanted((Match("ip"),), devices=frozenset({"eth0", "eth1"}))
    nft_table.install(kernel, "tracer-1", wanted)
    kinds = messages(kernel.sent)
    assert kinds.count(nft_table.NEWTABLE) == 2
    assert kinds.count(nft_table.NEWCHAIN) == len(nft_table.HOOKS) + 1
    assert nested(4, text(1, "eth0"), text(1, "eth1")) in kernel.sent


def test_what_the_kernel_refuses_is_told():
    with pytest.raises(OSError, match="Invalid argument"):
        nft_table.install(Kernel(22), "tracer-1", Wanted())
