"""DNS messages as pods get them: chains, cuts, garbage."""

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.analysis.dns import NOTHING, Answer, MalformedError, parse_answer

CHAIN = (
    ("www.shop.test.", 30, "CNAME", "edge.cdn.test."),
    ("edge.cdn.test.", 20, "CNAME", "pop7.cdn.test."),
    ("pop7.cdn.test.", 60, "A", "192.0.2.1"),
    ("pop7.cdn.test.", 60, "A", "192.0.2.2"),
)


def message(name, *records, kind="A", flags=0, rcode=dns.rcode.NOERROR):
    response = dns.message.make_response(dns.message.make_query(name, kind))
    response.flags |= flags
    response.set_rcode(rcode)
    for owner, ttl_s, one, data in records:
        response.answer.append(dns.rrset.from_text(owner, ttl_s, "IN", one, data))
    return response.to_wire()


def test_the_end_of_a_chain_has_the_name_that_was_asked_for_and_the_shortest_ttl():
    told = parse_answer(message("WWW.Shop.test.", *CHAIN), cut=False)
    assert told == Answer("www.shop.test", ("192.0.2.1", "192.0.2.2"), 20, whole=True)


def test_addresses_are_canonical_and_those_mapped_are_ipv4():
    records = [("a.test.", 9, "AAAA", text) for text in ("2001:DB8:0::1", "::ffff:192.0.2.9")]
    told = parse_answer(message("a.test.", *records, kind="AAAA"), cut=False)
    assert told.addresses == ("2001:db8::1", "192.0.2.9")


def test_what_the_question_does_not_lead_to_is_not_believed():
    """A record beside the chain: nobody asked for it."""
    records = (*CHAIN[:2], ("other.test.", 60, "A", "192.0.2.66"))
    assert parse_answer(message("www.shop.test.", *records), cut=False).addresses == ()


def test_other_questions_tell_nothing():
    mail = message("a.test.", ("a.test.", 9, "MX", "10 mx.a.test."), kind="MX")
    assert parse_answer(mail, cut=False) == NOTHING
    assert parse_answer(mail[:-5], cut=True) == NOTHING


def test_letters_that_names_do_not_have_are_written_as_numbers():
    told = parse_answer(message(r"a\,b\032c.test.", (r"a\,b\032c.test.", 9, "A", "192.0.2.1")),
                        cut=False)  # fmt: skip
    assert told.name == r"a\044b\032c.test"


def test_a_server_that_cut_it_is_told():
    told = parse_answer(message("www.shop.test.", *CHAIN, flags=dns.flags.TC), cut=False)
    assert not told.whole


def test_cut_anywhere_it_tells_what_is_left_and_nothing_wrong():
    whole = message("www.shop.test.", *CHAIN)
    for end in range(len(whole)):
        with pytest.raises(MalformedError):
            parse_answer(whole[:end], cut=False)
        try:
            told = parse_answer(whole[:end], cut=True)
        except MalformedError:
            assert end < 12 + len(b"\3www\4shop\4test\0") + 4
            continue
        assert (told.name, told.whole) == ("www.shop.test", False)
        assert told.addresses == ("192.0.2.1", "192.0.2.2")[: len(told.addresses)]


@pytest.mark.parametrize(
    "records",
    [
        [("a.test.", 9, "CNAME", "b.test."), ("b.test.", 9, "CNAME", "a.test.")],
        [(f"n{n}.test.", 9, "CNAME", f"n{n + 1}.test.") for n in range(40)],
    ],
    ids=["loop", "long"],
)
def test_chains_without_end(records):
    with pytest.raises(MalformedError):
        parse_answer(message(records[0][0], *records), cut=False)


@pytest.mark.parametrize("opcode", range(16))
def test_messages_of_other_kinds(opcode):
    """Updates and notifications are messages, too."""
    whole = bytearray(message("www.shop.test.", *CHAIN))
    whole[2] = whole[2] & 0x87 | opcode << 3
    try:
        parse_answer(bytes(whole), cut=False)
    except MalformedError:
        assert opcode != 0


@given(st.binary(max_size=512), st.booleans())
def test_any_bytes_are_an_answer_or_malformed(garbage, cut):
    _never_else(garbage, cut)
    _never_else(bytes.fromhex("0001 8180 0001 0002 0000 0000") + garbage, cut)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=8), st.booleans())
def test_damaged_answers_are_answers_or_malformed(damage, cut):
    whole = bytearray(message("www.shop.test.", *CHAIN))
    for at, value in damage:
        whole[at % len(whole)] = value
    _never_else(bytes(whole), cut)


def _never_else(garbage, cut):
    try:
        told = parse_answer(garbage, cut=cut)
    except MalformedError:
        return
    assert "," not in told.name
