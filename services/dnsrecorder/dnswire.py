"""DNS answers, read in full: the second opinion on what the kernel's learner read in passing.

The addresses of an answer belong to the name that was *asked*; the chain of CNAMEs inside it is the resolver's affair.
One exception, CoreDNS autopath: where the asked name ends in a search suffix and the first record is a CNAME to
exactly the name without it, they belong to that name.

Pure. Deliberately absent: who asked, who answered, whether to believe it (the kernel has decided that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rrset

from schemas import wire
from schemas.terms import Reason

_ADDRESS_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)


class AnswerError(ValueError):
    """A message that is no answer we may use. ``reason``: one of the LEARN_* reasons."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Record:
    """One address of an answer, with its own TTL in seconds."""

    address: str
    ttl_seconds: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What one message says. ``name``: lower case, no trailing dot. ``records``: in order, duplicates kept."""

    name: str
    rcode: int
    records: tuple[Record, ...]
    is_ipv6: bool = False
    """AAAA was asked for."""
    is_cut: bool = False
    """Truncated: the client asks again over TCP."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Distinct addresses, sorted."""
        return tuple(sorted({record.address for record in self.records}))

    @property
    def ttl_seconds(self) -> int:
        """The shortest TTL among the addresses; 0 without any."""
        return min((record.ttl_seconds for record in self.records), default=0)


def parse_answer(message: bytes, suffixes: Sequence[str] = ()) -> Answer:
    """The answer in a whole DNS message (without TCP's length prefix); AnswerError if it is none.

    ``suffixes``: search suffixes, lower case, without dots around them.
    """
    parsed = _decode(message)
    question = parsed.question[0]
    asked = _plain_name(question.name)
    records = tuple(record for rrset in parsed.answer for record in _read_records(rrset, question.rdtype))
    name = _strip_suffix(asked, parsed.answer, suffixes)
    is_cut = bool(parsed.flags & dns.flags.TC)
    return Answer(name, int(parsed.rcode()), records, question.rdtype == dns.rdatatype.AAAA, is_cut)


def parse_refusal(message: bytes, suffixes: Sequence[str] = ()) -> Answer:
    """An answer without addresses, of which the kernel may have read the beginning only; AnswerError if it is none."""
    try:
        return parse_answer(message, suffixes)
    except AnswerError:
        parsed = _decode(message, question_only=True)
    question = parsed.question[0]
    name = _plain_name(question.name)
    return Answer(name, int(parsed.rcode()), (), question.rdtype == dns.rdatatype.AAAA)


def _decode(message: bytes, *, question_only: bool = False) -> dns.message.Message:
    try:
        parsed = dns.message.from_wire(
            message, ignore_trailing=True, one_rr_per_rrset=True, question_only=question_only
        )
    except (dns.exception.DNSException, ValueError) as error:
        raise AnswerError(Reason.LEARN_MALFORMED, f"{type(error).__name__}: {error}") from error
    if not parsed.flags & dns.flags.QR:
        raise AnswerError(Reason.LEARN_MALFORMED, "a query, not an answer")
    if len(parsed.question) != 1:
        raise AnswerError(Reason.LEARN_MALFORMED, f"{len(parsed.question)} questions, not one")
    question = parsed.question[0]
    if question.rdclass != dns.rdataclass.IN or question.rdtype not in _ADDRESS_TYPES:
        raise AnswerError(Reason.LEARN_MALFORMED, "not a question for addresses in class IN")
    return parsed


def _plain_name(name: dns.name.Name) -> str:
    labels = [label.lower() for label in name.labels if label]
    if any(b"." in label for label in labels):
        raise AnswerError(Reason.LEARN_BAD_NAME, "a label with a dot inside")
    text = b".".join(labels).decode("ascii", errors="replace")
    if not wire.is_legal_name(text):
        raise AnswerError(Reason.LEARN_BAD_NAME, f"{text!r} is no name that may travel")
    return text


def _read_records(rrset: dns.rrset.RRset, wanted: dns.rdatatype.RdataType) -> list[Record]:
    if rrset.rdclass != dns.rdataclass.IN or rrset.rdtype != wanted:
        return []
    found = (dns.rdtypes.IN.A.A, dns.rdtypes.IN.AAAA.AAAA)
    return [Record(_canonical(rdata.address), rrset.ttl) for rdata in rrset if isinstance(rdata, found)]


def _canonical(address: str) -> str:
    return wire.unpack_address(wire.pack_address(address))


def _strip_suffix(asked: str, answer: Sequence[dns.rrset.RRset], suffixes: Sequence[str]) -> str:
    if not answer or answer[0].rdtype != dns.rdatatype.CNAME:
        return asked
    target = next((rdata.target for rdata in answer[0] if isinstance(rdata, dns.rdtypes.ANY.CNAME.CNAME)), None)
    if target is None:
        return asked
    aimed = b".".join(label.lower() for label in target.labels if label).decode("ascii", errors="replace")
    if not wire.is_legal_name(aimed) or not asked.startswith(aimed + "."):
        return asked
    rest = asked[len(aimed) + 1 :]
    is_search = any(rest == suffix or rest.endswith("." + suffix) for suffix in suffixes)
    return aimed if is_search else asked
