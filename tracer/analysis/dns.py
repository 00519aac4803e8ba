"""One DNS message, as a pod was sent it, → which name led to which addresses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tracer.analysis.addresses import address_bytes, address_text
from tracer.errors import TracerError

try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.rdatatype
except ImportError as error:
    raise TracerError(
        "--dns: dnspython is not installed", "pip install node-packet-tracer[dns]"
    ) from error

_ID_BYTES = 2
"""A message begins with the number of its query, which is all that differs between many."""
_PARSED = 2048
"""Messages whose meaning is remembered: pods ask for the same names again and again."""
ADDRESS_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)


class MalformedError(Exception):
    """It looks like an answer and is none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer tells of the name that was asked for."""

    name: str
    """As it was asked: lower case, no dot at the end; `\\DDD` for what is no letter of names."""
    addresses: tuple[str, ...]
    """At the end of the chain of CNAMEs; canonical text."""
    ttl_s: int
    """The shortest of the chain."""
    whole: bool
    """False: there may be more addresses than these, in what was cut off or went by TCP."""


NOTHING = Answer("", (), 0, whole=True)


def parse_answer(message: bytes, *, cut: bool) -> Answer:
    """Read a DNS message, of which the end may have been `cut` off.

    `NOTHING` where it tells no addresses; MalformedError for what is no answer.
    """
    return _parse(bytes(_ID_BYTES) + message[_ID_BYTES:], cut)


@lru_cache(maxsize=_PARSED)
def _parse(message: bytes, cut: bool) -> Answer:  # noqa: FBT001 - part of the cache's key
    try:
        # What cannot be parsed is kept in `errors`: of a message that was cut, its end.
        parsed = dns.message.from_wire(message, ignore_trailing=True, continue_on_error=True)
        if not isinstance(parsed, dns.message.QueryMessage) or (parsed.errors and not cut):
            raise MalformedError
        chain = parsed.resolve_chaining()
    except dns.exception.DNSException as error:
        raise MalformedError from error
    question = parsed.question[0]
    if question.rdtype not in ADDRESS_TYPES:
        return NOTHING
    found = (rdata.address for rdata in chain.answer or ())
    return Answer(
        _name_text(question.name),
        tuple(dict.fromkeys(address_text(address_bytes(text)) for text in found)),
        chain.minimum_ttl,
        whole=not (cut or parsed.flags & dns.flags.TC),
    )


def _name_text(name: dns.name.Name) -> str:
    # Lists of names have commas between them, so a comma in a name is written as others are.
    return name.canonicalize().to_text(omit_final_dot=True).replace(",", "\\044")
